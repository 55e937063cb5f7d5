"""Decoded JSON bodies of the API, read into the types of ``results``.

Servers send enum values as words or as numbers; both are understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.client.results import (
    GeneratedChunk,
    GeneratedText,
    GeneratedToken,
    JobState,
    LabelScore,
    ModelInfo,
    Tokenization,
    TrainingJob,
    TrainingMetric,
    TrainingStatus,
)
from luthier.data_model.sampling import SAMPLING_FIELDS
from luthier.errors import LuthierError

__all__ = ["SAMPLING_FIELDS"]

FINISH_REASONS = (
    "NOT_FINISHED",
    "MAX_TOKENS",
    "EOS_TOKEN",
    "CANCELLED",
    "TIME_LIMIT",
    "STOP_SEQUENCE",
    "TOKEN_LIMIT",
    "ERROR",
)
_JOB_STATES = ("", *JobState)


def nothing(body: Any) -> None:
    """For calls whose answer says nothing."""


def mapping(body: Any) -> dict[str, Any]:
    """A JSON object.

    Raises:
        LuthierError: If the server sent anything else.
    """
    if not isinstance(body, dict):
        raise LuthierError(f"the server sent {type(body).__name__} where an object was due")
    return body


def generated_text(body: Any) -> GeneratedText:
    """A ``GeneratedTextResult``."""
    result = mapping(body)
    return GeneratedText(
        text=result.get("generated_text") or "",
        finish_reason=_finish_reason(result.get("finish_reason")),
        generated_token_count=int(result.get("generated_tokens") or 0),
        input_token_count=int(result.get("input_token_count") or 0),
        seed=result.get("seed"),
        tokens=_tokens(result.get("tokens")),
        input_tokens=_tokens(result.get("input_tokens")),
    )


def generated_texts(body: Any) -> list[GeneratedText]:
    """Several ``GeneratedTextResult``."""
    return [generated_text(result) for result in mapping(body).get("results") or ()]


def generated_chunk(body: Any) -> GeneratedChunk:
    """A ``GeneratedTextStreamResult``."""
    result = mapping(body)
    details = result.get("details") or {}
    return GeneratedChunk(
        text=result.get("generated_text") or "",
        finish_reason=_finish_reason(details.get("finish_reason")),
        generated_token_count=int(details.get("generated_tokens") or 0),
        input_token_count=int(details.get("input_token_count") or 0),
        seed=details.get("seed"),
        tokens=_tokens(result.get("tokens")),
        input_tokens=_tokens(result.get("input_tokens")),
    )


def label_scores(body: Any) -> tuple[LabelScore, ...]:
    """A ``ClassificationResults``."""
    results = mapping(body).get("results") or ()
    return tuple(
        LabelScore(str(each.get("label") or ""), float(each.get("score") or 0.0))
        for each in results
    )


def tokenization(body: Any) -> Tokenization:
    """A ``TokenizationResults``."""
    result = mapping(body)
    tokens = tuple(str(token.get("text") or "") for token in result.get("results") or ())
    return Tokenization(token_count=int(result.get("token_count") or len(tokens)), tokens=tokens)


def training_job(body: Any) -> TrainingJob:
    """A ``TrainingJob``."""
    result = mapping(body)
    return TrainingJob(str(result.get("training_id") or ""), str(result.get("model_name") or ""))


def training_status(body: Any) -> TrainingStatus:
    """A ``TrainingStatusResponse``."""
    result = mapping(body)
    return TrainingStatus(
        training_id=str(result.get("training_id") or ""),
        state=_job_state(result.get("state")),
        model_name=str(result.get("model_name") or ""),
        submitted_at=str(result.get("submission_timestamp") or ""),
        completed_at=str(result.get("completion_timestamp") or ""),
        reasons=tuple(str(reason) for reason in result.get("reasons") or ()),
    )


def training_list(body: Any) -> list[TrainingStatus]:
    """A list of ``TrainingStatusResponse``."""
    return [training_status(entry) for entry in mapping(body).get("trainings") or ()]


def training_metrics(body: Any) -> list[TrainingMetric]:
    """The lines of a training's metrics."""
    return [_training_metric(entry) for entry in mapping(body).get("metrics") or ()]


def model_info(body: Any) -> ModelInfo:
    """A ``ModelInfo``."""
    result = mapping(body)
    size = result.get("size")
    return ModelInfo(
        name=str(result.get("name") or ""),
        is_loaded=bool(result.get("loaded")),
        module_id=str(result.get("module_id") or ""),
        path=str(result.get("model_path") or ""),
        size_bytes=None if size is None else int(size),
        metadata=dict(result.get("module_metadata") or {}) | dict(result.get("metadata") or {}),
    )


def model_list(body: Any) -> list[ModelInfo]:
    """A ``ModelInfoResponse``."""
    return [model_info(entry) for entry in mapping(body).get("models") or ()]


def _training_metric(entry: Any) -> TrainingMetric:
    line = mapping(entry)
    return TrainingMetric(
        name=str(line.get("name") or ""),
        step=int(line.get("step") or 0),
        value=float(line.get("value") or 0.0),
        num_steps=int(line.get("num_steps") or 0),
        epoch=int(line.get("epoch") or 0),
        fields=line,
    )


def _tokens(entries: Any) -> tuple[GeneratedToken, ...]:
    return tuple(
        GeneratedToken(entry.get("text") or "", entry.get("logprob"), entry.get("rank"))
        for entry in entries or ()
        if isinstance(entry, Mapping)
    )


def _finish_reason(value: Any) -> str:
    if isinstance(value, int) and 0 <= value < len(FINISH_REASONS):
        return FINISH_REASONS[value]
    return str(value) if value else FINISH_REASONS[0]


def _job_state(value: Any) -> JobState:
    word = _JOB_STATES[value] if isinstance(value, int) and value in range(6) else value
    try:
        return JobState(word)
    except ValueError as error:
        raise LuthierError(f"the server sent the unknown training state {value!r}") from error
