"""What reads texts for a model, whatever it makes of them."""

from __future__ import annotations

import asyncio
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from luthier.adapters.added_tokens import NO_TOKENS
from luthier.data_model.generation import Token, TokenizationResults
from luthier.errors import InvalidInputError
from luthier.inference.base import Engine
from luthier.inference.registry import engine_for, has_engine
from luthier.modules.environment import Environment
from luthier.resources.base_model import BaseModel
from luthier.resources.cleanup import run_soon
from luthier.resources.store import BaseModelLease
from luthier.training.data.encoding.prompt_encoding import encoder_for
from luthier.training.data.encoding.prompt_style import PromptStyle, PromptWriter

#: Tokenizing this many characters takes about a millisecond: too long for an event loop.
_MAX_CHARS_ON_LOOP = 4000


class TextRunner(ABC):
    """Reads texts with one base model and asks its engine. Thread-safe.

    Args:
        lease: The base model; the runner releases it, at the latest when it is collected.
        environment: Limits and engine options.
        style: How prompts are written.
        added_tokens: Text and id of tokens that the adapter has beside the base's.
        adapter_folder: Where the adapter was read from, if it was.
    """

    def __init__(
        self,
        lease: BaseModelLease,
        *,
        environment: Environment,
        style: PromptStyle,
        added_tokens: Mapping[str, int] = NO_TOKENS,
        adapter_folder: Path | None = None,
    ) -> None:
        self._lease = lease
        self._environment = environment
        self._adapter_folder = adapter_folder
        self._prompts = PromptWriter(style, lease.base_model, added_tokens)
        self._encoder = encoder_for(lease.base_model)
        self._finalizer = weakref.finalize(self, _release_elsewhere, lease)
        self._finalizer.atexit = False

    @property
    def base_model(self) -> BaseModel:
        """The base model, until ``release``."""
        return self._lease.base_model

    @property
    def engine(self) -> Engine:
        """What computes; shared by all who serve this base model."""
        return engine_for(self.base_model, options=self._environment.engine_options)

    @property
    def verbalizer(self) -> str:
        """The template."""
        return self._prompts.style.verbalizer

    @property
    def style(self) -> PromptStyle:
        """How prompts are written."""
        return self._prompts.style

    @abstractmethod
    def shelve(self) -> None:
        """Leave tuned tensors on disk until a request needs them; their folder must stay as it is.
        What was not read from a folder, or of which the engine needs more, stays."""

    def release(self) -> None:
        """Give the base model back; the runner is of no use afterwards. Idempotent."""
        self._finalizer.detach()
        self._lease.release()

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids that the model gets for a text.

        Args:
            text: The user's.

        Returns:
            Special tokens included, virtual tokens not.
        """
        return self._prompts.write(checked_text(text)).token_ids

    def run_tokenizer(self, text: str) -> TokenizationResults:
        """Split a text into the base model's tokens; the verbalizer is not applied.

        Args:
            text: The user's.

        Returns:
            Every token, those that the tokenizer adds included, and their count.

        Raises:
            InvalidInputError: If ``text`` is no string.
        """
        tokens = self._encoder.tokens(checked_text(text))
        return TokenizationResults(
            results=[Token(start=start, end=end, text=piece) for start, end, piece in tokens],
            token_count=len(tokens),
        )

    def submits_at_once(self, text: str) -> bool:
        """Whether a request with this text can be submitted on an event loop.

        Args:
            text: The user's.

        Returns:
            False if a thread must do it, for the text's length or because the engine has to be
            started.

        Raises:
            InvalidInputError: If ``text`` is no string.
        """
        return fits_on_loop(text) and has_engine(self.base_model)

    async def arun_tokenizer(self, text: str) -> TokenizationResults:
        """``run_tokenizer`` on an event loop.

        Args:
            text: The user's.

        Returns:
            As ``run_tokenizer``.
        """
        if fits_on_loop(text):
            return self.run_tokenizer(text)
        return await asyncio.to_thread(self.run_tokenizer, text)


def fits_on_loop(text: str) -> bool:
    """Whether a text is short enough to be tokenized on an event loop.

    Args:
        text: The user's.

    Returns:
        False if a thread must do it.

    Raises:
        InvalidInputError: If ``text`` is no string.
    """
    return len(checked_text(text)) <= _MAX_CHARS_ON_LOOP


def checked_text(text: object) -> str:
    """Refuse what is no text.

    Args:
        text: The user's.

    Returns:
        The same.

    Raises:
        InvalidInputError: If it is no string.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"'text' must be a string, got {type(text).__name__}")
    return text


def _release_elsewhere(lease: BaseModelLease) -> None:
    """Release in a thread: the collector may run anywhere, even inside the store's lock."""
    run_soon(lease.release)
