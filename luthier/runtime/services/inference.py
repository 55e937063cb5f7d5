"""Text in, text or classes out: finds the model, asks it, and lets go of it again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from caikit.interfaces.nlp.data_model import ClassificationResults

from luthier.data_model.generation import (
    GeneratedTextResult,
    GeneratedTextStreamResult,
    TokenizationResults,
)
from luthier.errors import InvalidInputError, NotSupportedError
from luthier.runtime.registry.registry import ModelRegistry
from luthier.runtime.registry.served_module import (
    ClassifyingModule,
    GeneratingModule,
    ServedModule,
)


class InferenceService:
    """Generation, classification and tokenization with any served model.

    Cancelling the task of a call frees its row; so does closing a stream.

    Args:
        registry: Finds and loads the models.
    """

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    async def generate(
        self, model_id: str, text: str, sampling: Mapping[str, Any]
    ) -> GeneratedTextResult:
        """Generate text, whole.

        Args:
            model_id: A served model's name.
            text: What to generate from; may be empty.
            sampling: Fields of ``SamplingParams`` by name; what is absent has its default.

        Returns:
            The text and what was asked for about it.

        Raises:
            LuthierError: If there is no such model, a parameter is out of range, the engine is
                full or the row fails.
        """
        return await self._registry.run(
            _given(model_id), lambda module: _writer(model_id, module).arun(text, **sampling)
        )

    async def generate_many(
        self, model_id: str, text: str, n: int, sampling: Mapping[str, Any]
    ) -> list[GeneratedTextResult]:
        """Generate several answers to the same text.

        Args:
            model_id: A served model's name.
            text: What to generate from; may be empty.
            n: How many.
            sampling: As for ``generate``.

        Returns:
            ``n`` results, each with its seed.

        Raises:
            LuthierError: As for ``generate``; if ``n`` is out of range, or > 1 without sampling.
        """
        return await self._registry.run(
            _given(model_id),
            lambda module: _writer(model_id, module).arun_many(text, n, **sampling),
        )

    async def stream(
        self, model_id: str, text: str, sampling: Mapping[str, Any]
    ) -> AsyncGenerator[GeneratedTextStreamResult]:
        """Generate text step by step. Close the generator when the reader is gone.

        Args:
            model_id: A served model's name.
            text: What to generate from; may be empty.
            sampling: As for ``generate``.

        Yields:
            Pieces of the text; the last one has the finish reason.

        Raises:
            LuthierError: As for ``generate``, mostly before the first piece.
        """
        results = self._registry.stream(
            _given(model_id),
            lambda module: _writer(model_id, module).arun_stream_out(text, **sampling),
        )
        async with aclosing(results):
            async for result in results:
                yield result

    async def classify(self, model_id: str, text: str) -> ClassificationResults:
        """Tell the class of a text.

        Args:
            model_id: A served model's name.
            text: What to classify.

        Returns:
            Every class with its probability, the most probable first.

        Raises:
            LuthierError: If there is no such model, it tells no classes apart, the engine is full
                or the row fails.
        """
        return await self._registry.run(
            _given(model_id), lambda module: _classifier(model_id, module).aclassify(text)
        )

    async def tokenize(self, model_id: str, text: str) -> TokenizationResults:
        """Count a text's tokens as the model would see them.

        Args:
            model_id: A served model's name.
            text: Any text.

        Returns:
            The count, and the tokens where the model reports them.

        Raises:
            LuthierError: If there is no such model.
        """
        return await self._registry.run(
            _given(model_id), lambda module: module.arun_tokenizer(text)
        )


def _writer(model_id: str, module: ServedModule) -> GeneratingModule:
    if not isinstance(module, GeneratingModule):
        raise NotSupportedError(
            f"model {model_id!r} ({module.MODULE_NAME}) writes no text; it tells classes apart"
        )
    return module


def _classifier(model_id: str, module: ServedModule) -> ClassifyingModule:
    if not isinstance(module, ClassifyingModule):
        raise NotSupportedError(
            f"model {model_id!r} ({module.MODULE_NAME}) tells no classes apart; it writes text"
        )
    return module


def _given(model_id: str) -> str:
    if not model_id:
        raise InvalidInputError("Please provide model_id in payload")
    return model_id
