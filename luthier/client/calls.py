"""Every call of the API as plain data: what to send, and how to read the answer.

The synchronous and the asynchronous client share this file and differ only in how they wait.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from luthier.client import answers
from luthier.client.results import (
    GeneratedText,
    LabelScore,
    ModelInfo,
    Tokenization,
    TrainingJob,
    TrainingMetric,
    TrainingStatus,
)
from luthier.errors import InvalidInputError, UnknownKeyError, did_you_mean

ROUTE_PREFIX = "/api/v1"
PROMPT_TUNING = "TextGenerationTaskPeftPromptTuningTrain"
FULL_FINE_TUNING = "TextGenerationTaskTextGenerationTrain"
LORA_TUNING = "TextGenerationTaskLoraTuningTrain"
HEAD_TUNING = "TextClassificationTaskHeadTuningTrain"

Answer = TypeVar("Answer")

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


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One request and how to read its answer.

    Args:
        method: HTTP method.
        path: Path below the server's URL.
        read: Answer from the decoded body.
        query: Parameters of the URL.
        body: JSON body, or None.
        files: Multipart files as (field, (filename, content)), or empty.
        fields: Multipart fields beside the files.
        is_text: True if the answer's body is plain text.
    """

    method: str
    path: str
    read: Callable[[Any], Answer]
    query: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = None
    files: tuple[tuple[str, tuple[str, bytes]], ...] = ()
    fields: Mapping[str, str] | None = None
    is_text: bool = False


def generate(model_id: str, text: str, parameters: Mapping[str, Any]) -> Call[GeneratedText]:
    """Text from a model, whole."""
    body = _inference_body(model_id, text, parameters)
    return Call("POST", f"{ROUTE_PREFIX}/task/text-generation", answers.generated_text, body=body)


def generate_many(
    model_id: str, text: str, n: int, parameters: Mapping[str, Any]
) -> Call[list[GeneratedText]]:
    """Several answers to one text."""
    body = {**_inference_body(model_id, text, parameters), "n": n}
    return Call("POST", f"{ROUTE_PREFIX}/task/text-generations", answers.generated_texts, body=body)


def stream(model_id: str, text: str, parameters: Mapping[str, Any]) -> Call[None]:
    """Text from a model, message by message; ``answers.generated_chunk`` reads each."""
    body = _inference_body(model_id, text, parameters)
    path = f"{ROUTE_PREFIX}/task/server-streaming-text-generation"
    return Call("POST", path, answers.nothing, body=body)


def classify(model_id: str, text: str) -> Call[tuple[LabelScore, ...]]:
    """The classes of a text, the most probable first."""
    body = _inference_body(model_id, text, {})
    return Call("POST", f"{ROUTE_PREFIX}/task/text-classification", answers.label_scores, body=body)


def tokenize(model_id: str, text: str) -> Call[Tokenization]:
    """Count (and where offered, show) the tokens of a text."""
    body = _inference_body(model_id, text, {})
    return Call("POST", f"{ROUTE_PREFIX}/task/tokenization", answers.tokenization, body=body)


def train(
    method: str,
    model_name: str,
    *,
    base_model: str,
    train_data: Records | ServerFile,
    validation_data: Records | ServerFile | None,
    parameters: Mapping[str, Any],
) -> Call[TrainingJob]:
    """Start a training.

    Args:
        method: ``PROMPT_TUNING``, ``LORA_TUNING``, ``HEAD_TUNING`` or ``FULL_FINE_TUNING``.
        model_name: Id of the model that it makes.
        base_model: Name of the base model, as the server resolves it.
        train_data: Records, or a file on the server.
        validation_data: Likewise; None for none.
        parameters: The method's other parameters, by their names on the wire. None values are
            left out.
    """
    given = {
        "base_model": base_model,
        "train_stream": _data_stream("train_stream", train_data),
        **{name: value for name, value in parameters.items() if value is not None},
    }
    if validation_data is not None:
        given["val_stream"] = _data_stream("val_stream", validation_data)
    body = {"model_name": model_name, "parameters": given}
    return Call("POST", f"{ROUTE_PREFIX}/{method}", answers.training_job, body=body)


def training(training_id: str) -> Call[TrainingStatus]:
    """Where a training stands."""
    query = {"training_id": training_id}
    return Call("GET", "/management/trainings", answers.training_status, query=query)


def trainings() -> Call[list[TrainingStatus]]:
    """Every training that the server knows."""
    return Call("GET", "/management/trainings", answers.training_list)


def training_metrics(training_id: str) -> Call[list[TrainingMetric]]:
    """What a training has measured so far."""
    path = "/management/trainings/metrics"
    return Call("GET", path, answers.training_metrics, query={"training_id": training_id})


def cancel_training(training_id: str) -> Call[TrainingStatus]:
    """Ask a training to stop."""
    query = {"training_id": training_id}
    return Call("DELETE", "/management/trainings", answers.training_status, query=query)


def resume_training(training_id: str) -> Call[TrainingStatus]:
    """Go on with a training that was cancelled or failed, from its last checkpoint."""
    query = {"training_id": training_id}
    return Call("POST", "/management/trainings/resume", answers.training_status, query=query)


def models() -> Call[list[ModelInfo]]:
    """Every model that the server has."""
    return Call("GET", "/info/models", answers.model_list)


def deploy(model_id: str, folder: Path) -> Call[ModelInfo]:
    """Send a saved model's folder to the server.

    Raises:
        InvalidInputError: If ``folder`` holds no ``config.yml``.
    """
    if not (folder / "config.yml").is_file():
        raise InvalidInputError(f"'{folder}' is no saved model: it holds no config.yml")
    files = tuple(
        ("model_files", (path.relative_to(folder).as_posix(), path.read_bytes()))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    fields = {"model_id": model_id}
    return Call("POST", "/management/models", answers.model_info, files=files, fields=fields)


def undeploy(model_id: str) -> Call[None]:
    """Stop serving a model and delete its folder on the server."""
    query = {"model_id": model_id}
    return Call("DELETE", "/management/models", answers.nothing, query=query)


def version() -> Call[dict[str, Any]]:
    """Versions of the server's packages."""
    return Call("GET", "/info/version", answers.mapping)


def health() -> Call[str]:
    """``OK`` while the server can serve."""
    return Call("GET", "/health", str.strip, is_text=True)


def _inference_body(model_id: str, text: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in parameters.items() if value not in (None, ())}
    unknown = sorted(given.keys() - set(answers.SAMPLING_FIELDS))
    if unknown:
        name = unknown[0]
        raise UnknownKeyError(
            f"unknown generation parameter {name!r}{did_you_mean(name, answers.SAMPLING_FIELDS)}"
        )
    penalty = given.get("exponential_decay_length_penalty")
    if isinstance(penalty, Sequence):
        start_index, decay_factor = penalty
        given["exponential_decay_length_penalty"] = {
            "start_index": start_index,
            "decay_factor": decay_factor,
        }
    body: dict[str, Any] = {"model_id": model_id, "inputs": text}
    if given:
        body["parameters"] = given
    return body


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


def encode(body: Mapping[str, Any]) -> bytes:
    """JSON bytes of a body; NaN and infinities, which JSON lacks, are refused.

    Raises:
        InvalidInputError: If a number is not finite, naming it, or a value is no JSON.
    """
    for path, number in _not_finite(body):
        raise InvalidInputError(f"'{path}' must be finite, got {number}")
    try:
        return json.dumps(body, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"the request cannot be written as JSON: {error}") from error


def _not_finite(value: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Where in a body NaN and infinities are, as ``parameters.learning_rate``."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _not_finite(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _not_finite(part, f"{path}[{index}]")
