"""Checkpoints: folders that are complete or invisible, of safetensors and JSON alone.

checkpoints/
  step-000000040/
    parameters.safetensors       what is learned
    optimizer.safetensors        the optimizer's state, ``<parameter>::<key>``
    best_parameters.safetensors  what was best, where that is to be the result
    history.safetensors          a loss per update; a hash per row of the data
    state.json                   counters, evaluations, options, marks of base model and adapter,
                                 who shares passes
    adapter/                     the same as a PEFT folder, where the method has one
    manifest.json                size and SHA-256 of each file
  .step-….partial/               being written or deleted; nobody reads it
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import alog
import torch
from safetensors.torch import save_file

from luthier.adapters.base import Adapter
from luthier.adapters.storage import save_adapter
from luthier.errors import ArtifactError, NotSupportedError
from luthier.files.atomic_folder import (
    MANIFEST_NAME,
    PARTIAL_SUFFIX,
    check_manifest,
    write_folder_atomically,
    write_manifest,
)
from luthier.files.tensor_files import map_safetensors, read_safetensors
from luthier.training.checkpointing.gathered import write_tensors
from luthier.training.checkpointing.group_record import GroupRecord
from luthier.training.checkpointing.run_fingerprint import RunFingerprint
from luthier.training.checkpointing.state import Progress, TrainingState
from luthier.training.results import EvaluationPoint, LossPoint

log = alog.use_channel(__name__)

FORMAT = 1
CHECKPOINTS_FOLDER = "checkpoints"
ADAPTER_FOLDER = "adapter"
STATE_NAME = "state.json"
_HISTORY_NAME = "history.safetensors"
TENSOR_FILES = ("parameters", "optimizer", "best_parameters")
_FOLDER_NAME = re.compile(r"step-(\d{9,})")
_MAX_STATE_BYTES = 256_000_000


def checkpoint_folder(parent: Path, step: int) -> Path:
    """Where the checkpoint of an update belongs."""
    return parent / f"step-{step:09d}"


def list_checkpoints(parent: Path) -> dict[int, Path]:
    """Step to folder, oldest first; half-written ones are not seen."""
    if not parent.is_dir():
        return {}
    found = {
        int(match[1]): path
        for path in parent.iterdir()
        if (match := _FOLDER_NAME.fullmatch(path.name)) and path.is_dir()
    }
    return dict(sorted(found.items()))


def write_checkpoint(
    folder: Path, state: TrainingState, adapter: Adapter, *, base_model_name: str
) -> None:
    """Write a state as a folder; another one of this name is replaced.

    Args:
        folder: Complete or absent afterwards, whatever happens.
        state: What to write.
        adapter: Written as a PEFT folder beside it, if its method has one.
        base_model_name: For that folder.
    """
    if folder.is_dir() and not (folder / MANIFEST_NAME).is_file():
        delete_checkpoint(folder)  # damaged; nothing is replaced that is not known to be ours
    with write_folder_atomically(folder, overwrite=True) as partial:
        for name in TENSOR_FILES:
            tensors = getattr(state, name)
            if tensors:
                write_tensors(tensors, partial / f"{name}.safetensors")
        save_file(_history(state), partial / _HISTORY_NAME)
        text = json.dumps(_as_json(state), indent=1)
        (partial / STATE_NAME).write_text(text, encoding="utf-8")
        try:
            save_adapter(adapter, partial / ADAPTER_FOLDER, base_model_name=base_model_name)
        except NotSupportedError:  # full fine-tuning: parameters.safetensors has all there is
            log.debug("no adapter folder in the checkpoint: method=%s", adapter.method)
        write_manifest(partial, step=state.progress.step)


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint that ``folder`` is, or the newest whole one in it.

    A damaged checkpoint is refused if it was named; among several it is passed over for the one
    before it, with a warning.

    Args:
        folder: A checkpoint, a folder of checkpoints, or a run's folder.

    Returns:
        A folder whose files all match their manifest.

    Raises:
        ArtifactError: If there is none, or the named one is damaged.
    """
    if (folder / MANIFEST_NAME).is_file() or _FOLDER_NAME.fullmatch(folder.name):
        _require_whole(folder)
        return folder
    parent = folder / CHECKPOINTS_FOLDER
    candidates = list_checkpoints(parent if parent.is_dir() else folder)
    for path in reversed(candidates.values()):
        try:
            _require_whole(path)
        except ArtifactError as error:
            log.warning("a damaged checkpoint is passed over: %s", error)
            continue
        return path
    damaged = f"; {len(candidates)} are damaged" if candidates else ""
    raise ArtifactError(f"{folder.name!r} has no complete checkpoint{damaged}")


def read_checkpoint(folder: Path, *, is_mapped: bool = False) -> TrainingState:
    """Read a checkpoint. Nothing in it can run code.

    Args:
        folder: From ``find_checkpoint``.
        is_mapped: Whether tensors stay in their files, for processes that each copy a share out of
            them; else they are copies.

    Returns:
        The state.

    Raises:
        ArtifactError: If a file is missing, damaged, or not what this version writes.
    """
    _require_whole(folder)
    content = _read_json(folder / STATE_NAME)
    try:
        if content["format"] != FORMAT:
            raise ArtifactError(
                f"checkpoint {folder.name!r} has format {str(content['format'])[:80]}, "
                f"this version reads {FORMAT}"
            )
        history = _tensors(folder / _HISTORY_NAME)
        return TrainingState(
            seed=int(content["seed"]),
            progress=_progress(content["progress"]),
            losses=_losses(history["losses"]),
            evaluations=tuple(EvaluationPoint(**point) for point in content["evaluations"]),
            fingerprint=RunFingerprint(
                options=dict(content["options"]),
                base_model=str(content["base_model"]),
                adapter=dict(content["adapter"]),
                train_rows=history["train_rows"],
                validation_rows=history["validation_rows"],
            ),
            group=_group(content.get("group")),
            **{
                name: _tensors(folder / f"{name}.safetensors", is_mapped=is_mapped)
                for name in TENSOR_FILES
            },
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"checkpoint {folder.name!r} is not readable: {error}") from error


def expected_content_hash(folder: Path) -> str | None:
    """What the adapter's ``content_hash`` was; None if the method has no adapter folder."""
    about = check_manifest(folder / ADAPTER_FOLDER).get("adapter", {})
    found = about.get("content_hash") if isinstance(about, dict) else None
    return found if isinstance(found, str) else None


def delete_checkpoint(folder: Path) -> None:
    """Delete a checkpoint; killed half-way it is invisible, not damaged."""
    hidden = folder.with_name(f".{folder.name}-deleted{PARTIAL_SUFFIX}")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def delete_partial(parent: Path) -> None:
    """Delete what killed trainings left half-written. Call it while nobody writes there."""
    if parent.is_dir():
        for path in parent.glob(f".step-*{PARTIAL_SUFFIX}"):
            shutil.rmtree(path, ignore_errors=True)


def _require_whole(folder: Path) -> None:
    if not check_manifest(folder):
        raise ArtifactError(f"checkpoint {folder.name!r} has no {MANIFEST_NAME}")


def _tensors(path: Path, *, is_mapped: bool = False) -> dict[str, torch.Tensor]:
    if not path.exists():
        return {}
    if is_mapped:
        # Single numbers are no share of anything, and an optimizer counts in them.
        mapped = map_safetensors(path)
        return {name: each.clone() if each.ndim == 0 else each for name, each in mapped.items()}
    # Its size stands in the manifest, so there is no other limit. Copies, because the bytes of a
    # file may stand at odd places, torch's own memory never does.
    tensors = read_safetensors(path, max_bytes=path.stat().st_size)
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _as_json(state: TrainingState) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "seed": state.seed,
        "progress": dataclasses.asdict(state.progress),
        "evaluations": [dataclasses.asdict(point) for point in state.evaluations],
        "options": state.fingerprint.options,
        "base_model": state.fingerprint.base_model,
        "adapter": state.fingerprint.adapter,
        "group": None if state.group is None else state.group.as_json(),
    }


def _group(values: Mapping[str, Any] | None) -> GroupRecord | None:
    return None if values is None else GroupRecord.from_json(values)


def _progress(values: Mapping[str, Any]) -> Progress:
    """Every counter must be a number: what is read here decides where a training goes on."""
    for name, value in values.items():
        is_open = name in ("best_step", "best_value") and value is None
        if isinstance(value, bool) or not (is_open or isinstance(value, int | float)):
            raise ValueError(f"{name!r} is {str(value)[:80]!r}")
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{name!r} is {value}")
    return Progress(**values)


def _history(state: TrainingState) -> dict[str, torch.Tensor]:
    rows = [
        (point.epoch, point.step, point.value, point.learning_rate, point.timestamp.timestamp())
        for point in state.losses
    ]
    return {
        "losses": torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 5),
        "train_rows": state.fingerprint.train_rows,
        "validation_rows": state.fingerprint.validation_rows,
    }


def _losses(table: torch.Tensor) -> tuple[LossPoint, ...]:
    return tuple(
        LossPoint(int(epoch), int(step), value, rate, datetime.fromtimestamp(seconds, UTC))
        for epoch, step, value, rate, seconds in table.tolist()
    )


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_STATE_BYTES:
            raise ArtifactError(f"{path.name!r} has more than {_MAX_STATE_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path.name!r} is not readable JSON") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path.name!r} is no JSON object")
    return content
