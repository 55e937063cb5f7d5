"""Whom a training tells how far it is, beside its own files."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.data_model.options.setting import option

TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")


@dataclass(frozen=True)
class ReportingOptions:
    """Progress bars and trackers."""

    silence_progress_bars: bool = option(
        True,
        "bool",
        "False shows a progress bar on stderr.",
        aliases=("disable_tqdm",),
        is_bookkeeping=True,
    )
    trackers: tuple[str, ...] = option(
        (),
        "names",
        "Where losses and metrics are sent beside the run's own files; each needs its package.",
        choices=TRACKERS,
        is_bookkeeping=True,
    )
    tracker_project: str = option(
        "luthier",
        "text",
        "Project or experiment that trackers file the run under.",
        is_bookkeeping=True,
    )
