"""Every error Luthier raises on purpose.

    LuthierError
    ├── InvalidInputError            (ValueError)      the request cannot be right
    │   ├── ConfigError                                a server setting is unknown or ill-typed
    │   ├── UnknownKeyError                            a key nobody knows, with a suggestion
    │   ├── TrainingDataError                          a train record is unusable; names the row
    │   ├── VerbalizerError                            a template without a placeholder or field
    │   ├── NameNotAllowedError                        a name or path leaves the allowed roots
    │   └── ArtifactError                              a saved model or adapter is unreadable
    │       └── UnsafeWeightsError                     weights that only unpickling could read
    ├── NotFoundError                (LookupError)     nothing has this name
    │   ├── ModelNotFoundError
    │   ├── BaseModelNotFoundError
    │   └── JobNotFoundError
    ├── ConflictError                (RuntimeError)    the thing exists, but in the wrong state
    │   └── ReplacedError                              it was replaced while it was being used
    ├── CapacityError                (RuntimeError)    a limit is reached; try again later
    ├── NotSupportedError            (NotImplementedError)  understood, and not offered
    ├── TrainingFailedError          (RuntimeError)    the run went wrong: NaN loss, dead worker
    ├── CancelledError               (RuntimeError)    somebody asked to stop
    ├── ServerUnreachableError       (ConnectionError) a client got no answer, or half of one
    └── EngineError                  (RuntimeError)    our bug: the engine died or broke a promise
        └── EngineDownError                            it hangs, or died and starts again

Each class owns a stable ``code``: it appears in logs, in the gRPC trailer and in the HTTP body.
``runtime/errors.py`` maps classes to statuses; docs/errors.md is made from this tree.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LuthierError(Exception):
    """Base of every error that Luthier raises on purpose."""

    code = "internal"


class InvalidInputError(LuthierError, ValueError):
    """The request can never succeed as it stands; the message says what to change."""

    code = "invalid_input"


class ConfigError(InvalidInputError):
    """A server-level setting is unknown, ill-typed or out of range."""

    code = "invalid_config"


class UnknownKeyError(InvalidInputError):
    """A key that no option has; the message suggests the nearest known one."""

    code = "unknown_key"


class TrainingDataError(InvalidInputError):
    """A train record cannot be learned from; the message names its row."""

    code = "invalid_training_data"


class VerbalizerError(InvalidInputError):
    """A verbalizer has no placeholder, or names a field that the record lacks."""

    code = "invalid_verbalizer"


class NameNotAllowedError(InvalidInputError):
    """A model name or path is malformed or leaves the allowed roots."""

    code = "name_not_allowed"


class ArtifactError(InvalidInputError):
    """A saved model, adapter or checkpoint is corrupt, truncated or of another shape."""

    code = "invalid_artifact"


class UnsafeWeightsError(ArtifactError):
    """Weights that only unpickling could read, which the operator has not allowed."""

    code = "unsafe_weights"


class NotFoundError(LuthierError, LookupError):
    """Nothing is known under this name."""

    code = "not_found"


class ModelNotFoundError(NotFoundError):
    """No served model has this id."""

    code = "model_not_found"


class BaseModelNotFoundError(NotFoundError):
    """No base model has this name, here or (where downloads are allowed) on the hub."""

    code = "base_model_not_found"


class JobNotFoundError(NotFoundError):
    """No job has this id."""

    code = "job_not_found"


class ConflictError(LuthierError, RuntimeError):
    """The thing exists, but its state does not allow the request."""

    code = "conflict"


class ReplacedError(ConflictError):
    """What a request was to run with is gone; the same request finds what came in its place."""

    code = "replaced"


class CapacityError(LuthierError, RuntimeError):
    """A limit is reached now; the same request may succeed later.

    Args:
        message: What is full, and its limit.
        retry_after_seconds: When to try again.
    """

    code = "capacity"

    def __init__(self, message: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotSupportedError(LuthierError, NotImplementedError):
    """The request is understood, but this model or build does not offer it."""

    code = "not_supported"


class TrainingFailedError(LuthierError, RuntimeError):
    """A training run cannot go on: a loss that is not finite, a worker that died."""

    code = "training_failed"


class CancelledError(LuthierError, RuntimeError):
    """The work was stopped because somebody asked for it."""

    code = "cancelled"


class ServerUnreachableError(LuthierError, ConnectionError):
    """Nobody answers under the server's address, or the connection broke. Raised by clients."""

    code = "server_unreachable"


class EngineError(LuthierError, RuntimeError):
    """The inference engine failed; a bug of ours."""

    code = "engine_failed"


class EngineDownError(EngineError):
    """An inference engine does not serve now: a step of it hangs, its process has died, or an
    adapter cannot be read.

    Args:
        message: What hangs, or what it died of.
        retry_after_seconds: When to try again.
    """

    code = "engine_down"

    def __init__(self, message: str, *, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


def error_class(code: str) -> type[LuthierError]:
    """The nearest class to the root with this code: what another process raised.

    Args:
        code: A class's; ``LuthierError`` for one that none has.

    Returns:
        The class.

    Example:
        >>> error_class("not_found").__name__
        'NotFoundError'
    """
    kinds = [LuthierError]
    for kind in kinds:
        if kind.code == code:
            return kind
        kinds += kind.__subclasses__()
    return LuthierError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of a message that suggests the nearest known name, or nothing.

    Example:
        >>> did_you_mean("http_prot", ["http_port", "grpc_port"])
        ", did you mean 'http_port'?"
        >>> did_you_mean("zzz", ["http_port"])
        ''
    """
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {nearest[0]!r}?" if nearest else ""
