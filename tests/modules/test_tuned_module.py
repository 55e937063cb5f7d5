"""What every module promises, whatever its task."""

from __future__ import annotations

import asyncio

import pytest

from luthier.adapters.heads.building import create_head
from luthier.modules import HeadTuning, TextGeneration
from luthier.modules.saving.history import NO_HISTORY
from luthier.modules.tuned_module import TunedModule


@pytest.fixture(params=["text", "classes"])
def model(request, here):
    if request.param == "text":
        made = TextGeneration.bootstrap("tiny-causal")
    else:
        with here.base_models.acquire("tiny-causal") as base:
            head = create_head(base.model, ("ham", "spam"), seed=1)
            made = HeadTuning.bootstrap(base, head)
    yield made
    made.release()


def test_a_module_shows_its_parts(model):
    assert isinstance(model, TunedModule)
    assert model.base_model.name == "tiny-causal"
    assert (model.verbalizer, model.training_logs) == ("{{input}}", ())
    assert model.history is NO_HISTORY


def test_a_module_splits_texts_on_a_loop_as_elsewhere(model):
    found = asyncio.run(model.arun_tokenizer("where is it?"))
    assert found.to_json() == model.run_tokenizer("where is it?").to_json()
    assert found.token_count > 1


def test_a_released_module_can_be_released_again(model):
    model.release()
    model.release()


def test_what_was_not_read_from_a_folder_stays_when_it_is_shelved(model):
    before = model.adapter
    model.shelve()
    assert model.adapter is before
