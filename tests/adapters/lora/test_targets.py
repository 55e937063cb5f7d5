"""Which layers are meant: against PEFT's own choice where it has one."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures.lora_models import FAMILIES, make_llama, make_t5, with_peft
from torch import nn

from luthier.adapters.lora.targets import (
    find_targets,
    is_inside,
    pattern_key,
    portable_target_names,
    saved_module_paths,
)
from luthier.data_model.options.lora import LoraConfig
from luthier.errors import InvalidInputError, NotSupportedError


def _paths(model: nn.Module, **options: Any) -> list[str]:
    return list(find_targets(model, LoraConfig.from_mapping(options)))


def _peft_paths(family: str, **config: Any) -> list[str]:
    model = with_peft(FAMILIES[family](), seed=1, **config)
    return list(model.base_model.targeted_module_names)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_is_every_linear_layer_but_the_head_in_the_order_of_peft(family: str) -> None:
    paths = _paths(FAMILIES[family]())
    assert paths == _peft_paths(family)
    assert not any("lm_head" in path for path in paths)


CHOICES: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": ["model.layers.1.mlp.up_proj"]},
    {"target_modules": r"model\.layers\.0\..*_proj"},
    {"target_modules": "all-linear", "exclude_modules": ["mlp.up_proj", "k_proj"]},
    {"target_modules": "all-linear", "exclude_modules": r".*mlp.*"},
    {"target_modules": ["q_proj"], "layers_to_transform": [0]},
    {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": ["layers"]},
    {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["self_attn"]},
    {"target_modules": ["q_proj", "lm_head"]},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_names_mean_what_they_mean_in_peft(choice: dict[str, Any]) -> None:
    assert _paths(make_llama(), **choice) == _peft_paths("llama", **choice)


def test_ranks_and_alphas_come_from_the_first_pattern_that_fits() -> None:
    targets = find_targets(
        make_llama(),
        LoraConfig(
            rank=8,
            alpha=16,
            target_modules=("q_proj", "k_proj"),
            rank_pattern={"layers.0.self_attn.q_proj": 2, "q_proj": 3},
            alpha_pattern={r"1\..*": 5},
        ),
    )
    found = {path[13:].replace("self_attn.", ""): (t.rank, t.alpha) for path, t in targets.items()}
    assert found == {
        "0.q_proj": (2, 16), "0.k_proj": (8, 16), "1.q_proj": (3, 5), "1.k_proj": (8, 5),
    }  # fmt: skip


def test_sizes_of_a_transposed_layer_are_read_the_right_way_round() -> None:
    target = find_targets(FAMILIES["gpt2"](), LoraConfig(target_modules=("c_attn",)))
    first = target["transformer.h.0.attn.c_attn"]
    assert (first.in_features, first.out_features, first.is_transposed) == (16, 48, True)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"target_modules": ["q_prj"]}, InvalidInputError, "'q_prj', did you mean 'q_proj'"),
    ({"target_modules": ["q_proj", "qqq"]}, InvalidInputError, "no layer of the model is called"),
    ({"target_modules": "nothing"}, InvalidInputError, "no layer is left for LoRA.*down_proj"),
    ({"target_modules": []}, InvalidInputError, "no layer is left for LoRA"),
    ({"target_modules": ["self_attn"]}, NotSupportedError, "'model.layers.0.self_attn', a Llama"),
    ({"target_modules": ["embed_tokens"]}, NotSupportedError, "embedding.*modules_to_save"),
    ({"target_modules": "("}, InvalidInputError, "not a regular expression"),
    ({"exclude_modules": ["wrong"]}, InvalidInputError, "'exclude_modules'.*'wrong'"),
    ({"rank_pattern": {"query": 2}}, InvalidInputError, "'rank_pattern': 'query' fits none of"),
    ({"modules_to_save": ["score"]}, InvalidInputError, "'modules_to_save'.*'score'"),
    ({"unfreeze_layers": ["wte"]}, InvalidInputError, "'unfreeze_layers'.*'wte'"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_names_that_mean_nothing_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _paths(make_llama(), **options)


def test_an_expression_that_backtracks_without_end_is_stopped() -> None:
    with pytest.raises(InvalidInputError, match=r"takes more than 0.2 s"):
        pattern_key([r"(.|..)+(?!)"], "x" * 200)


def test_layers_that_are_trained_whole_get_no_delta() -> None:
    model = make_llama()
    config = LoraConfig(unfreeze_layers=("layers.0.mlp", "lm_head"))
    assert set(saved_module_paths(model, config)) == {
        *(f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")), "lm_head",
    }  # fmt: skip
    assert not any(path.startswith("model.layers.0.mlp") for path in find_targets(model, config))


def test_a_part_of_a_whole_module_is_not_named_again() -> None:
    config = LoraConfig(modules_to_save=("layers.0.mlp", "up_proj"))
    assert saved_module_paths(make_llama(), config) == (
        "model.layers.0.mlp",
        "model.layers.1.mlp.up_proj",
    )


def test_written_names_are_short_where_they_can_be_and_whole_where_they_must() -> None:
    t5 = make_t5()
    config = LoraConfig()
    assert portable_target_names(t5, config, find_targets(t5, config)) == [
        "k", "o", "q", "v", "wi", "wo",
    ]  # fmt: skip
    llama = make_llama()
    # A layer that is no head, and shares the head's last name, would be found by it too.
    llama.model.layers[0].lm_head = nn.Linear(4, 4)
    names = portable_target_names(llama, config, find_targets(llama, config))
    assert "model.layers.0.lm_head" in names
    assert len(names) == 15


def test_inside_is_by_whole_parts_of_a_path() -> None:
    assert is_inside("model.layers.0.mlp.up_proj", ["mlp"])
    assert is_inside("lm_head", ["lm_head"])
    assert not is_inside("model.mlp2.up_proj", ["mlp"])
