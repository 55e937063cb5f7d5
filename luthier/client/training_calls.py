"""The calls that start trainings and look after them: what to send, and how to read the answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.client import answers
from luthier.client.call import ROUTE_PREFIX, Call
from luthier.client.results import TrainingJob, TrainingMetric, TrainingStatus
from luthier.errors import InvalidInputError

#: Train records as callers give them: ``{"input": …, "output": …}``, ``{"messages": […]}`` or, for
#: heads, ``{"text": …, "labels": […]}`` each.
Records = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class ServerFile:
    """Train data that already lies on the server, under one of its ``data_roots``.

    Args:
        filename: Path on the server: .json, .jsonl or .csv.
    """

    filename: str


def train_prompt(
    model_name: str,
    *,
    base_model: str,
    train_data: Records | ServerFile,
    tuning_config: dict[str, Any],
    validation_data: Records | ServerFile | None = None,
    **parameters: Any,
) -> Call[TrainingJob]:
    """Start tuning a soft prompt; returns at once.

    Args:
        model_name: Id of the tuned model.
        base_model: Name of the base model, as the server resolves it.
        train_data: Records with ``input`` and ``output``, or a file on the server.
        tuning_config: ``num_virtual_tokens``, ``prompt_tuning_init_method`` …
        validation_data: Measured after each epoch; None for none.
        **parameters: ``num_epochs``, ``learning_rate``, ``verbalizer`` …, by their wire names.
    """
    method = "TextGenerationTaskPeftPromptTuningTrain"
    parameters = {"tuning_config": tuning_config, **parameters}
    return _train(method, model_name, base_model, train_data, validation_data, parameters)


def train_lora(
    model_name: str,
    *,
    base_model: str,
    train_data: Records | ServerFile,
    validation_data: Records | ServerFile | None = None,
    **parameters: Any,
) -> Call[TrainingJob]:
    """Start tuning a LoRA; returns at once.

    Args:
        model_name: Id of the tuned model.
        base_model: Name of the base model, as the server resolves it.
        train_data: Records with ``input`` and ``output``, or a file on the server.
        validation_data: Measured after each epoch; None for none.
        **parameters: ``rank``, ``alpha``, ``num_epochs``, ``learning_rate`` …, by their wire
            names.
    """
    method = "TextGenerationTaskLoraTuningTrain"
    return _train(method, model_name, base_model, train_data, validation_data, parameters)


def train_head(
    model_name: str,
    *,
    base_model: str,
    train_data: Records | ServerFile,
    validation_data: Records | ServerFile | None = None,
    **parameters: Any,
) -> Call[TrainingJob]:
    """Start tuning a classification head; returns at once.

    Args:
        model_name: Id of the tuned model.
        base_model: Name of the base model, as the server resolves it.
        train_data: Records with ``text`` and ``labels``, or a file on the server.
        validation_data: Measured after each epoch; None for none.
        **parameters: ``labels``, ``use_lora``, ``num_epochs`` …, by their wire names.
    """
    method = "TextClassificationTaskHeadTuningTrain"
    return _train(method, model_name, base_model, train_data, validation_data, parameters)


def train_full(
    model_name: str,
    *,
    base_model: str,
    train_data: Records | ServerFile,
    validation_data: Records | ServerFile | None = None,
    **parameters: Any,
) -> Call[TrainingJob]:
    """Start fine-tuning every weight of a copy of the base model; returns at once.

    Args:
        model_name: Id of the tuned model.
        base_model: Name of the base model, as the server resolves it.
        train_data: Records with ``input`` and ``output``, or a file on the server.
        validation_data: Likewise; its loss is measured.
        **parameters: ``num_epochs``, ``lr``, ``batch_size`` …, by their wire names.
    """
    method = "TextGenerationTaskTextGenerationTrain"
    return _train(method, model_name, base_model, train_data, validation_data, parameters)


def training(training_id: str) -> Call[TrainingStatus]:
    """Where a training stands."""
    query = {"training_id": training_id}
    return Call("GET", "/management/trainings", answers.training_status, query=query)


def trainings() -> Call[list[TrainingStatus]]:
    """Every training that the server knows."""
    return Call("GET", "/management/trainings", answers.training_list)


def training_metrics(training_id: str) -> Call[list[TrainingMetric]]:
    """What a training has measured so far, oldest first."""
    path = "/management/trainings/metrics"
    return Call("GET", path, answers.training_metrics, query={"training_id": training_id})


def cancel_training(training_id: str) -> Call[TrainingStatus]:
    """Ask a training to stop; its state becomes CANCELED."""
    query = {"training_id": training_id}
    return Call("DELETE", "/management/trainings", answers.training_status, query=query)


def resume_training(training_id: str) -> Call[TrainingStatus]:
    """Go on with a training that was cancelled or failed, from its last checkpoint."""
    query = {"training_id": training_id}
    return Call("POST", "/management/trainings/resume", answers.training_status, query=query)


def _train(
    method: str,
    model_name: str,
    base_model: str,
    train_data: Records | ServerFile,
    validation_data: Records | ServerFile | None,
    parameters: Mapping[str, Any],
) -> Call[TrainingJob]:
    """A train request; parameters that are None are left out."""
    given = {
        "base_model": base_model,
        "train_stream": _data_stream("train_stream", train_data),
        **{name: value for name, value in parameters.items() if value is not None},
    }
    if validation_data is not None:
        given["val_stream"] = _data_stream("val_stream", validation_data)
    body = {"model_name": model_name, "parameters": given}
    return Call("POST", f"{ROUTE_PREFIX}/{method}", answers.training_job, body=body)


def _data_stream(name: str, data: Records | ServerFile) -> dict[str, Any]:
    if isinstance(data, ServerFile):
        return {"data_stream": {"filename": data.filename}}
    records = []
    for row, record in enumerate(data, start=1):
        if not isinstance(record, Mapping):
            raise InvalidInputError(
                f"row {row} of '{name}' must have the fields input and output, "
                f"got {type(record).__name__}"
            )
        records.append(dict(record))
    return {"data_stream": {"data": records}}
