"""What is learned, and how half precision learns at all."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from luthier.adapters.full_weights import FullWeights
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import ArtifactError, InvalidInputError
from luthier.resources.base_model import BaseModel
from luthier.training.loop import tune
from luthier.training.optimization.learned_parameters import (
    MasterWeights,
    choose_learned,
    put_back,
    requiring_gradients,
)

RECORDS = [GenerationTrainRecord(input=f"row {number}", output="yes") for number in range(8)]


def _options(**changes: Any) -> TrainingOptions:
    return TrainingOptions(
        num_epochs=2, batch_size=4, accumulate_steps=1, learning_rate=1e-3, **changes
    )


def test_frozen_layers_keep_their_bits_and_all_others_learn(tiny_causal_base: BaseModel) -> None:
    adapter = FullWeights(tiny_causal_base.model)
    before = copy.deepcopy(adapter.model.state_dict())
    options = _options(freeze_layers=("embed", "layers.0."))
    tune(tiny_causal_base, adapter, RECORDS, options=options)
    for name, tensor in adapter.model.state_dict().items():
        is_frozen = "embed" in name or "layers.0." in name
        assert torch.equal(tensor, before[name]) is is_frozen, name
    assert all(parameter.requires_grad for parameter in adapter.model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_layers": ("embde",)}, "'freeze_layers' names 'embde', which is in the name of"),
        ({"freeze_layers": ("",)}, r"'freeze_layers\[0\]' must not be empty"),
        ({"freeze_layers": ("weight",)}, "'freeze_layers' freezes all 21 parameters"),
        (
            {"differential_learning_rate_layers": ("backbone",)},
            "'differential_learning_rate_layers' names 'backbone'",
        ),
    ],
)
def test_names_that_choose_nothing_or_all_are_refused(
    changes: dict[str, Any], message: str, tiny_causal_base: BaseModel
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        tune(
            tiny_causal_base,
            FullWeights(tiny_causal_base.model),
            RECORDS,
            options=_options(**changes),
        )


def test_layers_with_a_rate_of_their_own_move_by_it(tiny_causal_base: BaseModel) -> None:
    adapter = FullWeights(tiny_causal_base.model)
    before = copy.deepcopy(adapter.model.state_dict())
    # The first update of Adam is the learning rate itself, up or down.
    options = TrainingOptions(
        num_epochs=1,
        batch_size=8,
        accumulate_steps=1,
        learning_rate=1e-3,
        differential_learning_rate_layers=("lm_head",),
        differential_learning_rate=1e-5,
        weight_decay=0.0,
    )
    tune(tiny_causal_base, adapter, RECORDS, options=options)
    moved = {
        name: float((tensor - before[name]).abs().max())
        for name, tensor in adapter.model.state_dict().items()
    }
    assert moved["lm_head.weight"] == pytest.approx(1e-5, rel=0.1)
    assert moved["model.layers.0.mlp.up_proj.weight"] == pytest.approx(1e-3, rel=0.1)


def test_gradients_are_asked_for_only_while_training(tiny_causal_base: BaseModel) -> None:
    adapter = FullWeights(tiny_causal_base.model)
    learned = choose_learned(adapter, _options(freeze_layers=("mlp",)))
    with requiring_gradients(adapter, learned):
        required = {name for name, p in adapter.named_parameters() if p.requires_grad}
        assert required == set(learned)
        assert not any("mlp" in name for name in required)
    assert all(parameter.requires_grad for _, parameter in adapter.named_parameters())


def test_updates_too_small_for_half_precision_add_up() -> None:
    half = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    masters = MasterWeights({"w": half})
    optimizer = torch.optim.SGD(masters.named.values(), lr=1e-3)
    for _ in range(20):
        half.grad = torch.ones_like(half)
        masters.take_gradients()
        optimizer.step()
        masters.give_back()
    assert torch.ones(4, dtype=torch.bfloat16).sub(1e-3).tolist() == [1.0] * 4  # alone: no change
    assert half.tolist() == pytest.approx([0.98] * 4, abs=0.002)


def test_full_precision_is_its_own_master() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    masters = MasterWeights({"w": weight})
    assert masters.named["w"] is weight
    assert masters.tensors() == {}


def test_masters_come_back_from_a_checkpoint() -> None:
    masters = MasterWeights({"w": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))})
    saved = {"w::master": torch.tensor([0.1, 0.2]), "w::step": torch.tensor(1.0)}
    assert list(masters.restore(saved)) == ["w::step"]
    assert masters.named["w"].tolist() == pytest.approx([0.1, 0.2])
    with pytest.raises(ArtifactError, match="'w::master' is missing"):
        masters.restore({})


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"p": torch.ones(3)},
        {"p": torch.ones(2).half()},
        {"p": torch.ones(2), "q": torch.ones(2)},
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors: dict[str, torch.Tensor]) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ArtifactError):
        put_back(tensors, {"p": parameter})
    assert parameter.tolist() == [0.0, 0.0]
