"""When a training saves its state, and how many states are kept."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.data_model.options.setting import option

SAVE_CHECKPOINT_WORDS = ("last", "resumable", "best", "each_evaluation", "never")


@dataclass(frozen=True)
class CheckpointOptions:
    """When a training that has a folder saves its state there."""

    save_checkpoint: str = option(
        "last",
        "choice",
        "When a training that has a folder saves its state: at evaluation points and the ends of "
        "epochs as often as checkpoint_time_share allows, and every save_every_seconds (last), "
        "likewise but not at the end of all (resumable; a server's default, whose jobs drop their "
        "folder then), when the first metric improved (best; the result then is what was best), at "
        "evaluation points (each_evaluation), or never.",
        choices=SAVE_CHECKPOINT_WORDS,
    )
    save_every_seconds: float = option(
        300.0,
        "number",
        "With save_checkpoint last or resumable: work that a killed training loses at most, in "
        "seconds, or what checkpoint_time_share makes of it where checkpoints take longer; 0 saves "
        "at evaluation points and the ends of epochs only.",
        minimum=0.0,
        maximum=10**9,
        is_bookkeeping=True,
    )
    checkpoint_time_share: float = option(
        0.05,
        "number",
        "With save_checkpoint last or resumable: largest share of the time since the last "
        "checkpoint that the next one may take, measured as it goes; 1 saves at every evaluation "
        "point and end of an epoch. The state at the end of all does not ask.",
        minimum=1e-6,
        maximum=1.0,
        is_bookkeeping=True,
    )
    save_every_steps: int = option(
        0,
        "int",
        "Updates between further checkpoints; 0 saves none but those of save_checkpoint.",
        minimum=0,
        maximum=10**9,
        aliases=("save_steps",),
        is_bookkeeping=True,
    )
    keep_checkpoints: int | None = option(
        None,
        "int",
        "Newest checkpoints that are kept, the best one on top; 0 keeps all. None keeps 2, and all "
        "with save_checkpoint each_evaluation.",
        minimum=0,
        maximum=10**6,
        is_optional=True,
        aliases=("save_total_limit",),
        is_bookkeeping=True,
    )
