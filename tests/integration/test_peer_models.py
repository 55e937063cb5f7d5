"""Models that caikit-nlp trained and saved give here the text that they gave there."""

import json
import os
from pathlib import Path

import pytest

import luthier
from luthier.config import load_config
from luthier.modules.environment import configure

SHARED = Path(os.environ.get("LUTHIER_SHARED", Path(__file__).resolve().parents[3] / "shared"))
PEER_MODELS = SHARED / "peer_models"
EXPECTED = (
    json.loads((PEER_MODELS / "expected.json").read_text("utf-8"))
    if (PEER_MODELS / "expected.json").is_file()
    else {}
)
CALLS = [
    pytest.param(model, run, id=f"{model}-{index}")
    for model, expected in EXPECTED.items()
    for index, run in enumerate(expected["expected_in_memory"]["runs"])
]

pytestmark = pytest.mark.skipif(
    not EXPECTED, reason=f"no models of caikit-nlp at {PEER_MODELS}; set LUTHIER_SHARED"
)


@pytest.fixture(scope="module", autouse=True)
def base_models():
    # Two of the bases are pickles; caikit-nlp's own test fixtures.
    configure(
        load_config({"BASE_MODELS_DIR": str(PEER_MODELS / "base"), "ALLOW_PICKLE_WEIGHTS": "true"})
    )
    yield
    configure(load_config({}))


@pytest.fixture(scope="module")
def loaded(base_models):
    models = {}

    def load(name):
        if name not in models:
            models[name] = luthier.load(PEER_MODELS / name)
        return models[name]

    yield load
    for model in models.values():
        model.release()


def expected_token_count(run, *, is_seq2seq):
    """caikit-nlp counts a causal model's prompt in and one token out; here neither."""
    if is_seq2seq:
        return run["generated_tokens"]
    return run["generated_tokens"] - run["input_token_count"] + 1


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_a_recorded_call_gives_the_recorded_answer(loaded, name, call):
    model = loaded(name)
    result = model.run(call["text"], **call["kwargs"])
    is_seq2seq = model.base_model.kind == "seq2seq"
    assert {
        "generated_text": result.generated_text,
        "finish_reason": result.finish_reason.name,
        "input_token_count": result.input_token_count,
        "generated_tokens": result.generated_tokens,
    } == {
        "generated_text": call["generated_text"],
        "finish_reason": call["finish_reason"],
        "input_token_count": call["input_token_count"],
        "generated_tokens": expected_token_count(call, is_seq2seq=is_seq2seq),
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_the_stream_of_a_recorded_call_joins_to_the_recorded_text(loaded, name):
    call = EXPECTED[name]["expected_in_memory"]["runs"][0]
    pieces = list(loaded(name).run_stream_out(call["text"], **call["kwargs"]))
    assert "".join(piece.generated_text for piece in pieces) == call["generated_text"]
    assert [piece.details.finish_reason.name for piece in pieces[:-1]].count("NOT_FINISHED") == (
        len(pieces) - 1
    )
    assert pieces[-1].details.finish_reason.name == call["finish_reason"]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_loaded_model_saved_again_gives_the_same_text(loaded, name, tmp_path):
    call = EXPECTED[name]["expected_in_memory"]["runs"][0]
    loaded(name).save(tmp_path / "again")
    again = luthier.load(tmp_path / "again")
    assert again.run(call["text"], **call["kwargs"]).generated_text == call["generated_text"]
    again.release()


def test_the_course_of_the_peers_training_is_kept(loaded, tmp_path):
    model = loaded("bloom_pt_text")
    values = [line["data"]["value"] for line in model.training_logs]
    recorded = [value for _, _, value in EXPECTED["bloom_pt_text"]["loss_history"]]
    assert values == pytest.approx(recorded)
    model.save(tmp_path / "again")
    again = luthier.load(tmp_path / "again")
    assert [line["data"]["value"] for line in again.training_logs] == values
