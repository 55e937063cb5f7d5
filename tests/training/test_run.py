"""The loop seen from who runs its micro-batches."""

import pytest
import torch

from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import CancelledError, TrainingFailedError
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.callback_list import CallbackList
from luthier.training.job import TuningJob
from luthier.training.learner import Learner
from luthier.training.metrics.registry import make_metrics
from luthier.training.preparation import read_data
from luthier.training.run import TrainingRun

ROWS = [GenerationTrainRecord(input=f"row {number}", output="yes") for number in range(6)]
OPTIONS = TrainingOptions(
    num_epochs=2, batch_size=2, accumulate_steps=2, learning_rate=0.01, verbalizer="{{input}} "
)


def _adapter(base: BaseModel) -> SoftPrompt:
    return SoftPrompt(base.embedding_weight[20:23], kind="causal", places=("decoder",))


def _run(base: BaseModel, job: TuningJob) -> TrainingRun:
    data, _ = read_data(
        base, job.adapter, job.train, None, options=job.options, should_stop=job.should_stop
    )
    return TrainingRun(
        base,
        Learner(base, job.adapter, job.options),
        data,
        None,
        metrics=make_metrics(job.options.metrics),
        generate=None,
        callbacks=CallbackList(()),
        should_stop=job.should_stop,
    )


def test_micro_batches_are_handed_out_and_gradients_asked_for_meanwhile(
    tiny_causal_base: BaseModel,
) -> None:
    adapter = _adapter(tiny_causal_base)
    required = adapter.prompt_embeddings.requires_grad
    run = _run(tiny_causal_base, TuningJob(adapter, ROWS, OPTIONS))
    steps, seen, units = run.steps(), [], []
    micro_batch = next(steps)
    with pytest.raises(StopIteration):
        while True:
            assert adapter.prompt_embeddings.requires_grad
            seen.append(len(micro_batch.batch.rows))
            units.append(micro_batch.units / micro_batch.batch.num_label_tokens)
            micro_batch = steps.send(micro_batch.backward())
    assert seen == [2, 2, 2] * 2  # each epoch: a window of two batches and a short one
    assert sorted(units) == [1, 1, 2, 2, 2, 2]
    assert run.course.progress.step == len(run.course.losses) == 4
    assert adapter.prompt_embeddings.requires_grad == required


def test_a_loss_that_is_no_number_changes_nothing(tiny_causal_base: BaseModel) -> None:
    adapter = _adapter(tiny_causal_base)
    before = adapter.prompt_embeddings.detach().clone()
    steps = _run(tiny_causal_base, TuningJob(adapter, ROWS, OPTIONS)).steps()
    next(steps)
    steps.send(torch.tensor(1.0))
    with pytest.raises(TrainingFailedError, match="step 1: the loss is not finite in rows"):
        steps.send(torch.tensor(float("nan")))
    assert torch.equal(adapter.prompt_embeddings, before)


def test_who_asks_to_stop_is_heard_before_the_next_micro_batch(tiny_causal_base: BaseModel) -> None:
    asked = [False]
    job = TuningJob(_adapter(tiny_causal_base), ROWS, OPTIONS, should_stop=lambda: asked[0])
    steps = _run(tiny_causal_base, job).steps()
    micro_batch = next(steps)
    asked[0] = True
    with pytest.raises(CancelledError, match="after 0 updates"):
        steps.send(micro_batch.backward())
