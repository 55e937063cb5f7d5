from __future__ import annotations

from typing import Any

import pytest

from luthier.data_model.options.lora import LoraConfig, LoraLimits
from luthier.errors import InvalidInputError, UnknownKeyError


def test_the_defaults_are_valid() -> None:
    LoraConfig().validate(LoraLimits())


def test_names_of_peft_and_h2o_are_understood() -> None:
    peft = {
        "r": 4, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q"],
        "init_lora_weights": True, "exclude_modules": None,
    }  # fmt: skip
    assert LoraConfig.from_mapping(peft) == LoraConfig(
        rank=4, alpha=32, dropout=0.1, target_modules=("q",)
    )
    h2o = {"lora_r": 4, "lora_unfreeze_layers": ["head"], "use_dora": True}
    assert LoraConfig.from_mapping(h2o) == LoraConfig(
        rank=4, unfreeze_layers=("head",), use_dora=True
    )
    assert LoraConfig.from_mapping({"target_modules": "all-linear"}) == LoraConfig()
    assert LoraConfig.from_mapping({"init_lora_weights": False}).initialisation == "random"
    assert LoraConfig.from_mapping({"target_modules": {"b", "a"}}).target_modules == ("a", "b")


def test_an_unknown_or_doubled_name_is_refused() -> None:
    with pytest.raises(UnknownKeyError, match="'lora_dropuot', did you mean 'lora_dropout'"):
        LoraConfig.from_mapping({"lora_dropuot": 0.1})
    with pytest.raises(InvalidInputError, match="'rank' and 'r' are the same option"):
        LoraConfig.from_mapping({"r": 4, "rank": 4})


BAD: list[tuple[dict[str, Any], str]] = [
    ({"rank": 0}, "'rank' must be at least 1, got 0"),
    ({"rank": 10**6}, "'rank' must be at most 65536, got 1000000"),
    ({"rank": True}, "'rank' must be int"),
    ({"rank": 10**400}, "'rank' must be at most 65536, got a number of about 10"),
    ({"alpha": 0}, "'alpha' must be greater than 0"),
    ({"alpha": float("nan")}, "'alpha' must be finite"),
    ({"alpha": -4}, "'alpha' must be greater than 0"),
    ({"dropout": 1.0}, "'dropout' must be at most 0.99"),
    ({"dropout": -0.1}, "'dropout' must be at least 0"),
    ({"use_dora": 1}, "'use_dora' must be true or false"),
    ({"target_modules": ""}, "'target_modules' must not be empty"),
    ({"target_modules": 3}, "'target_modules' must be a list of names"),
    ({"target_modules": [""]}, r"'target_modules\[0\]' must not be empty"),
    ({"target_modules": ["a", 1]}, r"'target_modules\[1\]' must be a string"),
    ({"target_modules": "x" * 1001}, "'target_modules' has 1001 characters, at most 1000"),
    ({"exclude_modules": ["x" * 1001]}, r"'exclude_modules\[0\]' has 1001 characters"),
    ({"modules_to_save": ["a"] * 10_001}, "has 10001 entries, at most 10000"),
    ({"layers_to_transform": []}, "at least one block number"),
    ({"layers_to_transform": [-1]}, "'layers_to_transform' must be at least 0"),
    ({"layers_to_transform": [1], "target_modules": ".*"}, "needs 'target_modules' to be a list"),
    ({"layers_pattern": ["layers"]}, "'layers_pattern' needs 'layers_to_transform'"),
    ({"rank_pattern": {"a": 0}}, r"'rank_pattern\[a\]' must be at least 1"),
    ({"rank_pattern": {"a": 10**6}}, r"'rank_pattern\[a\]' must be at most 65536"),
    ({"rank_pattern": [1]}, "'rank_pattern' must map names to numbers"),
    ({"alpha_pattern": {"a": float("inf")}}, r"'alpha_pattern\[a\]' must be finite"),
    ({"initialisation": "gausian"}, "did you mean 'gaussian'"),
    ({"initialisation": "pissa_niter_1000"}, "'initialisation' must be one of"),
    ({"lora_plus_ratio": 0}, "'lora_plus_ratio' must be greater than 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_values_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        LoraConfig.from_mapping(options).validate(LoraLimits())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("start_batches", 0),
        ("eva_rho", 0.5),
        ("corda_method", "xpm"),
        ("lora_ga_direction", "ArBrr"),
        ("lora_ga_scale", "big"),
        ("lora_ga_gamma", 0),
    ],
)
def test_settings_of_starts_are_checked(option: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"'{option}' must be"):
        LoraConfig(**{option: value}).validate(LoraLimits())


def test_scaling_follows_the_rank() -> None:
    assert LoraConfig().scaling(8, 16) == 2.0
    assert LoraConfig(use_rslora=True).scaling(16, 8) == 2.0
