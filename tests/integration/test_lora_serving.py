"""Rows with LoRA, DoRA, soft prompts and the bare base through one engine: each as if alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from luthier.adapters.base import Adapter
from luthier.adapters.lora.building import create_lora
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import Engine, GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.plain_engine import PlainEngine
from luthier.resources.base_model import BaseModel

TEXTS = ["My package never arrived", "I was charged twice", "How do I reset", "The screen is black"]
SAMPLING = SamplingParams(max_new_tokens=12, generated_tokens=True)
KINDS = {
    "small": LoraConfig(rank=2),
    "large": LoraConfig(rank=16, use_rslora=True, target_modules=("q_proj", "v_proj")),
    "dora": LoraConfig(rank=4, use_dora=True, initialisation="pissa"),
    "head": LoraConfig(rank=4, modules_to_save=("lm_head",)),
}


def _base(folder: Path, dtype: torch.dtype) -> BaseModel:
    auto = AutoModelForSeq2SeqLM if "seq2seq" in folder.name else AutoModelForCausalLM
    model = auto.from_pretrained(folder).to(dtype)
    return BaseModel.from_memory(model, AutoTokenizer.from_pretrained(folder), name=folder.name)


def _adapters(base: BaseModel) -> dict[str, Adapter | None]:
    generator = torch.Generator().manual_seed(1)
    made: dict[str, Adapter | None] = {"base": None}
    for name, config in KINDS.items():
        if base.kind == "seq2seq" and name == "large":
            config = LoraConfig(rank=16, target_modules=("q", "v"))
        adapter = create_lora(base.model, config, seed=1)
        with torch.no_grad():
            for _, parameter in adapter.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator) * 0.15
                parameter.add_(noise.to(parameter))
        made[name] = adapter
    place = "decoder" if base.kind == "causal" else "encoder"
    rows = torch.randn(5, base.hidden_size, generator=generator).to(base.dtype)
    made["prompt"] = SoftPrompt(rows, kind=base.kind, places=(place,))
    return made


def _expected(base: BaseModel, adapter: LoraAdapter | None, text: str) -> list[int]:
    """transformers' own ``generate`` on the tuned network."""
    model = base.model
    if adapter is not None:
        model = adapter.to(device=base.device, dtype=base.dtype).tuned_model(model)
    ids = base.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )[0].tolist()
    return out[ids.shape[1] :] if base.kind == "causal" else out[1:]


def _request(base: BaseModel, adapter: Adapter | None, text: str) -> GenerationRequest:
    ids = tuple(base.tokenizer(text)["input_ids"])
    return GenerationRequest(input_ids=ids, sampling=SAMPLING, adapter=adapter)


def _tokens(engine: Engine, request: GenerationRequest) -> list[int]:
    return [token.token_id for chunk in engine.submit(request) for token in chunk.tokens]


async def _tokens_async(engine: Engine, request: GenerationRequest) -> list[int]:
    return [token.token_id async for chunk in engine.submit(request) for token in chunk.tokens]


@pytest.mark.parametrize("name", ["tiny-causal", "tiny-seq2seq"])
@pytest.mark.parametrize(
    ("make_engine", "dtype"),
    [
        (PlainEngine, torch.float32),
        (PlainEngine, torch.bfloat16),
        # In half precision another order of sums is another number, and decides between tokens.
        (BatchedEngine, torch.float32),
    ],
)
async def test_each_row_gets_what_it_gets_alone(
    make_engine: type[Engine], name: str, dtype: torch.dtype, tiny_base_models_dir: Path
) -> None:
    base = _base(tiny_base_models_dir / name, dtype)
    adapters = _adapters(base)
    before = {key: tensor.clone() for key, tensor in base.model.state_dict().items()}
    engine = make_engine(base)  # type: ignore[call-arg]
    try:
        alone = {
            (key, text): _tokens(engine, _request(base, adapter, text))
            for key, adapter in adapters.items()
            for text in TEXTS
        }
        for (key, text), tokens in alone.items():
            if key != "prompt":
                adapter = adapters[key]
                assert adapter is None or isinstance(adapter, LoraAdapter)
                assert tokens == _expected(base, adapter, text), (key, text)
        for key in adapters.keys() - {"base"}:
            assert any(alone[key, text] != alone["base", text] for text in TEXTS), key

        rows = [*alone, *reversed(list(alone))]
        together = await asyncio.gather(
            *(_tokens_async(engine, _request(base, adapters[key], text)) for key, text in rows)
        )
        for (key, text), tokens in zip(rows, together, strict=True):
            assert tokens == alone[key, text], (key, text)
    finally:
        engine.close()
    assert all(torch.equal(before[key], t) for key, t in base.model.state_dict().items())


def test_an_adapter_that_is_tuned_again_is_served_as_it_is_now(tiny_causal_dir: Path) -> None:
    base = _base(tiny_causal_dir, torch.bfloat16)
    adapter = _adapters(base)["dora"]
    assert isinstance(adapter, LoraAdapter)
    engine = PlainEngine(base)
    try:
        for _ in range(2):
            request = _request(base, adapter, TEXTS[0])
            assert _tokens(engine, request) == _expected(base, adapter, TEXTS[0])
            first = _tokens(engine, request)
            with torch.no_grad():
                for _, parameter in adapter.named_parameters():
                    parameter.mul_(1.7)
        assert _tokens(engine, _request(base, adapter, TEXTS[0])) != first
    finally:
        engine.close()
