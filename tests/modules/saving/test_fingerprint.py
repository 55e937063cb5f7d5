"""The mark of a base model changes with any layer and with nothing else."""

import copy

import pytest
import torch

from luthier.errors import ArtifactError
from luthier.modules.saving.fingerprint import fingerprint, require_same_base
from luthier.resources.base_model import BaseModel


@pytest.fixture
def base_model(here):
    with here.base_models.acquire("tiny-causal") as loaded:
        yield loaded


def other_base(base_model, change):
    model = copy.deepcopy(base_model.model)
    with torch.no_grad():
        change(model)
    return BaseModel.from_memory(model, base_model.tokenizer, name=base_model.name)


def test_the_same_weights_have_the_same_mark(base_model):
    assert fingerprint(base_model) == fingerprint(other_base(base_model, lambda model: None))
    assert fingerprint(base_model).startswith("float32:")


def test_one_changed_layer_changes_the_mark(base_model):
    for name in dict(base_model.model.named_parameters()):
        changed = other_base(base_model, lambda model, name=name: model.get_parameter(name).add_(1))
        assert fingerprint(changed) != fingerprint(base_model), name
        with pytest.raises(ArtifactError, match="weights differ"):
            require_same_base({"base_model_fingerprint": fingerprint(base_model)}, changed)


def test_another_precision_cannot_be_compared_and_passes(base_model):
    half = other_base(base_model, lambda model: model.to(torch.bfloat16))
    assert fingerprint(half).startswith("bfloat16:")
    require_same_base({"base_model_fingerprint": fingerprint(half)}, base_model)


@pytest.mark.parametrize("config", [{}, {"base_model_fingerprint": 5}])
def test_without_a_mark_nothing_is_compared(base_model, config):
    require_same_base(config, base_model)


def test_a_quantised_base_has_a_mark_of_its_own_and_is_not_compared(tiny_causal_base):
    quantised = tiny_causal_base.quantised("nf4")
    mark = fingerprint(quantised)
    assert mark.startswith("float32+nf4:")
    require_same_base({"base_model_fingerprint": mark}, tiny_causal_base)
    require_same_base({"base_model_fingerprint": mark}, quantised)
    with pytest.raises(ArtifactError):
        require_same_base({"base_model_fingerprint": "float32+nf4:00"}, quantised)
