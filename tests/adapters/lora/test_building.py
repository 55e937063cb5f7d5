"""Folders to and from plain PEFT, and what no folder may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from fixtures.lora_models import (
    FAMILIES,
    disturb,
    make_inputs,
    make_llama,
    make_t5,
    with_peft,
)
from fixtures.tiny_models import make_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedModel

from luthier.adapters.lora.building import create_lora, read_lora
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.data_model.options.lora import LoraConfig, LoraLimits
from luthier.errors import ArtifactError, InvalidInputError, LuthierError, NotSupportedError
from luthier.resources.base_model import BaseModel

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora dora": {"use_rslora": True, "use_dora": True},
    "pissa": {"initialisation": "pissa"},
    "pissa rslora patterns": {
        "initialisation": "pissa_niter_4",
        "use_rslora": True,
        "rank_pattern": {r"0\..*": 2},
        "alpha_pattern": {r"1\..*": 5},
    },
    "olora dora": {"initialisation": "olora", "use_dora": True},
    "mica": {"initialisation": "mica"},
    "head": {"modules_to_save": ("lm_head",)},
    "unfrozen": {"unfreeze_layers": ("1",)},
    "one block": {"layers_to_transform": (1,)},
}


def _states(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, load_file(folder / "adapter_model.safetensors")


def _saved(
    folder: Path, adapter: LoraAdapter, **changes: Any
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    save_adapter(adapter, folder, base_model_name="tiny")
    config, state = _states(folder)
    return {**config, **changes}, state


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
def test_plain_peft_loads_our_folder_and_we_load_it_again(
    family: str, kind: str, tmp_path: Path
) -> None:
    model = FAMILIES[family]().double()
    adapter = create_lora(
        model, LoraConfig.from_mapping({"rank": 4, "alpha": 6, **KINDS[kind]}), seed=3
    )
    disturb(adapter)
    config, state = _saved(tmp_path / "adapter", adapter)
    inputs = make_inputs(model)
    with torch.no_grad():
        expected = adapter.tuned_model(model)(**inputs).logits
        theirs = peft.PeftModel.from_pretrained(
            FAMILIES[family]().double(), tmp_path / "adapter"
        ).eval()
        again = read_lora(config, state, model)
        plain = model(**inputs).logits
        assert (expected - plain).abs().max() > 0.03
        torch.testing.assert_close(theirs(**inputs).logits, expected, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(
            again.tuned_model(model)(**inputs).logits, expected, atol=1e-9, rtol=1e-9
        )


THEIR_KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True, "use_rslora": True},
    "names": {
        "target_modules": ["q_proj", "layers.1.mlp.down_proj"],
        "exclude_modules": ["layers.0.self_attn.q_proj"],
    },
    "regex": {"target_modules": r".*\.(q|v)_proj"},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.0\..*": 3}},
    "blocks": {
        "target_modules": ["q_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
    },
    "modules": {"modules_to_save": ["lm_head", "norm"]},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "mica": {"init_lora_weights": "mica"},
}


@pytest.mark.parametrize("kind", THEIR_KINDS)
def test_a_folder_of_peft_gives_the_same_logits_here(kind: str, tmp_path: Path) -> None:
    # PEFT decomposes weights of at most fp32.
    dtype = torch.float32 if kind in ("pissa", "olora", "mica") else torch.float64
    theirs = with_peft(make_llama().to(dtype), seed=3, r=4, lora_alpha=6, **THEIR_KINDS[kind])
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    theirs.save_pretrained(tmp_path)
    model = make_llama().to(dtype)
    adapter = read_lora(*_states(tmp_path), model)
    inputs = make_inputs(model)
    with torch.no_grad():
        result = adapter.tuned_model(model)(**inputs).logits
        torch.testing.assert_close(result, theirs(**inputs).logits, atol=2e-5, rtol=1e-6)


def test_storage_gives_a_lora_back(tmp_path: Path, tiny_causal_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_dir)
    base_model = BaseModel.from_memory(make_llama(), tokenizer, name="tiny")
    adapter = create_lora(base_model.model, LoraConfig(rank=2, use_dora=True), seed=1)
    save_adapter(adapter, tmp_path / "adapter", base_model_name="/somewhere/tiny")
    loaded = load_adapter(tmp_path / "adapter", base_model=base_model)
    assert isinstance(loaded, LoraAdapter)
    assert loaded.content_hash() == adapter.content_hash()
    assert "somewhere" not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    with pytest.raises(ArtifactError, match=r"'broken'.*NaN"):
        _damage(tmp_path / "adapter", tmp_path / "broken", base_model)


def _damage(good: Path, broken: Path, base_model: BaseModel) -> None:
    broken.mkdir()
    config, state = _states(good)
    name = next(iter(state))
    state[name] = torch.full_like(state[name], torch.nan)
    save_file(state, broken / "adapter_model.safetensors")
    (broken / "adapter_config.json").write_text(json.dumps(config))
    load_adapter(broken, base_model=base_model)


def test_the_same_seed_gives_the_same_adapter_and_another_one_another() -> None:
    model = make_llama()
    for initialisation in ("default", "pissa_niter_2", "orthogonal"):
        config = LoraConfig(rank=2, initialisation=initialisation)
        hashes = [create_lora(model, config, seed=seed).content_hash() for seed in (1, 1, 2)]
        assert hashes[0] == hashes[1] != hashes[2]


def test_a_tied_embedding_that_is_unfrozen_stays_one_tensor(tmp_path: Path) -> None:
    model = make_llama(tie_word_embeddings=True)
    adapter = create_lora(model, LoraConfig(rank=2, unfreeze_layers=("embed",)), seed=1)
    assert [n for n, _ in adapter.named_parameters() if "lora" not in n] == [
        "model.embed_tokens.weight"
    ]
    tuned = adapter.tuned_model(model)
    assert tuned.get_output_embeddings().weight is tuned.get_input_embeddings().weight
    disturb(adapter)
    config, state = _saved(tmp_path / "adapter", adapter)
    assert config["modules_to_save"] == ["model.embed_tokens", "lm_head"]
    inputs = make_inputs(model)
    with torch.no_grad(), pytest.warns(UserWarning, match="tie_word_embeddings"):
        theirs = peft.PeftModel.from_pretrained(
            make_llama(tie_word_embeddings=True), tmp_path / "adapter"
        )
    again = read_lora(config, state, model)
    with torch.no_grad():
        expected = tuned(**inputs).logits
        torch.testing.assert_close(theirs.eval()(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(again.tuned_model(model)(**inputs).logits, expected)


def test_both_stacks_of_t5_learn_the_same_embeddings() -> None:
    model = make_t5()
    adapter = create_lora(model, LoraConfig(rank=2, modules_to_save=("shared",)), seed=1)
    tuned = adapter.tuned_model(model)
    weights = {id(tuned.get_submodule(p).weight) for p in adapter.saved}
    assert set(adapter.saved) == {"shared", "encoder.embed_tokens", "decoder.embed_tokens"}
    assert len(weights) == 1
    tuned(**make_inputs(model)).loss.backward()
    assert dict(adapter.named_parameters())["shared.weight"].grad is not None


def test_part_of_a_layer_can_be_unfrozen() -> None:
    model = FAMILIES["bloom"]()
    config = LoraConfig(
        rank=2, target_modules=("dense",), unfreeze_layers=("query_key_value.bias",)
    )
    adapter = create_lora(model, config, seed=1)
    learned = [name for name, _ in adapter.named_parameters() if "query" in name]
    assert learned == [f"transformer.h.{n}.self_attention.query_key_value.bias" for n in (0, 1)]
    adapter.tuned_model(model)(**make_inputs(model)).loss.backward()
    network = adapter.saved["transformer.h.0.self_attention.query_key_value"].network
    assert network.bias.grad is not None
    assert network.weight.grad is None


Change = tuple[dict[str, Any], dict[str, Any], type[LuthierError], str]
Q = "base_model.model.model.layers.0.self_attn.q_proj"
BAD: dict[str, Change] = {
    "rank of a million": ({"r": 10**6}, {}, ArtifactError, "'rank' must be at most 65536"),
    "rank 0": ({"r": 0}, {}, ArtifactError, "'rank' must be at least 1"),
    "rank as text": ({"r": "8"}, {}, ArtifactError, "'rank' must be int"),
    "another rank": ({"r": 3}, {}, ArtifactError, r"has shape \[2, 24\].*ask for \[3, 24\]"),
    "alpha NaN": ({"lora_alpha": float("nan")}, {}, ArtifactError, "'alpha' must be finite"),
    "huge rank in a pattern": (
        {"rank_pattern": {"q_proj": 10**6}}, {}, ArtifactError, r"rank_pattern\[q_proj\]",
    ),
    "no targets": ({"target_modules": None}, {}, ArtifactError, "'target_modules' is missing"),
    "targets of another model": (
        {"target_modules": ["query"]}, {}, InvalidInputError, "no layer is left.*q_proj",
    ),
    "an endless expression": (
        {"target_modules": r"(.|..)+(?<=x)"}, {}, InvalidInputError, "takes more",
    ),
    "no expression": ({"target_modules": "("}, {}, InvalidInputError, "not a regular expression"),
    "missing tensor": ({}, {f"{Q}.lora_B.weight": None}, ArtifactError, "lacks 1 of 28 tensors"),
    "tensor too many": ({}, {f"{Q}.lora_C.weight": torch.ones(2)}, ArtifactError, "fit no layer"),
    "NaN": ({}, {f"{Q}.lora_A.weight": torch.full((2, 16), torch.nan)}, ArtifactError, "NaN"),
    "infinite": ({}, {f"{Q}.lora_A.weight": torch.full((2, 16), torch.inf)}, ArtifactError, "inf"),
    "integers": (
        {}, {f"{Q}.lora_A.weight": torch.ones(2, 16, dtype=torch.int32)}, ArtifactError, "int32",
    ),
    "biases": ({"bias": "all"}, {}, NotSupportedError, "trains biases"),
    "bias of B": ({"lora_bias": True}, {}, NotSupportedError, "'lora_bias'"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, {}, NotSupportedError, "'alora_invocation_tokens'"),
    "future part": ({"use_zlora": {"x": 1}}, {}, NotSupportedError, "'use_zlora'"),
    "replicated layers": ({"layer_replication": [[0, 1]]}, {}, NotSupportedError, "replication"),
    "lost start": ({"init_lora_weights": "corda"}, {}, NotSupportedError, "corda.*conversion"),
    "other task": ({"task_type": "SEQ_CLS"}, {}, ArtifactError, "SEQ_CLS.*CAUSAL_LM"),
    "other method": ({"peft_type": "LOHA"}, {}, ArtifactError, "LOHA"),
    "missing module": ({"modules_to_save": ["lm_head"]}, {}, ArtifactError, "lm_head.weight"),
}  # fmt: skip


@pytest.mark.parametrize("problem", BAD)
def test_a_folder_that_is_no_lora_for_this_base_is_refused(problem: str, tmp_path: Path) -> None:
    changes, tensors, error, message = BAD[problem]
    model = make_llama()
    adapter = create_lora(model, LoraConfig(rank=2), seed=1)
    config, state = _saved(tmp_path / "adapter", adapter, **changes)
    for name, tensor in tensors.items():
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor
    with pytest.raises(error, match=message):
        read_lora(config, state, model)


def test_an_adapter_of_another_model_is_refused_with_names(tmp_path: Path) -> None:
    model: PreTrainedModel = FAMILIES["bloom"]()
    adapter = create_lora(model, LoraConfig(rank=2, target_modules=("dense",)), seed=1)
    config, state = _saved(tmp_path / "adapter", adapter, target_modules=["q_proj", "dense"])
    with pytest.raises(
        ArtifactError, match=r"none of the adapter's 4 tensors.*transformer.*layers"
    ):
        read_lora(config, state, make_llama())


def test_limits_of_the_server_hold_for_new_and_for_read_adapters(tmp_path: Path) -> None:
    model, limits = make_llama(), LoraLimits(max_rank=4)
    with pytest.raises(InvalidInputError, match="'rank' must be at most 4, got 8"):
        create_lora(model, LoraConfig(rank=8), seed=1, limits=limits)
    config, state = _saved(tmp_path / "adapter", create_lora(model, LoraConfig(rank=8), seed=1))
    with pytest.raises(ArtifactError, match="'rank' must be at most 4, got 8"):
        read_lora(config, state, model, limits=limits)


def test_the_first_pattern_that_fits_counts_after_saving_too(tmp_path: Path) -> None:
    model = make_llama()
    patterns = {"v_proj": 3, "layers.0.self_attn.v_proj": 5}
    config = LoraConfig(rank=2, target_modules=("q_proj", "v_proj"), rank_pattern=patterns)
    adapter = create_lora(model, config, seed=1)
    assert len(adapter.factors["model.layers.0.self_attn.v_proj"].lora_a) == 3
    save_adapter(adapter, tmp_path / "adapter", base_model_name="tiny")
    base = BaseModel.from_memory(model, make_tokenizer(), name="tiny")
    assert load_adapter(tmp_path / "adapter", base_model=base).content_hash() == (
        adapter.content_hash()
    )
