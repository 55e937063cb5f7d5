"""From a spec in JSON to a call of a module's ``train``."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from caikit.core import ModuleBase
from caikit.core.data_model import DataBase, DataStream
from caikit.core.registries import module_registry

from luthier.data_model.training_settings import (
    SETTINGS_ARGUMENT,
    TrainingSettings,
    given_settings,
)
from luthier.errors import InvalidInputError
from luthier.runtime.jobs.base import TrainingSpec
from luthier.runtime.jobs.job_folder import JobFolder
from luthier.training.callbacks.metrics_file import MetricsFile

TRAIN_STREAM = "train_stream"
VALIDATION_STREAM = "val_stream"


def train_module(spec: TrainingSpec, folder: JobFolder) -> ModuleBase:
    """Train what the spec names on the folder's records.

    Args:
        spec: What to train.
        folder: Holds the records; gets the progress.

    Returns:
        The tuned model.

    Raises:
        InvalidInputError: If no module has the spec's id.
    """
    module_class = module_class_of(spec.module_id)
    types = train_argument_types(module_class)
    arguments = as_arguments(spec.parameters, types)
    arguments[TRAIN_STREAM] = _stream(folder, folder.train_file, types[TRAIN_STREAM])
    if spec.num_validation_records:
        arguments[VALIDATION_STREAM] = _stream(
            folder, folder.validation_file, types[VALIDATION_STREAM]
        )
    if _takes_hooks(module_class):
        arguments["callbacks"] = (MetricsFile(folder.metrics_file),)
        arguments["from_request"] = True
        folder.run_folder.mkdir(exist_ok=True)
        arguments["run_folder"] = folder.run_folder
        arguments[SETTINGS_ARGUMENT] = _resumable(arguments.get(SETTINGS_ARGUMENT))
        if folder.has_checkpoint:
            arguments["resume_from"] = folder.run_folder
    return module_class.train(**arguments)


def num_processes_of(parameters: Mapping[str, Any]) -> int:
    """How many processes the parameters of a train request ask for.

    Args:
        parameters: As the spec has them.

    Returns:
        At least one.
    """
    number: int = given_settings(parameters.get(SETTINGS_ARGUMENT)).get("num_processes", 1)
    return number


def module_class_of(module_id: str) -> type[ModuleBase]:
    """The registered module class with this id.

    Args:
        module_id: caikit's MODULE_ID.

    Returns:
        The class.

    Raises:
        InvalidInputError: If there is none.
    """
    module_class: type[ModuleBase] | None = module_registry().get(module_id)
    if module_class is None:
        raise InvalidInputError(f"no module has the id {module_id[:80]!r}")
    return module_class


def train_argument_types(module_class: type[ModuleBase]) -> Mapping[str, Any]:
    """Name and type of every argument of the module's ``train``.

    Args:
        module_class: A caikit module.

    Returns:
        As its signature says; the docstring fills in what it leaves out.
    """
    types: Mapping[str, Any] = module_class.TRAIN_SIGNATURE.parameters
    return types


def as_arguments(parameters: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters from JSON as ``train`` wants them: structured ones become data objects.

    Args:
        parameters: By name, in JSON's words.
        types: By name, the types of the signature.

    Returns:
        Keyword arguments.
    """
    return {name: _as_argument(value, types.get(name)) for name, value in parameters.items()}


def _resumable(settings: TrainingSettings | None) -> TrainingSettings:
    """Settings with the checkpoints that a job needs, unless they say which."""
    settings = TrainingSettings() if settings is None else settings
    if settings.save_checkpoint is None:
        settings.save_checkpoint = "resumable"
    return settings


def _takes_hooks(module_class: type[ModuleBase]) -> bool:
    """True if ``train`` takes names beside those on the wire, as our modules do."""
    parameters = inspect.signature(module_class.train).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _as_argument(value: Any, kind: Any) -> Any:
    if isinstance(value, Mapping):
        for candidate in (kind, *typing.get_args(kind)):
            if isinstance(candidate, type) and issubclass(candidate, DataBase):
                data_class: Any = candidate
                return data_class.from_json(dict(value))
    return value


def _stream(folder: JobFolder, file: Path, kind: Any) -> DataStream[Any]:
    record_class = record_class_of(kind)
    fields = set(record_class.fields)

    def records() -> Iterator[Any]:
        for record in folder.read_records(file):
            # What is no such record (a conversation) stays as it is: the module reads it as it
            # reads a file.
            is_such = "messages" not in record and record.keys() <= fields
            yield record_class(**record) if is_such else record

    return DataStream(records)


def record_class_of(kind: Any) -> type[DataBase]:
    """The class of the records in a (possibly optional, possibly one of several) DataStream.

    Args:
        kind: A type like ``DataStream[GenerationTrainRecord]`` or a union that holds one.

    Returns:
        The first member's record class, as on the wire.

    Raises:
        TypeError: If there is no DataStream in ``kind``.
    """
    for candidate in (kind, *typing.get_args(kind)):
        if typing.get_origin(candidate) is DataStream:
            record_class: type[DataBase] = typing.get_args(candidate)[0]
            return record_class
    raise TypeError(f"{kind} is no DataStream")
