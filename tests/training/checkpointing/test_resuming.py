"""State copied and put back by whoever keeps it."""

from pathlib import Path

import pytest
import torch

from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import ConflictError
from luthier.resources.base_model import BaseModel
from luthier.training.checkpointing.resuming import Course, StateKeeper
from luthier.training.evaluation.best import BestSoFar
from luthier.training.optimization.updater import Updater
from luthier.training.preparation import read_data

OPTIONS = TrainingOptions(num_epochs=1, learning_rate=0.1)


def _keeper(base: BaseModel, prompt: SoftPrompt, *, output: str = "yes") -> StateKeeper:
    rows = [GenerationTrainRecord(input="a row", output=output)]
    data, _ = read_data(base, prompt, rows, None, options=OPTIONS, should_stop=bool)
    updater = Updater(prompt, OPTIONS)
    return StateKeeper(base, prompt, data, None, options=OPTIONS, updater=updater)


def _prompt(base: BaseModel, first: int) -> SoftPrompt:
    return SoftPrompt(base.embedding_weight[first : first + 3], kind="causal", places=("decoder",))


def test_what_is_captured_can_be_restored(tiny_causal_base: BaseModel, tmp_path: Path) -> None:
    prompt = _prompt(tiny_causal_base, 10)
    course = Course(BestSoFar(step=3, value=0.5, num_evaluations_since=2))
    course.progress.step = 5
    state = _keeper(tiny_causal_base, prompt).capture(course)
    other = _prompt(tiny_causal_base, 30)
    restored = _keeper(tiny_causal_base, other).restore(state, tmp_path, higher_is_better=False)
    assert torch.equal(other.prompt_embeddings, prompt.prompt_embeddings)
    assert restored.progress.step == 5
    assert (restored.best.step, restored.best.value) == (3, 0.5)
    assert restored.best.num_evaluations_since == 2


def test_state_of_other_data_is_refused(tiny_causal_base: BaseModel, tmp_path: Path) -> None:
    prompt = _prompt(tiny_causal_base, 10)
    state = _keeper(tiny_causal_base, prompt).capture(Course(BestSoFar()))
    keeper = _keeper(tiny_causal_base, _prompt(tiny_causal_base, 30), output="no")
    with pytest.raises(ConflictError, match="the training data differs in 1 rows"):
        keeper.restore(state, tmp_path, higher_is_better=False)
