"""The merged copy of the adapter that all rows use: what it holds, and when it is used."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)

from luthier.adapters.lora.building import create_lora
from luthier.adapters.lora.layers import oriented_weight
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.storage import save_adapter
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import GenerationRequest, TokenStream
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.deltas import merged_adapter
from luthier.inference.deltas.delta_steps import AdapterSpan
from luthier.inference.deltas.delta_tables import DeltaTables
from luthier.inference.deltas.layer_changes import changes_of
from luthier.inference.deltas.merged_adapter import HotAdapter, MergeOptions
from luthier.inference.options import EngineOptions
from luthier.resources.base_model import BaseModel
from tests.fixtures.lora_models import disturb, make_gpt2, make_llama

CONFIGS: dict[str, LoraConfig] = {
    "lora_qv": LoraConfig(rank=4, target_modules=("q_proj", "v_proj")),
    "lora_all": LoraConfig(rank=6),
    "rslora": LoraConfig(rank=7, use_rslora=True),
    "dora": LoraConfig(rank=3, use_dora=True),
    "pissa": LoraConfig(rank=2, initialisation="pissa"),
    "own_layers": LoraConfig(rank=2, modules_to_save=("norm", "lm_head", "up_proj")),
}
MANY_BYTES = 2**24


class Side:
    """Some adapters in the tables of a network, and what merges them."""

    def __init__(
        self, model: PreTrainedModel, adapters: dict[str, LoraAdapter], options: MergeOptions
    ) -> None:
        paths = set().union(*(each.delta_layers() for each in adapters.values()))
        self.layers = {path: model.get_submodule(path) for path in paths}
        weight = model.get_input_embeddings().weight
        self.tables = DeltaTables(self.layers, dtype=weight.dtype, device=weight.device)
        for key, adapter in adapters.items():
            self.tables.place(key, changes_of(adapter))
        self.hot = HotAdapter(self.layers, self.tables, options)

    def passes(self, *keys: str) -> list[bool]:
        """Whether each pass ran on merged weights; "" is the bare base, "x+y" are rows of two."""
        used = []
        for key in keys:
            spans = [AdapterSpan(each, 2, False) for each in key.split("+") if each]
            used.append(self.hot.layers_for(spans, 4 if "+" in key else 2) is not None)
            if self.hot._thread is not None:
                self.hot._thread.join()
        return used


def lora_for(model: PreTrainedModel, config: LoraConfig, *, seed: int = 0) -> LoraAdapter:
    adapter = create_lora(model, config, seed=seed)
    disturb(adapter, seed=seed, by=0.1)
    return adapter


@pytest.fixture
def pair() -> Callable[..., Side]:
    def make(*, after_steps: int = 3, max_bytes: int = MANY_BYTES, dtype: Any = None) -> Side:
        model = make_llama().to(dtype or torch.float32)
        config = LoraConfig(rank=2)
        adapters = {key: lora_for(model, config, seed=ord(key)) for key in "xy"}
        return Side(model, adapters, MergeOptions(after_steps, max_bytes))

    return make


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "own_layers"])
def test_merged_weights_are_those_of_peft(
    name: str, make: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    config = CONFIGS[name]
    if make is make_gpt2 and config.target_modules is not None:
        config = LoraConfig(rank=4, target_modules=("c_attn", "c_proj"))
    torch.manual_seed(0)
    model = make()
    adapter = lora_for(model, config)
    side = Side(model, {"x": adapter}, MergeOptions(1, MANY_BYTES))
    assert side.passes("x", "x") == [False, True]
    merged = side.hot.layers_for([AdapterSpan("x", 2, False)], 2)
    assert merged is not None and merged.keys() == adapter.delta_layers()
    before = {path: oriented_weight(layer).clone() for path, layer in side.layers.items()}
    save_adapter(adapter, tmp_path / "adapter", base_model_name="tiny")
    theirs = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter")).merge_and_unload()
    for path, each in merged.items():
        expected = oriented_weight(theirs.get_submodule(path))
        assert not torch.equal(expected, before[path])
        torch.testing.assert_close(oriented_weight(each.layer), expected, atol=1e-6, rtol=1e-5)
        x = torch.randn(1, 5, expected.shape[1])
        with torch.no_grad():
            bias = theirs.get_submodule(path).bias
            wanted = torch.nn.functional.linear(x, expected, bias)
            torch.testing.assert_close(each.layer(x), wanted, atol=1e-5, rtol=1e-4)


def test_an_adapter_is_merged_once_it_had_enough_passes_in_a_row(pair: Any) -> None:
    side = pair(after_steps=3)
    assert side.passes("x", "x", "x+y", "x", "x", "", "x", "x", "x") == [False] * 9
    assert side.passes("x", "x") == [True, True]


def test_a_pass_with_another_row_runs_unmerged_and_keeps_the_copy(pair: Any) -> None:
    side = pair(after_steps=2)
    side.passes("x", "x")
    assert side.passes("x", "x+y", "x", "", "x", "y", "x") == [i % 2 == 0 for i in range(7)]


def test_what_others_use_for_as_long_is_dropped_and_replaced(pair: Any) -> None:
    side = pair(after_steps=2)
    assert side.passes("x", "x", "x", "y", "y", "y", "x") == [
        False, False, True, False, False, True, False,
    ]  # fmt: skip
    side.passes("", "")
    assert side.hot._merged is None


def test_an_adapter_that_was_dropped_takes_its_merged_copy_along(pair: Any) -> None:
    side = pair(after_steps=5)
    side.passes(*"xxxxx")
    assert side.hot._merged is not None
    side.tables.remove("x")
    side.passes("y")
    assert side.hot._merged is None


@pytest.mark.parametrize(
    "limits",
    [{"max_bytes": 1000}, {"after_steps": 0}, {"dtype": torch.bfloat16}],
    ids=["too_large", "never", "16_bits"],
)
def test_what_may_not_be_merged_is_added(limits: dict[str, Any], pair: Any) -> None:
    side = pair(**limits)
    assert side.passes(*"xxxxxx") == [False] * 6
    assert side.hot._thread is None


def test_layers_that_do_not_multiply_by_their_weight_are_not_merged() -> None:
    class Odd(torch.nn.Linear):
        """As one that multiplies by numbers of fewer bits."""

    model = make_llama()
    adapter = lora_for(model, LoraConfig(rank=2))
    path = min(adapter.delta_layers())
    num_outputs, num_inputs = oriented_weight(model.get_submodule(path)).shape
    odd = Odd(num_inputs, num_outputs, bias=False)
    model.set_submodule(path, odd)
    side = Side(model, {"x": adapter}, MergeOptions(1, MANY_BYTES))
    assert side.passes("x", "x") == [False, False]


def test_rows_that_were_replaced_while_they_were_read_are_not_used(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = pair(after_steps=1)
    merge = merged_adapter._merged

    def slow(*arguments: Any) -> Any:
        side.tables.remove("x")
        return merge(*arguments)

    monkeypatch.setattr(merged_adapter, "_merged", slow)
    side.passes("x")
    assert side.hot._merged is None


def test_an_adapter_whose_merging_failed_is_added_and_not_tried_again(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fail(*_: Any) -> None:
        tried.append(1)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(merged_adapter, "_merged", fail)
    assert pair(after_steps=1).passes("x", "x", "x") == [False] * 3
    assert tried == [1]


def network(folder: Path) -> Any:
    """In float64, so that no two tokens are as near as rounding."""
    return AutoModelForCausalLM.from_pretrained(folder).double().eval()


@pytest.fixture(scope="module")
def exact_base(tiny_causal_dir: Path) -> BaseModel:
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_dir)
    return BaseModel.from_memory(network(tiny_causal_dir), tokenizer, name="tiny")


@pytest.fixture(scope="module")
def loras(exact_base: BaseModel) -> dict[str, LoraAdapter]:
    return {
        name: lora_for(exact_base.model, config, seed=seed)
        for seed, (name, config) in enumerate(CONFIGS.items())
    }


@pytest.fixture(scope="module")
def merged_models(
    exact_base: BaseModel,
    loras: dict[str, LoraAdapter],
    tiny_causal_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Each adapter merged by PEFT into a model of its own; "" is the bare base."""
    models: dict[str, Any] = {"": network(tiny_causal_dir)}
    for name, adapter in loras.items():
        folder = tmp_path_factory.mktemp("peft") / name
        save_adapter(adapter, folder, base_model_name=exact_base.name)
        base = network(tiny_causal_dir)
        models[name] = peft.PeftModel.from_pretrained(base, str(folder)).merge_and_unload().eval()
    return models


@pytest.fixture
def engine(exact_base: BaseModel) -> Iterator[BatchedEngine]:
    engine = BatchedEngine(exact_base, EngineOptions(max_running=6, merge_after_steps=3))
    yield engine
    engine.close()


@pytest.mark.parametrize("name", [*CONFIGS])
def test_one_sided_and_mixed_traffic_in_turns_gives_what_peft_merged_gives(
    name: str,
    engine: BatchedEngine,
    loras: dict[str, LoraAdapter],
    merged_models: dict[str, Any],
) -> None:
    rng = random.Random(name)
    hot = engine._runner._delta_layers._hot  # type: ignore[attr-defined]
    for phase in ("one", "one", "mixed", "one", "one", "mixed"):
        others = [name] if phase == "one" else [*loras, ""]
        names = [name, *rng.choices(others, k=rng.randint(1, 4))]
        asked = [ask(engine, rng, each, loras, longest=24) for each in names]
        for each, ids, stream in asked:
            got = [token.token_id for chunk in stream for token in chunk.tokens]
            expected = merged_models[each].generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False, max_new_tokens=len(got), min_new_tokens=len(got), pad_token_id=0,
            )  # fmt: skip
            assert got == expected[0, len(ids) :].tolist(), (phase, each)
        if hot._thread is not None:
            hot._thread.join()
        assert phase == "mixed" or hot._merged is not None


def ask(
    engine: BatchedEngine,
    rng: random.Random,
    name: str,
    loras: dict[str, LoraAdapter],
    *,
    longest: int,
) -> tuple[str, tuple[int, ...], TokenStream]:
    ids = tuple(rng.randrange(5, 400) for _ in range(rng.randint(1, 40)))
    num_new = rng.randint(8, longest)
    sampling = SamplingParams(max_new_tokens=num_new, min_new_tokens=num_new)
    return name, ids, engine.submit(GenerationRequest(ids, sampling, loras.get(name)))


def test_encoder_and_decoder_run_on_merged_weights_too(
    seq2seq_base: BaseModel, tiny_seq2seq_dir: Path
) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_seq2seq_dir).double().eval()
    base = BaseModel.from_memory(model, seq2seq_base.tokenizer, name="tiny-seq2seq")
    adapter = lora_for(model, LoraConfig(rank=4))
    sampling = SamplingParams(max_new_tokens=12, min_new_tokens=12)
    requests = [GenerationRequest((5 + i, 6, 7), sampling, adapter) for i in range(3)]
    answers = {}
    for after_steps in (0, 1):
        engine = BatchedEngine(base, EngineOptions(merge_after_steps=after_steps))
        hot = engine._runner._delta_layers._hot  # type: ignore[attr-defined]
        for _ in range(2):
            streams = [engine.submit(each) for each in requests]
            tokens = [[t.token_id for chunk in s for t in chunk.tokens] for s in streams]
            if hot._thread is not None:
                hot._thread.join()
        assert (hot._merged is not None) == bool(after_steps)
        answers[after_steps] = tokens
        engine.close()
    bare = model.generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=12, min_new_tokens=12, do_sample=False
    )
    assert answers[1] == answers[0]
    assert answers[1][0] != bare[0, 1:].tolist()
