"""What the runtime asks of a module that it serves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from caikit.interfaces.nlp.data_model import ClassificationResults

from luthier.data_model.generation import (
    GeneratedTextResult,
    GeneratedTextStreamResult,
    TokenizationResults,
)


class ServedModule(Protocol):
    """A loaded model, whatever it does. Thread-safe; any number of calls may run at once."""

    #: caikit's id and name of the module's class.
    MODULE_ID: str
    MODULE_NAME: str

    async def arun_tokenizer(self, text: str) -> TokenizationResults:
        """Count the text's tokens."""

    def release(self) -> None:
        """Give back what the module holds, its lease of the base model above all."""


@runtime_checkable
class GeneratingModule(Protocol):
    """A model that writes text."""

    async def arun(self, text: str, **sampling: Any) -> GeneratedTextResult:
        """Generate; cancelling the task frees the row."""

    async def arun_many(self, text: str, n: int, **sampling: Any) -> list[GeneratedTextResult]:
        """Generate ``n`` answers; cancelling the task frees their rows."""

    def arun_stream_out(
        self, text: str, **sampling: Any
    ) -> AsyncGenerator[GeneratedTextStreamResult]:
        """Generate, step by step; closing the iterator frees the row."""


@runtime_checkable
class ClassifyingModule(Protocol):
    """A model that tells classes of texts apart."""

    async def aclassify(self, text: str) -> ClassificationResults:
        """Classify; cancelling the task frees the row."""


#: Reads a saved model. Blocks; thread-safe.
LoadModule = Callable[[Path], ServedModule]
