from pathlib import Path

import pytest

from luthier.cli.serve import add_config_files, add_settings
from luthier.errors import ConfigError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """What the command became: the seam is the operating system's exec."""
    calls: list[tuple[list[str], dict[str, str]]] = []

    def execve(program: str, arguments: list[str], environment: dict[str, str]) -> None:
        calls.append((arguments, environment))

    monkeypatch.setattr("os.execve", execve)
    return calls


def test_serve_becomes_the_runtime_with_the_options_as_settings(run, started, tmp_path) -> None:
    file = tmp_path / "my.yml"
    file.touch()
    run("serve", "--http-port", 9090, "--models-dir", "served", "--config", file)
    ((arguments, environment),) = started
    assert arguments[1:] == ["-m", "luthier.runtime"]
    assert environment["RUNTIME_HTTP_PORT"] == "9090"
    assert environment["RUNTIME_LOCAL_MODELS_DIR"] == "served"
    assert environment["CONFIG_FILES"] == str(file)
    assert "RUNTIME_GRPC_PORT" not in environment


def test_config_file_that_is_not_there_is_refused(run, started, tmp_path: Path) -> None:
    result = run("serve", "-c", tmp_path / "none.yml")
    assert result.code == 2
    assert "none.yml' does not exist" in result.err
    assert started == []


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
