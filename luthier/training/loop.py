"""The door of training: ``tune`` reads the data, runs the loop of ``run.py`` and says how it went.

Everything random is drawn from the seed by generators of its own; torch's global ones are left
alone unless the base model's dropout was asked for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import InvalidInputError, NotSupportedError
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.base import TrainingCallback
from luthier.training.callbacks.callback_list import CallbackList
from luthier.training.callbacks.checkpoint_writer import CheckpointWriter
from luthier.training.callbacks.predictions_file import PREDICTIONS_FOLDER, PredictionsFile
from luthier.training.callbacks.progress_bar import ProgressBar
from luthier.training.callbacks.tracker_feed import TrackerFeed
from luthier.training.checkpointing.checkpoints import find_checkpoint, read_checkpoint
from luthier.training.checkpointing.group_record import tell_if_parted
from luthier.training.data.examples import TrainingData
from luthier.training.data.tokenization import TrainRecord
from luthier.training.evaluation.row_scoring import Generate
from luthier.training.job import TuningJob, never
from luthier.training.learner import Learner
from luthier.training.metrics.ai_judge import Judge
from luthier.training.metrics.base import Metric
from luthier.training.metrics.registry import make_metrics
from luthier.training.networks.embedding_noise import embedding_noise_of
from luthier.training.preparation import read_data, settle_options
from luthier.training.processes.own_device import require_processes
from luthier.training.processes.parallel import current_group
from luthier.training.results import TrainingResult
from luthier.training.run import TrainingRun
from luthier.training.start_measurement import begin_from_data
from luthier.training.trackers.registry import make_trackers


def tune(
    base_model: BaseModel,
    adapter: Adapter,
    train: Iterable[TrainRecord],
    *,
    validation: Iterable[TrainRecord] | None = None,
    options: TrainingOptions,
    callbacks: Sequence[TrainingCallback] = (),
    should_stop: Callable[[], bool] = never,
    dataset: DatasetOptions | None = None,
    generate: Generate | None = None,
    judge: Judge | None = None,
    run_folder: Path | None = None,
    resume_from: Path | None = None,
    backup_folder: Path | None = None,
) -> TrainingResult:
    """Learn ``adapter`` from records. Its tensors are changed in place, nothing else is.

    Args:
        base_model: Stays as it is; others may generate from it meanwhile.
        adapter: What is learned. After an error it holds a half-trained state: drop it. To go on
            from an earlier adapter with a new optimizer, hand in what ``load_adapter`` gives.
        train: Records, read once.
        validation: Records that are evaluated but not learned; None or empty for none.
        options: Hyperparameters. ``torch_dtype``, ``device``, and whether ``mixed_precision`` is
            worth it, were decided with ``base_model``.
        callbacks: Told what happens; a progress bar is added unless ``silence_progress_bars``.
        should_stop: Asked before every batch.
        dataset: How records become text and what is drawn anew in each epoch; the defaults if None.
            Its files, columns and split are ``load_dataset``'s business.
        generate: Writes texts with the base model and the adapter as they are at that moment; for
            metrics that compare texts.
        judge: Scores texts, for the metric ``ai_judge``.
        run_folder: Gets ``checkpoints/`` and ``predictions/``; None writes none.
        resume_from: A checkpoint, or a folder in which the newest whole one is taken. The training
            goes on from there as if it had never stopped; records, options, base model and kind of
            adapter must be those it was started with.
        backup_folder: Gets a copy of each checkpoint.

    Returns:
        Losses, what was truncated, counts.

    Raises:
        InvalidInputError: For an option that cannot be meant.
        VerbalizerError: For a verbalizer without placeholder, or one that shows the label.
        TrainingDataError: For empty data or a row that cannot be learned from; names the row.
        ArtifactError: If there is no whole checkpoint to resume from.
        ConflictError: If the checkpoint is of another training, naming each difference; or if
            ``run_folder`` holds checkpoints and nothing is resumed.
        NotSupportedError: If a metric's or optimizer's package is not installed.
        TrainingFailedError: If a loss or gradient is not finite; names the step and the rows.
        CancelledError: If ``should_stop`` said so.
    """
    job = TuningJob(
        adapter=adapter,
        train=train,
        options=options,
        validation=validation,
        callbacks=callbacks,
        should_stop=should_stop,
        dataset=dataset,
        generate=generate,
        judge=judge,
        run_folder=run_folder,
        resume_from=resume_from,
        backup_folder=backup_folder,
    )
    return learn(base_model, job)


def learn(base_model: BaseModel, job: TuningJob) -> TrainingResult:
    """``tune`` with its arguments in one object.

    Args:
        base_model: Stays as it is.
        job: The training.

    Returns:
        Losses, what was truncated, counts.

    Raises:
        LuthierError: As ``tune`` does.
    """
    with open_run(base_model, job) as run, contextlib.closing(run.steps()) as steps:
        tell_if_parted(run.group_before, run.course.progress.num_batches)
        loss_sum = None
        while True:
            try:
                micro_batch = steps.send(loss_sum)  # type: ignore[arg-type]  # the first is None
            except StopIteration:
                return run.finish()
            loss_sum = micro_batch.backward()


@contextlib.contextmanager
def open_run(base_model: BaseModel, job: TuningJob) -> Iterator[TrainingRun]:
    """Check a job and read its data.

    Args:
        base_model: Stays as it is.
        job: The training.

    Yields:
        The run before its first step; its callbacks are closed afterwards.

    Raises:
        LuthierError: As ``tune`` does before its first update.
    """
    checkpoint = None if job.resume_from is None else find_checkpoint(job.resume_from)
    # Nobody holds the whole of what processes share out, nor reads it in.
    is_shared_out = job.options.use_fsdp and isinstance(job.adapter, FullWeights)
    state = None if checkpoint is None else read_checkpoint(checkpoint, is_mapped=is_shared_out)
    options = settle_options(job.options, default_seed=None if state is None else state.seed)
    require_processes(options.num_processes)
    metrics = make_metrics(options.metrics, judge=job.judge)
    _require_generate(metrics, job.generate, options)
    _require_classes(metrics, job.adapter)
    group = current_group()
    callbacks: tuple[TrainingCallback, ...] = ()
    if group.is_main:
        callbacks = _all_callbacks(base_model, job, options, is_resumed=state is not None)
    elif job.run_folder is not None:
        # Its checkpoints need everybody's share of the weights.
        callbacks = (_checkpoint_writer(base_model, job, options, is_following=True),)
    with contextlib.closing(CallbackList(callbacks)) as all_callbacks:
        started = time.monotonic()
        data, validation_data = read_data(
            base_model,
            job.adapter,
            job.train,
            job.validation,
            options=options,
            dataset=job.dataset,
            should_stop=job.should_stop,
        )
        _require_validation(options, validation_data)
        begin_from_data(
            base_model,
            job.adapter,
            data,
            options,
            group=group,
            should_stop=job.should_stop,
            checkpoint=checkpoint,
        )
        noise = embedding_noise_of(job.dataset, seed=options.seed)
        run = TrainingRun(
            base_model,
            Learner(base_model, job.adapter, options, noise=noise, group=group),
            data,
            validation_data,
            metrics=metrics,
            generate=job.generate,
            callbacks=all_callbacks,
            should_stop=job.should_stop,
            started=started,
            group=group,
        )
        if state is not None and checkpoint is not None:
            run.restore(state, checkpoint)
        yield run


def _all_callbacks(
    base_model: BaseModel, job: TuningJob, options: TrainingOptions, *, is_resumed: bool
) -> tuple[TrainingCallback, ...]:
    """Those of the job, then those that its options and folders ask for."""
    callbacks = tuple(job.callbacks)
    if not options.silence_progress_bars:
        callbacks = (*callbacks, ProgressBar())
    trackers = make_trackers(options.trackers)
    feeds = [TrackerFeed(tracker, run_folder=job.run_folder) for tracker in trackers]
    callbacks = (*callbacks, *feeds)
    if job.run_folder is None:
        return callbacks
    writer = _checkpoint_writer(base_model, job, options, is_resumed=is_resumed)
    return (*callbacks, PredictionsFile(job.run_folder / PREDICTIONS_FOLDER), writer)


def _checkpoint_writer(
    base_model: BaseModel,
    job: TuningJob,
    options: TrainingOptions,
    *,
    is_resumed: bool = False,
    is_following: bool = False,
) -> CheckpointWriter:
    assert job.run_folder is not None
    return CheckpointWriter(
        job.run_folder,
        job.adapter,
        options,
        base_model_name=base_model.name,
        is_resumed=is_resumed,
        is_following=is_following,
        backup_folder=job.backup_folder,
        group=current_group(),
    )


def _require_generate(
    metrics: Sequence[Metric], generate: Generate | None, options: TrainingOptions
) -> None:
    names = [metric.name for metric in metrics if metric.needs_text]
    if names and options.use_fsdp:
        raise NotSupportedError(
            f"'metrics' names {', '.join(names)}, which compare generated text; with 'use_fsdp' no "
            "process has the whole model to generate with"
        )
    if names and generate is None:
        raise InvalidInputError(
            f"'metrics' names {', '.join(names)}, which compare generated text, and this training "
            "was given nothing to generate with"
        )


def _require_classes(metrics: Sequence[Metric], adapter: Adapter) -> None:
    names = [metric.name for metric in metrics if metric.needs_classes]
    if names and not adapter.class_labels:
        raise InvalidInputError(
            f"'metrics' names {', '.join(names)}, which compare classes, and {adapter.method} "
            "learns to write text; label_accuracy compares labels that are written"
        )


def _require_validation(options: TrainingOptions, validation: TrainingData | None) -> None:
    if validation is not None:
        return
    if options.save_checkpoint == "best":
        raise InvalidInputError("'save_checkpoint' is 'best', which needs validation data")
    for name in ("early_stopping_patience", "evaluate_before_training"):
        if getattr(options, name):
            raise InvalidInputError(f"'{name}' needs validation data")
