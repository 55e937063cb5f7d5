"""Text in, classes out: what a text classification module does when it runs."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Sequence
from pathlib import Path

from caikit.interfaces.nlp.data_model import ClassificationResult, ClassificationResults

from luthier.adapters.base import Adapter
from luthier.adapters.heads.classification_head import ClassificationHead
from luthier.adapters.storage import load_adapter
from luthier.adapters.stored_adapter import StoredAdapter
from luthier.data_model.caller import current_caller
from luthier.data_model.generation import Token, TokenizationResults
from luthier.errors import EngineError, InvalidInputError, NotSupportedError
from luthier.inference.base import ClassificationRequest, Engine, TokenStream
from luthier.inference.registry import engine_for
from luthier.modules.environment import Environment
from luthier.resources.base_model import BaseModel
from luthier.resources.cleanup import run_soon
from luthier.resources.store import BaseModelLease
from luthier.training.data.encoding.prompt_encoding import encoder_for
from luthier.training.data.encoding.prompt_style import PromptStyle, PromptWriter
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER

#: Tokenizing this many characters takes about a millisecond: too long for an event loop.
_MAX_CHARS_ON_LOOP = 4000


class TextClassifier:
    """Classifies texts with one head on one base model. Thread-safe.

    Args:
        lease: The base model; the classifier releases it, at the latest when it is collected.
        environment: Limits and engine options.
        head: With what is tuned below it.
        verbalizer: Template from the user's text to what the model reads.
        adapter_folder: Where the head was read from, if it was.
    """

    def __init__(
        self,
        lease: BaseModelLease,
        *,
        environment: Environment,
        head: ClassificationHead,
        verbalizer: str = DEFAULT_VERBALIZER,
        adapter_folder: Path | None = None,
    ) -> None:
        self._lease = lease
        self._environment = environment
        self._head: ClassificationHead | None = head
        self._adapter_folder = adapter_folder
        self._labels = head.class_labels
        self._weight = head.score.detach().to("cpu", copy=True)
        self._body: Adapter | None = None if head.body is None else head.body.served()
        self._prompts = PromptWriter(PromptStyle(verbalizer), lease.base_model)
        self._encoder = encoder_for(lease.base_model)
        self._finalizer = weakref.finalize(self, _release_elsewhere, lease)
        self._finalizer.atexit = False

    @property
    def base_model(self) -> BaseModel:
        """The base model, until ``release``."""
        return self._lease.base_model

    @property
    def engine(self) -> Engine:
        """What gives the scores; shared by all who serve this base model."""
        return engine_for(self.base_model, options=self._environment.engine_options)

    @property
    def head(self) -> ClassificationHead:
        """The head with what is below it; read again if it was left on disk."""
        if self._head is not None:
            return self._head
        assert self._adapter_folder is not None
        return require_head(load_adapter(self._adapter_folder, base_model=self.base_model))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the head's order."""
        return self._labels

    @property
    def verbalizer(self) -> str:
        """The template."""
        return self._prompts.style.verbalizer

    def shelve(self) -> None:
        """Leave what is below the head on disk until a request needs it; the folder must stay as it
        is. One that was not read from a folder, or of which the engine needs more, stays."""
        body, folder = self._body, self._adapter_folder
        if body is not None and folder is not None and self.engine.keeps_deltas(body):
            self._body = StoredAdapter(body, folder, base_model=self.base_model)
            self._head = None

    def release(self) -> None:
        """Give the base model back; the classifier is of no use afterwards. Idempotent."""
        self._finalizer.detach()
        self._lease.release()

    def run(self, text: str) -> ClassificationResults:
        """Classify, and wait for it.

        Args:
            text: The user's.

        Returns:
            Every class with its probability, the most probable first.

        Raises:
            LuthierError: If the text cannot be, or the engine fails or is full.
        """
        stream = self._submit(text)
        try:
            return self._results([chunk.scores for chunk in stream])
        finally:
            stream.cancel()

    async def arun(self, text: str) -> ClassificationResults:
        """``run`` on an event loop: nothing blocks, and cancelling the task frees the row.

        Args:
            text: The user's.

        Returns:
            As ``run``.
        """
        if len(_checked_text(text)) <= _MAX_CHARS_ON_LOOP:
            stream = self._submit(text)
        else:
            stream = await asyncio.to_thread(self._submit, text)
        try:
            return self._results([chunk.scores async for chunk in stream])
        finally:
            stream.cancel()

    def run_tokenizer(self, text: str) -> TokenizationResults:
        """Split a text into the base model's tokens; the verbalizer is not applied.

        Args:
            text: The user's.

        Returns:
            Every token, those that the tokenizer adds included, and their count.
        """
        tokens = self._encoder.tokens(_checked_text(text))
        return TokenizationResults(
            results=[Token(start=start, end=end, text=piece) for start, end, piece in tokens],
            token_count=len(tokens),
        )

    async def arun_tokenizer(self, text: str) -> TokenizationResults:
        """``run_tokenizer`` on an event loop.

        Args:
            text: The user's.

        Returns:
            As ``run_tokenizer``.
        """
        if len(_checked_text(text)) <= _MAX_CHARS_ON_LOOP:
            return self.run_tokenizer(text)
        return await asyncio.to_thread(self.run_tokenizer, text)

    def _submit(self, text: str) -> TokenStream:
        token_ids = self._prompts.write(_checked_text(text)).token_ids
        longest = self._environment.max_prompt_tokens
        if len(token_ids) > longest:
            raise InvalidInputError(
                f"the text has {len(token_ids)} tokens, at most {longest} are allowed"
            )
        caller = current_caller()
        return self.engine.submit(
            ClassificationRequest(
                token_ids,
                self._weight,
                adapter=self._body,
                tenant=caller.tenant,
                priority=caller.priority,
            )
        )

    def _results(self, answers: Sequence[tuple[float, ...]]) -> ClassificationResults:
        if not answers or not answers[-1]:
            raise EngineError("the engine was closed before the text was classified")
        probabilities = _softmax(answers[-1])
        # Equal ones keep the order of the classes.
        ranked = sorted(
            zip(self._labels, probabilities, strict=True), key=lambda pair: pair[1], reverse=True
        )
        return ClassificationResults(
            results=[ClassificationResult(label=label, score=score) for label, score in ranked]
        )


def require_head(adapter: Adapter) -> ClassificationHead:
    """Refuse an adapter that tells no classes apart.

    Args:
        adapter: Any.

    Returns:
        The same.

    Raises:
        NotSupportedError: If it is no classification head.
    """
    if not isinstance(adapter, ClassificationHead):
        raise NotSupportedError(
            f"module HeadTuning runs classification heads, this adapter is {adapter.method}"
        )
    return adapter


def _softmax(scores: Sequence[float]) -> list[float]:
    largest = max(scores)
    weights = [math.exp(score - largest) for score in scores]
    return [weight / sum(weights) for weight in weights]


def _release_elsewhere(lease: BaseModelLease) -> None:
    """Release in a thread: the collector may run anywhere, even inside the store's lock."""
    run_soon(lease.release)


def _checked_text(text: object) -> str:
    if not isinstance(text, str):
        raise InvalidInputError(f"'text' must be a string, got {type(text).__name__}")
    return text
