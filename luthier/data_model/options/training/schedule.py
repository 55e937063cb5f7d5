"""How much is learned, and how fast: passes, rows of an update and the learning rate over time."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.data_model.options.setting import option
from luthier.errors import InvalidInputError

MAX_SEED = 2**63 - 1
SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class ScheduleOptions:
    """Passes over the data, the rows of an update, and the learning rate from first to last."""

    num_epochs: int = option(
        20,
        "int",
        "Passes over the training data; 0 trains nothing and keeps the start.",
        minimum=0,
        limit="max_epochs",
        aliases=("epochs", "n_epochs", "num_train_epochs"),
    )
    learning_rate: float = option(
        0.3,
        "number",
        "Step size of the optimizer at the schedule's peak.",
        above=0,
        maximum=100,
        aliases=("lr",),
    )
    batch_size: int = option(
        8,
        "int",
        "Rows that go through the model at once.",
        minimum=1,
        limit="max_batch_size",
        aliases=("per_device_train_batch_size", "train_batch_size"),
    )
    accumulate_steps: int = option(
        32,
        "int",
        "Batches whose gradients make one update. k batches of b rows give the update of one "
        "batch of k·b rows.",
        minimum=1,
        limit="max_accumulate_steps",
        aliases=("gradient_accumulation_steps", "grad_accumulation"),
    )
    group_by_length: bool = option(
        True,
        "bool",
        "Batch rows of like length, so that little is padded; False takes them in random order.",
    )
    seed: int = option(
        73,
        "int",
        "Makes order and random starts repeatable; -1 draws one, which the result reports.",
        minimum=-1,
        maximum=MAX_SEED,
        aliases=("random_seed",),
    )
    schedule: str = option(
        "linear",
        "choice",
        "How the learning rate falls after the warm-up, per update: linear and cosine to 0.",
        choices=SCHEDULES,
        aliases=("lr_scheduler_type",),
    )
    warmup_steps: int = option(
        0,
        "int",
        "Updates over which the learning rate rises from 0.",
        minimum=0,
        maximum=10**9,
    )
    warmup_ratio: float = option(
        0.0,
        "number",
        "Warm-up as a share of all updates; not together with another warm-up.",
        minimum=0,
        maximum=1,
    )
    warmup_epochs: float = option(
        0.0,
        "number",
        "Warm-up in passes over the data, fractions allowed; not together with another warm-up.",
        minimum=0,
        maximum=1000,
    )
    min_learning_rate_ratio: float = option(
        0.0,
        "number",
        "Share of the learning rate that linear and cosine never fall below.",
        minimum=0,
        maximum=1,
    )

    def require_one_warm_up(self) -> None:
        """Refuse a warm-up that is given in more than one way.

        Raises:
            InvalidInputError: Naming the options and their values.
        """
        warm_ups = [
            f"{name!r} ({getattr(self, name)})"
            for name in ("warmup_steps", "warmup_ratio", "warmup_epochs")
            if getattr(self, name)
        ]
        if len(warm_ups) > 1:
            raise InvalidInputError(f"{' and '.join(warm_ups)} say the same thing; give one")
