"""LoRA and prompts on quantised bases: against PEFT with bitsandbytes, trained and served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.lora_models import disturb
from fixtures.train_rows import ROWS
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.utils.loftq_utils import _low_rank_decomposition
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from luthier.adapters.lora.building import create_lora
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.sampling import SamplingParams
from luthier.errors import InvalidInputError, NotSupportedError
from luthier.inference.base import GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.plain_engine import PlainEngine
from luthier.modules import LoraTuning, PeftPromptTuning, TextGeneration
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import TokenBatch
from luthier.training.networks.network import TrainingNetwork

WORDS = ("int8", "nf4", "fp4")
KINDS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"use_dora": True}}
QUICK: dict[str, Any] = {"num_epochs": 4, "batch_size": 4, "accumulate_steps": 1}


def _their_base(folder: Path, word: str) -> PreTrainedModel:
    """transformers' quantised model."""
    if word == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=word,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    )


def _theirs(folder: Path, word: str, **options: Any) -> PeftModel:
    """PEFT on transformers' quantised model, in the mode that bitsandbytes trains in."""
    model = _their_base(folder, word)
    model.requires_grad_(False)
    torch.manual_seed(3)
    lora = PeftLoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", **options
    )
    return get_peft_model(model, lora).train()


def _batch() -> TokenBatch:
    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 10, 11, 0, 0]])
    mask = (ids > 0).long()
    labels = torch.where(torch.arange(5) < 2, -100, ids).masked_fill(mask == 0, -100)
    return TokenBatch((1, 2), ids, mask, labels, int(mask.sum()), int((labels != -100).sum()))


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_peft_with_bitsandbytes(
    tiny_causal_base: BaseModel, tiny_causal_dir: Path, word: str, kind: str
) -> None:
    base, batch = tiny_causal_base.quantised(word), _batch()
    config = LoraConfig.from_mapping({"rank": 4, "alpha": 8, **KINDS[kind]})
    adapter = create_lora(base.model, config, seed=3)
    loss = TrainingNetwork(base, adapter).loss_sum(batch) / batch.num_label_tokens
    loss.backward()
    theirs = _theirs(tiny_causal_dir, word, **KINDS[kind])
    expected = theirs(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
    ).loss
    expected.backward()

    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    gradients = {
        name.removeprefix("base_model.model.")
        .replace(".default", "")
        .replace("magnitude_vector.weight", "magnitude_vector"): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    assert gradients.keys() == {name for name, _ in adapter.named_parameters()}
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-4, rtol=1e-3)
    assert any(parameter.grad.abs().max() > 1e-3 for _, parameter in adapter.named_parameters())


@pytest.mark.parametrize("word", ["int8", "nf4"])
def test_an_adapter_loads_in_plain_peft_on_either_base(
    tiny_causal_base: BaseModel, tiny_causal_dir: Path, tmp_path: Path, word: str
) -> None:
    base = tiny_causal_base.quantised(word)
    adapter = create_lora(base.model, LoraConfig(rank=4, initialisation="random"), seed=3)
    save_adapter(adapter, tmp_path / "adapter", base_model_name="tiny")
    again = load_adapter(tmp_path / "adapter", base_model=base)
    assert again.content_hash() == adapter.content_hash()
    plain = AutoModelForCausalLM.from_pretrained(tiny_causal_dir)
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    ids = _batch().input_ids[:1]
    unquantised = load_adapter(tmp_path / "adapter", base_model=tiny_causal_base)
    ours = unquantised.tuned_model(tiny_causal_base.model)(ids).logits
    torch.testing.assert_close(ours, theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("initialisation", ["pissa", "olora"])
def test_a_start_that_is_taken_away_changes_nothing_of_a_quantised_base(
    tiny_causal_base: BaseModel, initialisation: str
) -> None:
    base = tiny_causal_base.quantised("nf4")
    adapter = create_lora(base.model, LoraConfig(rank=4, initialisation=initialisation), seed=3)
    ids = _batch().input_ids[:1]
    tuned = adapter.tuned_model(base.model)(ids).logits
    torch.testing.assert_close(tuned, base.model(ids).logits, atol=1e-3, rtol=1e-3)


def test_loftq_starts_from_what_rounding_took_away(tiny_causal_base: BaseModel) -> None:
    base = tiny_causal_base.quantised("nf4")
    config = LoraConfig(rank=4, alpha=4, initialisation="loftq")
    adapter = create_lora(base.model, config, seed=3, original=tiny_causal_base.model)
    for path, factors in adapter.factors.items():
        weight = tiny_causal_base.model.get_submodule(path).weight
        error = weight - base.model.get_submodule(path).dequantised_weight()
        theirs = _low_rank_decomposition(error, reduced_rank=4)
        delta = factors.lora_b @ factors.lora_a
        torch.testing.assert_close(delta, theirs["L"] @ theirs["R"], atol=1e-5, rtol=1e-4)
        assert (error - delta).norm() < 0.95 * error.norm()
    whole = LoraConfig(rank=16, alpha=64, initialisation="loftq", target_modules=("k_proj",))
    adapter = create_lora(base.model, whole, seed=3, original=tiny_causal_base.model)
    tuned = adapter.tuned_model(base.model).get_submodule("model.layers.0.self_attn.k_proj")
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    plain = tiny_causal_base.model.get_submodule("model.layers.0.self_attn.k_proj")
    torch.testing.assert_close(tuned(x), plain(x), atol=1e-4, rtol=1e-4)
    with pytest.raises(InvalidInputError, match="as they were before they were quantised"):
        create_lora(base.model, config, seed=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "set 'quantization'"),
        ({"quantization": "nf4"}, "set 'serve_quantized'"),
    ],
)
def test_loftq_is_refused_beside_a_base_as_it_is(
    tiny_causal_dir: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        LoraTuning.train(str(tiny_causal_dir), ROWS, initialisation="loftq", **arguments)


def test_a_loftq_is_tuned_and_served_on_the_quantised_base(
    tiny_causal_dir: Path, tmp_path: Path
) -> None:
    model = LoraTuning.train(
        str(tiny_causal_dir),
        ROWS,
        rank=4,
        initialisation="loftq",
        quantization="nf4",
        serve_quantized=True,
        learning_rate=1e-3,
        **QUICK,
    )
    text = model.run("hello", max_new_tokens=6).generated_text
    model.save(tmp_path / "model")
    again = LoraTuning.load(tmp_path / "model", base_model=str(tiny_causal_dir))
    assert again.run("hello", max_new_tokens=6).generated_text == text
    again.release()
    model.release()


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("kind", [*KINDS, "own layers"])
def test_loras_on_a_quantised_base_share_a_batch_and_say_what_peft_says(
    tiny_causal_base: BaseModel, tiny_causal_dir: Path, tmp_path: Path, word: str, kind: str
) -> None:
    base = tiny_causal_base.quantised(word)
    kinds = {**KINDS, "own layers": {"modules_to_save": ["norm", "lm_head"]}}
    config = LoraConfig.from_mapping({"rank": 4, "initialisation": "random", **kinds[kind]})
    adapter = create_lora(base.model, config, seed=3)
    disturb(adapter, seed=4, by=0.2)
    sampling = SamplingParams(max_new_tokens=8, min_new_tokens=8)
    prompts = [base.tokenizer(text)["input_ids"] for text in ("My package never arrived", "Label")]
    requests = [
        GenerationRequest(tuple(ids), sampling, adapter=each)
        for ids in prompts
        for each in (None, adapter)
    ]
    said = []
    for make in (PlainEngine, BatchedEngine):
        engine = make(base)
        try:
            streams = [engine.submit(request) for request in requests]
            said.append([[t.token_id for c in stream for t in c.tokens] for stream in streams])
            if isinstance(engine, BatchedEngine):
                assert engine.keeps_deltas(adapter)
                assert engine._whole_models is None, "all of them ran in the batch"
        finally:
            engine.close()
    assert said[0] == said[1]
    assert said[0][0] != said[0][1]
    if (kind, word) == ("dora", "int8"):
        return  # bitsandbytes loses this layer's scales between PEFT's passes
    save_adapter(adapter, tmp_path / "lora", base_model_name=str(tiny_causal_dir))
    # In training, where nothing is dropped, bitsandbytes computes as our layers do.
    theirs = PeftModel.from_pretrained(_their_base(tiny_causal_dir, word), tmp_path / "lora")
    theirs.train()
    for ids, expected in zip(prompts, said[1][1::2], strict=True):
        out = theirs.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=8, min_new_tokens=8, do_sample=False
        )
        assert out[0, len(ids) :].tolist() == expected


@pytest.mark.parametrize(("serve_quantized", "held"), [(False, "none"), (True, "nf4")])
def test_a_saved_qlora_runs_on_the_base_that_its_config_names(
    tiny_causal_dir: Path, tmp_path: Path, serve_quantized: bool, held: str
) -> None:
    model = LoraTuning.train(
        str(tiny_causal_dir),
        ROWS,
        rank=4,
        quantization="nf4",
        serve_quantized=serve_quantized,
        learning_rate=1e-3,
        **QUICK,
    )
    assert model.base_model.quantization == "nf4"
    losses = [line["data"]["value"] for line in model.training_logs]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model")
    with pytest.raises(NotSupportedError, match="is quantised: rounding would eat the delta"):
        model.save_merged(tmp_path / "merged")
    again = LoraTuning.load(tmp_path / "model", base_model=str(tiny_causal_dir))
    assert again.base_model.quantization == held
    assert again.run("hello", max_new_tokens=4).generated_tokens > 0
    again.release()
    model.release()


def test_a_prompt_is_tuned_on_a_quantised_base(tiny_causal_dir: Path) -> None:
    model = PeftPromptTuning.train(
        str(tiny_causal_dir), ROWS, {"num_virtual_tokens": 4}, quantization="int8", **QUICK
    )
    assert model.base_model.quantization == "int8"
    losses = [line["data"]["value"] for line in model.training_logs]
    assert losses[-1] < losses[0]
    model.release()


def test_what_is_quantised_cannot_be_learned_whole(tiny_causal_dir: Path) -> None:
    with pytest.raises(NotSupportedError, match="cannot be fine-tuned"):
        TextGeneration.train(str(tiny_causal_dir), ROWS, quantization="nf4", num_epochs=1)
