"""How a model was trained, as far as it is told: kept from training to saving to loading."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import ArtifactError
from luthier.files.names import resolve_inside
from luthier.training.results import TrainingResult

LOGS_NAME = "training_logs.jsonl"
_MAX_LOG_BYTES = 256_000_000
#: Keys of the module config.
_LOGS_KEY = "training_logs"
_SUMMARY_KEY = "training"

#: How the base model's weights are held where the model is served; none where it is absent.
QUANTIZATION_KEY = "quantization"

LogLine = Mapping[str, Any]


@dataclass(frozen=True)
class TrainingHistory:
    """The course of a training and its settings.

    Args:
        lines: caikit-nlp's log: ``{"name": "loss", "data": {"epoch", "step", "value", ...}}``.
        summary: Options, counts and what was truncated, in what JSON and YAML know; empty for a
            training elsewhere.
    """

    lines: tuple[LogLine, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, result: TrainingResult, options: TrainingOptions) -> TrainingHistory:
        """The history of a training that has just ended.

        Args:
            result: Of the loop.
            options: It ran with.

        Returns:
            Its history.
        """
        summary = {
            "options": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in dataclasses.asdict(options).items()
                if name not in ("device", "silence_progress_bars")
            },
            "num_rows": result.num_rows,
            "num_steps": result.num_steps,
            "num_label_tokens": result.num_label_tokens,
            "truncation": str(result.truncation),
            "seconds": round(result.seconds, 3),
        }
        return cls(lines=_lines(result), summary=summary)

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any]) -> TrainingHistory:
        """The history in a saved model's folder; empty where it left none.

        Args:
            folder: The model's.
            config: Its config, which names the file.

        Returns:
            Its history.

        Raises:
            ArtifactError: If the file is there and unreadable.
        """
        summary = config.get(_SUMMARY_KEY)
        kept = summary if isinstance(summary, dict) else {}
        return cls(lines=_read_lines(folder, config.get(_LOGS_KEY)), summary=kept)

    @property
    def config(self) -> dict[str, Any]:
        """What a module config says about it."""
        config: dict[str, Any] = {_LOGS_KEY: LOGS_NAME}
        options = self.summary.get("options")
        if isinstance(options, Mapping) and options.get("serve_quantized"):
            config[QUANTIZATION_KEY] = options.get("quantization")
        return {**config, _SUMMARY_KEY: dict(self.summary)} if self.summary else config

    def write(self, folder: Path) -> None:
        """Put the lines beside the config.

        Args:
            folder: The model's, being written.
        """
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        (folder / LOGS_NAME).write_text(text, encoding="utf-8")


NO_HISTORY = TrainingHistory()


def _lines(result: TrainingResult) -> tuple[LogLine, ...]:
    """caikit-nlp's lines, validation losses under a name of their own."""
    losses = [
        {
            "name": "loss",
            "data": {
                "epoch": point.epoch,
                "step": point.step,
                "value": point.value,
                "learning_rate": point.learning_rate,
                "timestamp": point.timestamp.isoformat(),
            },
        }
        for point in result.losses
    ]
    validation = [
        {
            "name": "validation_loss",
            "data": {"epoch": point.epoch, "step": point.step, "value": point.value},
        }
        for point in result.validation_losses
    ]
    return (*losses, *validation)


def _read_lines(folder: Path, name: object) -> tuple[LogLine, ...]:
    if not isinstance(name, str) or not name:
        return ()
    path = resolve_inside(folder, name, what="training_logs")
    if not path.is_file():
        return ()
    try:
        if path.stat().st_size > _MAX_LOG_BYTES:
            raise ArtifactError(f"{folder.name!r}: {name} has more than {_MAX_LOG_BYTES} bytes")
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except ArtifactError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder.name!r}: {name} is not readable JSON lines") from error
    if not all(isinstance(line, dict) for line in lines):
        raise ArtifactError(f"{folder.name!r}: {name} holds lines that are no objects")
    return tuple(lines)
