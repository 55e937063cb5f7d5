"""What modules that classify promise to whoever serves them."""

import asyncio

import pytest
import torch

from luthier.adapters.heads.building import create_head
from luthier.errors import ArtifactError
from luthier.modules import HeadTuning
from luthier.modules.text_classification.classification_module import ClassificationModule
from luthier.runtime.registry.served_module import ClassifyingModule, GeneratingModule


@pytest.fixture
def model(here):
    with here.base_models.acquire("tiny-causal") as base:
        head = create_head(base.model, ("ham", "spam"), seed=1)
        model = HeadTuning.bootstrap(base, head)
    yield model
    model.release()


def test_a_module_says_what_it_is(model):
    assert isinstance(model, ClassificationModule)
    assert isinstance(model, ClassifyingModule)
    assert not isinstance(model, GeneratingModule)
    assert (model.labels, model.verbalizer, model.training_logs) == (
        ("ham", "spam"), "{{input}}", (),
    )  # fmt: skip
    assert model.adapter.class_labels == model.labels


def test_a_module_answers_on_an_event_loop_as_elsewhere(model):
    assert asyncio.run(model.aclassify("hi")).to_json() == model.run("hi").to_json()
    tokens = asyncio.run(model.arun_tokenizer("hi"))
    assert tokens.to_json() == model.run_tokenizer("hi").to_json()


def test_a_module_checks_itself(model):
    model.check_conformance()
    with torch.no_grad():
        model.adapter.score.zero_()
    with pytest.raises(ArtifactError, match="no effect"):
        model.check_conformance()
