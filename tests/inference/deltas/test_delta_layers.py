"""Rows with LoRAs in one batch, beside PEFT's answers for each alone."""

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
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from luthier.adapters.base import Adapter
from luthier.adapters.lora.building import create_lora
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.storage import save_adapter
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import GenerationChunk, GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.deltas import delta_kernel, delta_steps
from luthier.inference.deltas.delta_layers import DeltaLayers
from luthier.inference.deltas.layer_changes import changes_of
from luthier.inference.linear.int8_weights import multiplies_int8
from luthier.inference.options import EngineOptions
from luthier.resources.base_model import BaseModel
from tests.fixtures.lora_models import disturb, make_bloom, make_gpt2, make_llama, make_t5

CONFIGS: dict[str, LoraConfig] = {
    "lora_qv": LoraConfig(rank=4, target_modules=("q_proj", "v_proj")),
    "lora_all": LoraConfig(rank=16),
    "rslora": LoraConfig(rank=7, use_rslora=True),
    "dora": LoraConfig(rank=3, use_dora=True),
    "dora_mlp": LoraConfig(rank=5, use_dora=True, target_modules=("gate_proj", "down_proj")),
    "patterns": LoraConfig(rank=2, rank_pattern={"v_proj": 9}, alpha_pattern={"q_proj": 3.0}),
    "one_layer": LoraConfig(rank=64, target_modules=("o_proj",), layers_to_transform=(1,)),
    "pissa": LoraConfig(rank=2, initialisation="pissa"),
    "own_head": LoraConfig(rank=4, modules_to_save=("lm_head",)),
    "own_embeddings": LoraConfig(rank=2, modules_to_save=("embed_tokens", "lm_head")),
    "own_norms": LoraConfig(rank=4, unfreeze_layers=("norm",)),
    "own_layer": LoraConfig(rank=3, use_dora=True, modules_to_save=("layers.1.mlp.up_proj",)),
    "own_attention": LoraConfig(rank=4, modules_to_save=("layers.0.self_attn", "model.norm")),
    "own_block": LoraConfig(rank=4, modules_to_save=("model.layers.1",)),
    "own_tokens": LoraConfig(rank=4, trainable_token_indices=tuple(range(5, 200, 3))),
    "head": LoraConfig(rank=4, target_modules=("q_proj", "lm_head")),
    "dora_head": LoraConfig(rank=2, use_dora=True, target_modules=("v_proj", "lm_head")),
}
#: Adapters whose factors lose nothing in 16 bits.
NARROW = {"lora_all": torch.bfloat16, "lora_qv": torch.float16}
#: 640 tokens of the tiny model's keys and values: rows are moved and preempted.
SMALL = EngineOptions(max_running=6, max_kv_bytes=640 * 256, max_step_tokens=40)


@pytest.fixture(scope="module")
def loras(causal_base: BaseModel) -> dict[str, LoraAdapter]:
    made = {}
    for seed, (name, config) in enumerate(CONFIGS.items()):
        made[name] = create_lora(causal_base.model, config, seed=seed)
        disturb(made[name], seed=seed, by=0.1)
    for name, dtype in NARROW.items():
        for factors in made[name].factors.values():
            for tensor in (factors.lora_a, factors.lora_b):
                tensor.data = tensor.data.to(dtype).float()
    return made


@pytest.fixture(scope="module")
def peft_models(
    causal_base: BaseModel,
    loras: dict[str, LoraAdapter],
    tiny_causal_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Each adapter loaded by PEFT on a model of its own; "" is the bare base."""
    models: dict[str, Any] = {"": AutoModelForCausalLM.from_pretrained(tiny_causal_dir).eval()}
    for name, adapter in loras.items():
        folder = tmp_path_factory.mktemp("peft") / name
        save_adapter(adapter, folder, base_model_name=causal_base.name)
        base = AutoModelForCausalLM.from_pretrained(tiny_causal_dir)
        models[name] = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    return models


@pytest.fixture
def engine(causal_base: BaseModel) -> Iterator[BatchedEngine]:
    engine = BatchedEngine(causal_base, SMALL)
    yield engine
    engine.close()


def token_ids(chunks: list[GenerationChunk]) -> list[int]:
    return [token.token_id for chunk in chunks for token in chunk.tokens]


def logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    """Of each token but the first, given those before it."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]


@pytest.mark.parametrize(
    ("seed", "min_gathered"), [(0, None), (0, delta_steps.MIN_GATHERED_ADAPTERS), (1, 1)]
)
def test_a_batch_of_any_adapters_gives_each_row_what_peft_gives_it_alone(
    seed: int,
    min_gathered: int | None,
    monkeypatch: pytest.MonkeyPatch,
    causal_base: BaseModel,
    loras: dict[str, LoraAdapter],
    peft_models: dict[str, Any],
) -> None:
    if min_gathered is not None:  # else our kernel, where there is one
        monkeypatch.setattr(delta_steps, "MIN_GATHERED_ADAPTERS", min_gathered)
        monkeypatch.setattr(delta_kernel, "kernel", lambda name, arguments: None)
    engine = BatchedEngine(causal_base, SMALL)
    rng = random.Random(seed)
    names = [*loras, "", *rng.choices([*loras, ""], k=9)]
    rng.shuffle(names)
    streams = []
    for name in names:
        ids = tuple(rng.randrange(5, 400) for _ in range(rng.randint(1, 60)))
        num_new = rng.randint(2, 24)
        sampling = SamplingParams(
            max_new_tokens=num_new, min_new_tokens=num_new, input_tokens=True,
            generated_tokens=True, token_logprobs=True,
        )  # fmt: skip
        streams.append((ids, engine.submit(GenerationRequest(ids, sampling, loras.get(name)))))
    for name, (ids, stream) in zip(names, streams, strict=True):
        chunks = list(stream)
        got = token_ids(chunks)
        expected = peft_models[name].generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False, max_new_tokens=len(got), min_new_tokens=len(got), pad_token_id=0,
        )  # fmt: skip
        assert got == expected[0, len(ids) :].tolist(), name
        reported = [*chunks[0].input_tokens[1:], *(t for chunk in chunks for t in chunk.tokens)]
        theirs = logprobs(peft_models[name], [*ids, *got])
        ours = torch.tensor([token.logprob for token in reported])
        # The last token's is taken before end-of-sequence is forbidden, as the model gives it.
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    engine.close()


def test_loras_run_in_the_batch_and_not_beside_it(
    engine: BatchedEngine, loras: dict[str, LoraAdapter]
) -> None:
    sampling = SamplingParams(max_new_tokens=3)
    for adapter in loras.values():
        list(engine.submit(GenerationRequest((5, 6, 7), sampling, adapter)))
        assert engine.keeps_deltas(adapter)
    assert engine._whole_models is None


@pytest.mark.parametrize("module", ["relative_attention_bias", "SelfAttention"])
def test_what_cannot_share_a_pass_runs_beside_the_batch_and_gives_the_same(
    module: str, seq2seq_base: BaseModel, tiny_seq2seq_dir: Path, tmp_path: Path
) -> None:
    config = LoraConfig(rank=4, target_modules=("wi",), modules_to_save=(module,))
    adapter = create_lora(seq2seq_base.model, config, seed=1)
    disturb(adapter, by=0.1)
    save_adapter(adapter, tmp_path / "adapter", base_model_name="tiny")
    base = AutoModelForSeq2SeqLM.from_pretrained(tiny_seq2seq_dir)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    sampling = SamplingParams(max_new_tokens=8, min_new_tokens=8)
    engine = BatchedEngine(seq2seq_base)
    assert not engine.keeps_deltas(adapter), "positions of rows laid end to end are its own"
    chunks = list(engine.submit(GenerationRequest((5, 6, 7), sampling, adapter)))
    assert engine._whole_models is not None
    engine.close()
    expected = theirs.generate(
        input_ids=torch.tensor([[5, 6, 7]]), attention_mask=torch.ones(1, 3, dtype=torch.long),
        do_sample=False, max_new_tokens=8, min_new_tokens=8,
    )  # fmt: skip
    assert token_ids(chunks) == expected[0, 1:].tolist()


OWN_LAYERS: dict[str, tuple[Callable[[], PreTrainedModel], list[dict[str, Any]]]] = {
    "gpt2": (
        make_gpt2,
        [{"modules_to_save": ("wte", "wpe")}, {"modules_to_save": ("mlp.c_fc", "ln_1", "lm_head")}],
    ),
    "bloom": (
        make_bloom,
        [{"modules_to_save": ("word_embeddings", "ln_f")}, {"modules_to_save": ("h.1.mlp",)}],
    ),
    "llama, tied": (
        lambda: make_llama(tie_word_embeddings=True),
        [
            {"unfreeze_layers": ("embed_tokens",)},
            {"modules_to_save": ("lm_head", "k_proj")},
            {"trainable_token_indices": tuple(range(5, 55, 2))},
        ],
    ),
    "t5": (
        make_t5,
        [
            {"modules_to_save": ("lm_head", "layer_norm")},
            {"modules_to_save": ("EncDecAttention",)},
            {"target_modules": ("q", "lm_head")},
        ],
    ),
}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("family", OWN_LAYERS)
def test_layers_of_an_adapters_own_give_in_the_batch_what_peft_gives(
    family: str, causal_base: BaseModel, tmp_path: Path
) -> None:
    make, configs = OWN_LAYERS[family]
    base = BaseModel.from_memory(make(), causal_base.tokenizer, name="tiny")
    engine = BatchedEngine(base, SMALL)
    adapters: list[LoraAdapter | None] = [None]
    references: list[Any] = [make()]
    for seed, config in enumerate([{}, *configs]):
        adapter = create_lora(base.model, LoraConfig(rank=2, **config), seed=seed)
        disturb(adapter, seed=seed, by=0.2)
        folder = tmp_path / str(seed)
        save_adapter(adapter, folder, base_model_name="tiny")
        adapters.append(adapter)
        references.append(peft.PeftModel.from_pretrained(make(), str(folder)).eval())
        assert engine.keeps_deltas(adapter)
    ids = [tuple((7 * n + 11 * i) % 50 + 5 for i in range(3 + 4 * n)) for n in range(8)]
    sampling = SamplingParams(max_new_tokens=7, min_new_tokens=7)
    streams = [
        engine.submit(GenerationRequest(each, sampling, adapters[n % len(adapters)]))
        for n, each in enumerate(ids)
    ]
    answers = [token_ids(list(stream)) for stream in streams]
    assert engine._whole_models is None
    engine.close()
    for n, each in enumerate(ids):
        expected = references[n % len(adapters)].generate(
            input_ids=torch.tensor([each]),
            attention_mask=torch.ones(1, len(each), dtype=torch.long),
            do_sample=False, max_new_tokens=7, min_new_tokens=7, pad_token_id=0,
        )[0, -7:]  # fmt: skip
        assert answers[n] == expected.tolist(), n % len(adapters)


@pytest.mark.skipif(not multiplies_int8(), reason="this CPU has no quick int8 products")
def test_layers_of_an_adapters_own_stay_float_beside_int8_weights(
    causal_base: BaseModel, loras: dict[str, LoraAdapter], peft_models: dict[str, Any]
) -> None:
    engine = BatchedEngine(causal_base, EngineOptions(weights="int8"))
    sampling = SamplingParams(max_new_tokens=1, generated_tokens=True, token_logprobs=True)
    ids = (5, 6, 7, 8)
    names = [name for name in loras if name.startswith("own_")]
    streams = [engine.submit(GenerationRequest(ids, sampling, loras[name])) for name in names]
    for name, stream in zip(names, streams, strict=True):
        ((token,),) = [chunk.tokens for chunk in stream if chunk.tokens]
        theirs = logprobs(peft_models[name], [*ids, token.token_id])[-1]
        assert token.logprob == pytest.approx(float(theirs), abs=0.3), name
    assert engine._whole_models is None
    engine.close()


def test_an_adapter_that_changed_in_place_is_another_adapter(
    engine: BatchedEngine, causal_base: BaseModel
) -> None:
    adapter: Adapter = create_lora(causal_base.model, LoraConfig(rank=8), seed=3)
    request = GenerationRequest((5, 6, 7), SamplingParams(max_new_tokens=8), adapter)
    before = token_ids(list(engine.submit(request)))
    disturb(adapter, by=0.3)  # type: ignore[arg-type]
    after = token_ids(list(engine.submit(request)))
    bare = token_ids(list(engine.submit(GenerationRequest((5, 6, 7), request.sampling))))
    assert before == bare, "an adapter that has learned nothing changes nothing"
    assert after != before


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_every_linear_layer_takes_deltas_and_every_layer_may_be_an_adapters_own(make: Any) -> None:
    model = make()
    adapter = create_lora(model, LoraConfig(rank=2), seed=0)
    layers = DeltaLayers(model)
    with torch.no_grad(), layers.watching(6):
        model(input_ids=torch.arange(6)[None] + 3)
    assert layers.tables.takes(adapter.delta_layers())
    assert layers.tables.takes(frozenset({"lm_head"}))
    with_tensors = {name.rpartition(".")[0] for name, _ in make().named_parameters()}
    assert layers.tables.takes(frozenset(), frozenset(with_tensors))
    assert not layers.tables.takes(frozenset(with_tensors)), "norms and embeddings have no deltas"


def test_layers_in_another_precision_take_no_deltas() -> None:
    model = make_llama()
    odd = model.get_submodule("model.layers.0.self_attn.q_proj")
    weight = odd.weight

    class Quantised(torch.nn.Parameter):
        """As bitsandbytes keeps its weights."""

    odd.weight = Quantised(weight.detach(), requires_grad=False)
    layers = DeltaLayers(model)
    with torch.no_grad(), layers.watching(6):
        model(input_ids=torch.arange(6)[None] + 3)
    assert not layers.tables.takes(frozenset({"model.layers.0.self_attn.q_proj"}))
    assert layers.tables.takes(frozenset({"model.layers.0.self_attn.k_proj"}))


def test_layers_that_see_only_some_tokens_take_no_deltas() -> None:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    model = MixtralForCausalLM(config).eval()
    linears = {p for p, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    layers = DeltaLayers(model)
    with torch.no_grad(), layers.watching(6):
        model(input_ids=torch.arange(6)[None] + 3)
    taken = {path for path in linears if layers.tables.takes(frozenset({path}))}
    assert taken == {path for path in linears if "self_attn" in path} | {"lm_head"}
    own = {
        path
        for path, _ in model.named_modules()
        if layers.tables.takes(frozenset(), frozenset({path}))
    }
    assert own - taken == {
        "model.embed_tokens",
        "model.norm",
        "model.layers.0.input_layernorm",
        "model.layers.0.post_attention_layernorm",
    }, "neither the experts nor what chooses between them"


def test_what_is_done_to_lone_rows_is_done_to_tokens_of_any_shape() -> None:
    """The reference is the adapter's own network."""
    config = LoraConfig(
        rank=3,
        use_dora=True,
        layers_to_transform=(1,),
        modules_to_save=("layers.1.mlp.down_proj", "layers.1.input_layernorm"),
    )
    model, network = make_llama(), make_llama()
    adapter = create_lora(model, config, seed=1)
    disturb(adapter, seed=1, by=0.1)
    ids = torch.arange(5, 17).view(3, 4)
    layers = DeltaLayers(network)
    with torch.no_grad():
        before = network(input_ids=ids).logits
        with layers.watching_lone(network.model.layers[1]) as found:
            network(input_ids=ids[:1, :1])
        assert all(path.startswith("model.layers.1.") for path in found)
        changes = changes_of(adapter)
        assert layers.tables.takes(frozenset(changes.deltas), frozenset(changes.modules))
        layers.tables.place("a", changes)
        with layers.adding_to_all("a", found):
            got = network(input_ids=ids).logits
        torch.testing.assert_close(got, adapter.tuned_model(model)(input_ids=ids).logits)
        assert not torch.allclose(got, before)
        with layers.adding_to_all("a", ()), layers.adding_to_all("unknown", found):
            assert torch.equal(network(input_ids=ids).logits, before)
