"""Text in, classes out: what a text classification module does when it runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

from caikit.interfaces.nlp.data_model import ClassificationResult, ClassificationResults

from luthier.adapters.base import Adapter
from luthier.adapters.heads.classification_head import ClassificationHead
from luthier.adapters.storage import load_adapter
from luthier.adapters.stored_adapter import StoredAdapter
from luthier.data_model.caller import current_caller
from luthier.errors import EngineError, InvalidInputError, NotSupportedError
from luthier.inference.base import ClassificationRequest, TokenStream
from luthier.modules.environment import Environment
from luthier.modules.text_runner import TextRunner
from luthier.resources.store import BaseModelLease
from luthier.training.data.encoding.prompt_style import PromptStyle

DEFAULT_STYLE = PromptStyle()


class TextClassifier(TextRunner):
    """Classifies texts with one head on one base model. Thread-safe.

    Args:
        lease: The base model; the classifier releases it, at the latest when it is collected.
        environment: Limits and engine options.
        head: With what is tuned below it.
        style: How the text that the model reads is written.
        adapter_folder: Where the head was read from, if it was.
    """

    def __init__(
        self,
        lease: BaseModelLease,
        *,
        environment: Environment,
        head: ClassificationHead,
        style: PromptStyle = DEFAULT_STYLE,
        adapter_folder: Path | None = None,
    ) -> None:
        super().__init__(lease, environment=environment, style=style, adapter_folder=adapter_folder)
        self._head: ClassificationHead | None = head
        self._labels = head.class_labels
        self._weight = head.score.detach().to("cpu", copy=True)
        self._body: Adapter | None = None if head.body is None else head.body.served()

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

    def shelve(self) -> None:
        """Leave what is below the head on disk until a request needs it; see ``TextRunner``."""
        body, folder = self._body, self._adapter_folder
        if body is not None and folder is not None and self.engine.keeps_deltas(body):
            self._body = StoredAdapter(body, folder, base_model=self.base_model)
            self._head = None

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
        if self.submits_at_once(text):
            stream = self._submit(text)
        else:
            stream = await asyncio.to_thread(self._submit, text)
        try:
            return self._results([chunk.scores async for chunk in stream])
        finally:
            stream.cancel()

    def _submit(self, text: str) -> TokenStream:
        token_ids = self.encode(text)
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
