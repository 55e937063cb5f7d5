from pathlib import Path

import pytest


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
