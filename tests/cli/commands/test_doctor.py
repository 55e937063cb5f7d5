import json
import socket
from pathlib import Path

import httpx
import pytest


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def findings(result) -> dict[str, dict]:
    return {finding["check"]: finding for finding in json.loads(result.out)}


def test_doctor_reports_versions_settings_and_an_absent_server(run) -> None:
    result = run("doctor", "--quick", "--json", "--url", "http://127.0.0.1:9")
    found = findings(result)
    assert result.code == 0
    assert "torch" in found["packages"]["facts"]
    assert found["settings"]["verdict"] == "ok"
    assert found["server"]["verdict"] == "note"


def test_server_that_answers_is_reported(run, serve) -> None:
    models = httpx.Response(200, json={"models": [{"name": "m", "loaded": False}]})
    url, _ = serve({"GET /health": httpx.Response(200, text="OK"), "GET /info/models": models})
    found = findings(run("doctor", "--quick", "--json", "--url", url))
    assert found["server"]["message"] == f"{url} says OK, models: 1"


def test_unknown_setting_fails_with_a_suggestion(run, monkeypatch, tmp_path) -> None:
    file = tmp_path / "bad.yml"
    file.write_text("runtime: {http: {prot: 80}}\n")
    monkeypatch.setenv("CONFIG_FILES", str(file))
    result = run("doctor", "--quick")
    assert result.code == 1
    assert "FAIL  settings" in result.out
    assert "did you mean 'port'" in result.out


def test_taken_port_is_noted(run, monkeypatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("RUNTIME_HTTP_PORT", str(taken.getsockname()[1]))
        result = run("doctor", "--quick", "--json")
    assert result.code == 0
    assert "is taken" in findings(result)["http port"]["message"]


def test_base_models_are_found_by_name(run, monkeypatch, tmp_path) -> None:
    for name in ("tiny", "org/small"):
        (tmp_path / "bases" / name).mkdir(parents=True)
        (tmp_path / "bases" / name / "config.json").write_text("{}")
    (tmp_path / "hf" / "hub" / "models--org--cached").mkdir(parents=True)
    monkeypatch.setenv("BASE_MODELS_DIR", str(tmp_path / "bases"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    found = findings(run("doctor", "--quick", "--json"))["base models"]["facts"]["found"]
    assert {"tiny", "org/small", "org/cached"} <= set(found)


def test_folder_of_base_models_that_is_not_there_fails(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("BASE_MODELS_DIR", str(tmp_path / "none"))
    result = run("doctor", "--quick")
    assert result.code == 1
    assert "none' does not exist" in result.out


def test_torch_is_probed_in_a_process_of_its_own(run) -> None:
    found = findings(run("doctor", "--json", "--url", "http://127.0.0.1:9"))["torch"]
    assert found["verdict"] == "ok"
    assert found["facts"]["device"] in ("cpu", "cuda")
    assert found["facts"]["bf16_speed_of_fp32"] > 0


def test_missing_package_fails(run, monkeypatch) -> None:
    monkeypatch.setattr("luthier.cli.commands.doctor.PACKAGES", ("httpx", "no-such-package"))
    result = run("doctor", "--quick")
    assert result.code == 1
    assert "missing: no-such-package" in result.out


def test_torch_that_cannot_be_imported_fails_in_one_line(run, monkeypatch, tmp_path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcuda.so.1: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = run("doctor", "--url", "http://127.0.0.1:9")
    assert result.code == 1
    assert "cannot be used: ImportError: libcuda.so.1: cannot open" in result.out
