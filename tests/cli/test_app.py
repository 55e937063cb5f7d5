import pytest


@pytest.mark.parametrize(
    "command", ["serve", "train", "generate", "classify", "models", "jobs", "doctor"]
)
def test_every_command_explains_itself(command: str, run) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert f"luthier {command}" in result.out


def test_no_arguments_show_the_help(run) -> None:
    result = run()
    assert result.code == 2
    assert "Tunes and serves language models" in result.out


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_has_two_names(option: str, run) -> None:
    assert run(option).code == 0
