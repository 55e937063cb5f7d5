from pathlib import Path

import pytest

from luthier.cli.child_settings import add_config_files, add_settings
from luthier.errors import ConfigError


def test_config_files_are_appended_to_those_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "b.yml"
    file.touch()
    environment = {"CONFIG_FILES": "a.yml"}
    add_config_files(environment, [file])
    assert environment["CONFIG_FILES"] == f"a.yml,{file}"


def test_no_config_file_leaves_the_environment_alone() -> None:
    environment: dict[str, str] = {}
    add_config_files(environment, [])
    assert environment == {}


def test_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        add_config_files({}, [tmp_path / "x.yml"])


def test_settings_that_are_none_change_nothing() -> None:
    environment = {"LOG_LEVEL": "info"}
    add_settings(environment, {"LOG_LEVEL": None, "RUNTIME_HTTP_PORT": 0})
    assert environment == {"LOG_LEVEL": "info", "RUNTIME_HTTP_PORT": "0"}
