from luthier.cli import options
from luthier.client import DEFAULT_URL


def test_commands_and_client_look_for_the_server_at_the_same_address() -> None:
    assert options.DEFAULT_URL == DEFAULT_URL
