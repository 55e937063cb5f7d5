"""Models, versions and health over HTTP."""

from __future__ import annotations

import base64

import pytest
from fixtures.echo_runtime import RunningRuntime

from luthier.inference.base import AdapterStatus, EngineStatus
from luthier.runtime.services import info

MODELS = "/management/models"
CONFIG = b"module_id: m-1\n"


@pytest.fixture(scope="module")
def http(runtime: RunningRuntime):
    with runtime.http as client:
        yield client


def encoded(**files: bytes) -> list[dict[str, str]]:
    return [
        {"filename": name, "data": base64.b64encode(data).decode()} for name, data in files.items()
    ]


def test_health_is_plain_text(http):
    response = http.get("/health")
    assert (response.status_code, response.text) == (200, "OK")
    assert response.headers["content-type"].startswith("text/plain")


def test_versions_are_told(http):
    assert http.get("/info/version").json()["python_packages"]["caikit"] == "0.29.0"


def test_engines_are_told(http, monkeypatch):
    class Engine:
        base_model_name = "base"

        def status(self):
            return EngineStatus(is_healthy=True, num_running=2)

        def adapter_status(self):
            return AdapterStatus(num_on_device=1, num_loads=5, on_device=("tickets/adapter",))

    monkeypatch.setattr(info, "engines", lambda: [Engine()])
    (told,) = http.get("/info/engines").json()["engines"]
    assert (told["base_model"], told["num_running"], told["detail"]) == ("base", 2, "")
    assert told["adapters"]["on_device"] == ["tickets/adapter"]
    assert told["adapters"]["num_loads"] == 5


def test_models_are_listed_all_or_by_name(http):
    names = [model["name"] for model in http.get("/info/models").json()["models"]]
    assert {"echo", "other"} <= set(names)
    one = http.get("/info/models", params={"model_ids": ["other"]}).json()["models"]
    assert [model["name"] for model in one] == ["other"]
    assert http.get("/info/models", params={"model_ids": "nope"}).status_code == 404


@pytest.mark.parametrize("way", ["json", "form"])
def test_a_model_is_deployed_used_and_undeployed(http, runtime, way):
    if way == "json":
        files = encoded(**{"config.yml": CONFIG, "adapter/w": b"\x00"})
        response = http.post(MODELS, json={"model_id": "fresh", "model_files": files})
    else:
        parts = [
            ("model_files", ("config.yml", CONFIG)),
            ("model_files", ("adapter/w", b"\x00")),
        ]
        response = http.post(MODELS, data={"model_id": "fresh"}, files=parts)
    assert response.status_code == 200, response.text
    assert (response.json()["name"], response.json()["module_id"]) == ("fresh", "m-1")
    assert (runtime.models_dir / "fresh" / "adapter" / "w").read_bytes() == b"\x00"
    body = {"model_id": "fresh", "inputs": "a b"}
    assert http.post("/api/v1/task/text-generation", json=body).status_code == 200
    gone = http.delete(MODELS, params={"model_id": "fresh"})
    assert gone.json() == {"model_id": "fresh"}
    assert http.post("/api/v1/task/text-generation", json=body).status_code == 404


@pytest.mark.parametrize("name", ["../../pwn.txt", "/tmp/pwn.txt", "a\\..\\..\\pwn"])
@pytest.mark.parametrize("way", ["json", "form"])
def test_a_file_never_leaves_the_folder(http, runtime, name, way):
    if way == "json":
        files = encoded(**{"config.yml": CONFIG, name: b"pwn"})
        response = http.post(MODELS, json={"model_id": "evil", "model_files": files})
    else:
        parts = [("model_files", ("config.yml", CONFIG)), ("model_files", (name, b"pwn"))]
        response = http.post(MODELS, data={"model_id": "evil"}, files=parts)
    assert (response.status_code, response.json()["error"]) == (400, "name_not_allowed")
    assert list(runtime.models_dir.parent.rglob("pwn*")) == []
    assert not (runtime.models_dir / "evil").exists()


@pytest.mark.parametrize("model_id", ["../models", "/etc", "%2e%2e", "x\0", "x" * 10_000, ""])
def test_a_model_id_never_leaves_the_folder(http, runtime, model_id):
    response = http.delete(MODELS, params={"model_id": model_id})
    assert (response.status_code, response.json()["error"]) == (400, "name_not_allowed")
    files = encoded(**{"config.yml": CONFIG})
    response = http.post(MODELS, json={"model_id": model_id, "model_files": files})
    assert (response.status_code, response.json()["error"]) == (400, "name_not_allowed")
    assert (runtime.models_dir / "echo").is_dir()


def test_what_is_no_model_is_refused_and_leaves_nothing(http, runtime):
    for files, status in (
        ([], 400),
        (encoded(w=b""), 400),
        (encoded(**{"config.yml": b"corrupt"}), 400),
        ([{"filename": "config.yml", "data": "%%%"}], 422),
        (encoded(**{"config.yml": CONFIG}) * 2, 400),
    ):
        response = http.post(MODELS, json={"model_id": "bad", "model_files": files})
        assert response.status_code == status, response.text
    files = encoded(**{"config.yml": CONFIG})
    assert http.post(MODELS, json={"model_id": "echo", "model_files": files}).status_code == 409
    assert http.delete(MODELS).status_code == 422
    assert not [path for path in runtime.models_dir.iterdir() if "bad" in path.name]
    assert not [path for path in runtime.models_dir.iterdir() if path.name.startswith(".deploy")]
