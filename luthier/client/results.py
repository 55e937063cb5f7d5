"""What the API answers, as frozen types. Light on purpose: neither caikit nor torch is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class JobState(StrEnum):
    """Where a training stands; the words are those of the wire."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"
    ERRORED = "ERRORED"

    @property
    def is_final(self) -> bool:
        """True once the state can no longer change."""
        return self in (JobState.COMPLETED, JobState.CANCELED, JobState.ERRORED)


@dataclass(frozen=True)
class GeneratedToken:
    """One token of a result.

    Args:
        text: The vocabulary's piece.
        logprob: Natural log of its probability, if asked for.
        rank: 1 for the likeliest, if asked for.
    """

    text: str
    logprob: float | None = None
    rank: int | None = None


@dataclass(frozen=True)
class GeneratedText:
    """A whole answer.

    Args:
        text: Generated text, with the prompt in front where ``preserve_input_text`` asked for it.
        finish_reason: ``EOS_TOKEN``, ``MAX_TOKENS``, ``STOP_SEQUENCE``, ``TIME_LIMIT`` …
        generated_token_count: Generated tokens, end of sequence included.
        input_token_count: Prompt tokens.
        seed: Seed of the sampling, if there was one.
        tokens: Generated tokens, if asked for.
        input_tokens: Prompt tokens, if asked for.
    """

    text: str
    finish_reason: str
    generated_token_count: int = 0
    input_token_count: int = 0
    seed: int | None = None
    tokens: tuple[GeneratedToken, ...] = ()
    input_tokens: tuple[GeneratedToken, ...] = ()


@dataclass(frozen=True)
class GeneratedChunk:
    """One message of a stream. Joining ``text`` over a stream gives the generated text.

    Args:
        text: Text that this message adds.
        finish_reason: ``NOT_FINISHED`` until the last message, or where none is sent.
        generated_token_count: Generated tokens so far.
        input_token_count: Prompt tokens.
        seed: Seed of the sampling, if there was one.
        tokens: Tokens that this message adds, if asked for.
        input_tokens: Prompt tokens, in the first message, if asked for.
    """

    text: str
    finish_reason: str = "NOT_FINISHED"
    generated_token_count: int = 0
    input_token_count: int = 0
    seed: int | None = None
    tokens: tuple[GeneratedToken, ...] = ()
    input_tokens: tuple[GeneratedToken, ...] = ()


@dataclass(frozen=True)
class LabelScore:
    """A class of texts.

    Args:
        label: Its name.
        score: Its probability.
    """

    label: str
    score: float


@dataclass(frozen=True)
class Tokenization:
    """A text in tokens.

    Args:
        token_count: Tokens, special ones included.
        tokens: The pieces, where the server reports them.
    """

    token_count: int
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingJob:
    """A training that the server accepted.

    Args:
        training_id: Names the run.
        model_name: Names what it makes, once completed.
    """

    training_id: str
    model_name: str


@dataclass(frozen=True)
class TrainingStatus:
    """Where a training stands.

    Args:
        training_id: Names the run.
        state: The job's state.
        model_name: What it makes, where the server says so.
        submitted_at: ISO 8601 time of acceptance, or "".
        completed_at: ISO 8601 time of its end, or "" while it has not ended.
        reasons: Why it is ERRORED.
    """

    training_id: str
    state: JobState
    model_name: str = ""
    submitted_at: str = ""
    completed_at: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingMetric:
    """One line of a training's metrics.

    Args:
        name: What was measured: ``loss``, ``validation_loss``.
        step: Updates done so far.
        value: The number.
        num_steps: Updates of the whole run; 0 where unknown.
        epoch: From 0.
        fields: The whole line.
    """

    name: str
    step: int
    value: float
    num_steps: int = 0
    epoch: int = 0
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelInfo:
    """A model that the server has.

    Args:
        name: Its id in requests.
        is_loaded: True while it is in memory.
        module_id: The module that runs it.
        path: Its folder on the server, where the server says so.
        size_bytes: Bytes on disk; None where unknown.
        metadata: What else the server says.
    """

    name: str
    is_loaded: bool
    module_id: str = ""
    path: str = ""
    size_bytes: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
