"""The words for how a LoRA starts, and what each of them needs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from luthier.data_model.options.quantisation import NONE
from luthier.errors import InvalidInputError, did_you_mean

DEFAULT_INIT = "default"
PISSA_INIT = "pissa"
LOFTQ_INIT = "loftq"
#: Starts that look at the first batches of the training.
MEASURED_INITS = ("eva", "corda", "lora_ga")
INITIALISATIONS = (
    DEFAULT_INIT,
    "gaussian",
    "random",
    PISSA_INIT,
    "pissa_niter_16",
    "olora",
    "orthogonal",
    "mica",
    LOFTQ_INIT,
    *MEASURED_INITS,
)
_PISSA_ITERATIONS = re.compile(r"pissa_niter_([0-9]{1,3})")


@dataclass(frozen=True)
class PissaInit:
    """PiSSA's decomposition.

    Args:
        iterations: Of the randomised one; None decomposes fully.
    """

    iterations: int | None


def parse_initialisation(word: str) -> str | PissaInit:
    """What an initialisation's word means.

    Args:
        word: As in ``LoraConfig.initialisation``.

    Returns:
        The word itself, or for PiSSA how to decompose.

    Raises:
        InvalidInputError: If there is no such start.
    """
    if word == PISSA_INIT:
        return PissaInit(None)
    fast = _PISSA_ITERATIONS.fullmatch(word)
    if fast:
        return PissaInit(int(fast.group(1)))
    if word in INITIALISATIONS:
        return word
    raise InvalidInputError(
        f"'initialisation' must be one of {', '.join(INITIALISATIONS)}, got {word[:80]!r}"
        + did_you_mean(word[:80], INITIALISATIONS)
    )


def require_loftq_base(initialisation: str, *, quantization: str, serve_quantized: bool) -> None:
    """Refuse ``loftq`` where the deltas would not stand beside the rounding that they make up for.

    Args:
        initialisation: Of the LoRA.
        quantization: Of the base model while it is tuned.
        serve_quantized: Whether the saved model asks for the same.

    Raises:
        InvalidInputError: Saying what is missing.
    """
    if initialisation != LOFTQ_INIT:
        return
    if quantization == NONE:
        raise InvalidInputError(
            "initialisation 'loftq' makes up for the rounding of a quantised base model; set "
            "'quantization'"
        )
    if not serve_quantized:
        raise InvalidInputError(
            "initialisation 'loftq' gives deltas for the quantised base model alone; set "
            "'serve_quantized'"
        )
