"""What a training is of: data, options, base model, adapter. Two that differ cannot be one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from luthier.adapters.base import Adapter
from luthier.data_model.options.setting import Setting
from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import NotSupportedError
from luthier.resources.base_model import BaseModel
from luthier.training.data.examples import TrainingData

#: Numbers taken from each parameter of the base, evenly spaced: every layer counts, at no cost.
_NUMBERS_PER_PARAMETER = 64


@dataclass(frozen=True, eq=False)
class RunFingerprint:
    """Marks of everything that has a say in what a training learns.

    Args:
        options: Name to JSON value, bookkeeping left out.
        base_model: Precision and hash.
        adapter: Method, settings, and shape and dtype of each learned tensor; JSON values.
        train_rows: A hash per training row, int64 [N].
        validation_rows: Likewise for the validation data; [0] without.
    """

    options: Mapping[str, Any]
    base_model: str
    adapter: Mapping[str, Any]
    train_rows: torch.Tensor
    validation_rows: torch.Tensor

    def differences(self, now: RunFingerprint) -> list[str]:
        """What ``now`` has otherwise, in words for people; empty if nothing.

        Args:
            now: Of the training that wants to go on.

        Returns:
            One phrase per thing.
        """
        return [
            *_changed_options(self.options, now.options),
            *_changed_rows("training data", self.train_rows, now.train_rows),
            *_changed_rows("validation data", self.validation_rows, now.validation_rows),
            *(["the base model has other weights"] if self.base_model != now.base_model else []),
            *_changed_adapter(self.adapter, now.adapter),
        ]

    def marks(self) -> dict[str, str]:
        """A hash of each thing, by its name for people."""
        parts = {
            "the options": json.dumps(self.options, sort_keys=True).encode(),
            "the base model": self.base_model.encode(),
            "the adapter": json.dumps(self.adapter, sort_keys=True).encode(),
            "the training data": self.train_rows.numpy().tobytes(),
            "the validation data": self.validation_rows.numpy().tobytes(),
        }
        return {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}


def fingerprint_run(
    base_model: BaseModel,
    adapter: Adapter,
    data: TrainingData,
    validation: TrainingData | None,
    options: TrainingOptions,
) -> RunFingerprint:
    """The marks of one training.

    Args:
        base_model: A sample of its weights counts.
        adapter: Its method and settings count, its tensors' values do not.
        data: Every token counts.
        validation: Likewise.
        options: With the seed drawn.

    Returns:
        The marks. Costs about a second per million rows.
    """
    return RunFingerprint(
        options=_json_values({**_result_options(options), **data.drawn_options}),
        base_model=mark_of(base_model),
        adapter=_json_values(_describe(adapter)),
        train_rows=_row_hashes(data),
        validation_rows=_row_hashes(validation),
    )


def _result_options(options: TrainingOptions) -> dict[str, Any]:
    """The options that change what is learned."""
    values = {}
    for field in dataclasses.fields(options):
        setting: Setting = field.metadata["setting"]
        if not setting.is_bookkeeping:
            values[field.name] = getattr(options, field.name)
    if options.save_checkpoint != "best":  # only this one decides which adapter comes out
        values["save_checkpoint"] = "not best"
    return values


def mark_of(base_model: BaseModel) -> str:
    """Precision and a hash of a sample of the weights.

    Args:
        base_model: Only read.

    Returns:
        The same for the same weights in the same precision.
    """
    digest = hashlib.sha256()
    for name, parameter in base_model.model.named_parameters():
        numbers = parameter.detach().flatten()
        numbers = numbers[:: max(1, numbers.numel() // _NUMBERS_PER_PARAMETER)].cpu().contiguous()
        digest.update(f"{name} {list(parameter.shape)} ".encode())
        digest.update(numbers.view(torch.uint8).numpy().tobytes())
    return f"{str(base_model.dtype).removeprefix('torch.')}:{digest.hexdigest()}"


def _describe(adapter: Adapter) -> dict[str, Any]:
    try:
        settings = adapter.peft_config()
    except NotSupportedError:  # full fine-tuning has none
        settings = {}
    settings = {**settings, **adapter.start_settings()}
    factors = sorted({adapter.learning_rate_factor(name) for name, _ in adapter.named_parameters()})
    if factors != [1.0]:  # LoRA+, which PEFT's settings do not know
        settings["learning_rate_factors"] = factors
    tensors = {
        name: f"{str(parameter.dtype).removeprefix('torch.')} {list(parameter.shape)}"
        for name, parameter in adapter.named_parameters()
    }
    return {"method": adapter.method, "settings": settings, "tensors": tensors}


def _json_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from a file: tuples as lists, sets in order."""
    as_text: dict[str, Any] = json.loads(json.dumps(values, default=lambda each: sorted(each)))
    return as_text


def _row_hashes(data: TrainingData | None) -> torch.Tensor:
    if data is None:
        return torch.zeros(0, dtype=torch.int64)
    hashes = []
    for example in data.examples:
        digest = hashlib.blake2b(f"{example.row} ".encode(), digest_size=8)
        digest.update(array("q", example.input_ids).tobytes())
        digest.update(b" labels ")
        digest.update(array("q", example.labels).tobytes())
        hashes.append(int.from_bytes(digest.digest(), "little", signed=True))
    return torch.tensor(hashes, dtype=torch.int64)


def _changed_options(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*then, *now}):
        before, after = then.get(name), now.get(name)
        if before != after:
            yield f"{name!r} was {_shown(before)} and is {_shown(after)}"


def _changed_rows(name: str, then: torch.Tensor, now: torch.Tensor) -> Iterator[str]:
    if len(then) != len(now):
        yield f"the {name} had {len(then)} rows and has {len(now)}"
        return
    changed = torch.nonzero(then != now).flatten()
    if len(changed):
        yield f"the {name} differs in {len(changed)} rows, the first is row {int(changed[0]) + 1}"


def _changed_adapter(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if then.get("method") != now.get("method"):
        yield f"the method was {then.get('method')} and is {now.get('method')}"
        return
    yield from _changed_options(then.get("settings", {}), now.get("settings", {}))
    if then.get("tensors") != now.get("tensors"):
        yield "the learned tensors have other names, shapes or dtypes"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
