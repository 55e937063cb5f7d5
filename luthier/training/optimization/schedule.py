"""The learning rate of each update."""

from __future__ import annotations

import math

from luthier.data_model.options.training_options import TrainingOptions


def learning_rate_at(
    update: int, *, num_updates: int, options: TrainingOptions, updates_per_epoch: int = 0
) -> float:
    """The learning rate of one update.

    Args:
        update: From 0 to ``num_updates - 1``.
        num_updates: Of the whole training, all epochs.
        options: Peak, floor, schedule and warm-up.
        updates_per_epoch: Counts for a warm-up in epochs.

    Returns:
        The rate; during a warm-up it rises linearly from 0, afterwards it falls by the schedule.

    Source:
        The same values as transformers' ``get_scheduler`` stepped once per update.

    Example:
        >>> options = TrainingOptions(learning_rate=1.0, schedule="linear")
        >>> [learning_rate_at(update, num_updates=4, options=options) for update in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    num_warmup = num_warmup_updates(num_updates, options, updates_per_epoch=updates_per_epoch)
    if update < num_warmup:
        return options.learning_rate * update / max(1.0, num_warmup)
    progress = (update - num_warmup) / max(1.0, num_updates - num_warmup)
    floor = options.min_learning_rate_ratio
    if options.schedule == "linear":
        return options.learning_rate * max(floor, 1.0 - progress)
    if options.schedule == "cosine":
        return options.learning_rate * max(floor, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return options.learning_rate


def num_warmup_updates(
    num_updates: int, options: TrainingOptions, *, updates_per_epoch: int = 0
) -> float:
    """Updates of the warm-up: ``warmup_steps``, the share ``warmup_ratio`` rounded up, or
    ``warmup_epochs`` passes, which may end between two updates."""
    if options.warmup_epochs:
        return options.warmup_epochs * updates_per_epoch
    return options.warmup_steps or math.ceil(num_updates * options.warmup_ratio)
