"""Full fine-tuning over the wire that starts from an earlier whole model of the server."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures.server_process import server_process
from fixtures.tuned_server import DATA, FINE_TUNING
from safetensors.torch import load_file

WEIGHTS = "artifacts/model.safetensors"


def body_of(name: str, *, num_epochs: int, **settings: Any) -> dict[str, Any]:
    parameters = {
        "base_model": "tiny-causal",
        "train_stream": {"data_stream": {"data": DATA}},
        "num_epochs": num_epochs,
        "lr": 0.01,
        "accumulate_steps": 1,
        "training_options": settings,
    }
    return {"model_name": name, "parameters": parameters}


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_base_models_dir):
    with server_process(tmp_path_factory.mktemp("weights"), tiny_base_models_dir, {}) as server:
        yield server


def test_a_training_starts_from_a_model_of_the_server_and_from_nothing_else(server) -> None:
    first = body_of("first", num_epochs=1, validation_size=0.25)
    assert server.train(FINE_TUNING, first)["state"] == "COMPLETED"
    second = body_of("second", num_epochs=0, pretrained_weights="first")
    assert server.train(FINE_TUNING, second)["state"] == "COMPLETED"
    learned, found = (load_file(server.models_dir / name / WEIGHTS) for name in ("first", "second"))
    assert learned.keys() == found.keys()
    assert all(tensor.equal(found[name]) for name, tensor in learned.items())

    outside = server.models_dir.parent / "outside.safetensors"
    outside.write_bytes((server.models_dir / "first" / WEIGHTS).read_bytes())
    (server.models_dir / "link").symlink_to(outside.parent)
    with server.http as client:
        for name in (str(outside), "../outside.safetensors", "link/outside.safetensors"):
            refused = body_of("third", num_epochs=0, pretrained_weights=name)
            response = client.post(f"/api/v1/{FINE_TUNING}", json=refused)
            assert response.status_code == 400, response.text
            assert "pretrained_weights" in response.json()["details"]
