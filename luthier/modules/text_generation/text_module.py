"""What both text generation modules are, beside how they are trained and saved.

caikit wants each task method written in the module's own class, so ``run``, ``run_stream_out`` and
``run_tokenizer`` are there, one line each; the rest is here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Self

from luthier.adapters.base import Adapter
from luthier.data_model.generation import (
    GeneratedTextResult,
    GeneratedTextStreamResult,
    TokenizationResults,
)
from luthier.data_model.sampling import SamplingParams
from luthier.modules.environment import Environment
from luthier.modules.text_generation.conformance import check_conformance
from luthier.modules.text_generation.generator import TextGenerator
from luthier.modules.text_generation.history import NO_HISTORY, LogLine, TrainingHistory
from luthier.resources.base_model import BaseModel
from luthier.resources.store import BaseModelLease

AnyPath = str | os.PathLike[str]
AnyBaseModel = str | os.PathLike[str] | BaseModel


class TextModule(ABC):
    """A base model with or without an adapter, ready to generate. Thread-safe.

    No caikit class by itself: caikit wraps a ``load`` defined in one, reads the config a second
    time and carries all of it into the next ``save``.

    Args:
        generator: Does the work.
        history: How it was trained.
    """

    def __init__(self, generator: TextGenerator, *, history: TrainingHistory = NO_HISTORY) -> None:
        super().__init__()
        self.generator = generator
        self.history = history

    @classmethod
    def load(cls, model_path: AnyPath, base_model: AnyBaseModel | None = None) -> Self:
        """Read a model that ``save`` or caikit-nlp wrote.

        Args:
            model_path: The model's folder.
            base_model: The base model of a tuned prompt, where its name does not find it here.

        Returns:
            The module. A tuned prompt shares its base model's one copy.

        Raises:
            ArtifactError: If the folder is incomplete, damaged or something else.
            BaseModelNotFoundError: If the base model is not here.
        """
        return cls._load_folder(Path(model_path), base_model)

    @classmethod
    @abstractmethod
    def _load_folder(cls, folder: Path, base_model: AnyBaseModel | None) -> Self:
        """Do what ``load`` says."""

    @property
    def base_model(self) -> BaseModel:
        """The frozen base model."""
        return self.generator.base_model

    @property
    def adapter(self) -> Adapter | None:
        """The tuned delta."""
        return self.generator.adapter

    @property
    def training_logs(self) -> tuple[LogLine, ...]:
        """The course of the training: ``{"name": "loss", "data": {"step", "value", ...}}``."""
        return self.history.lines

    @property
    def verbalizer(self) -> str:
        """The template from the user's text to the prompt."""
        return self.generator.verbalizer

    def check_conformance(self) -> None:
        """Compare what the engine gives with this adapter to what the training code gives.

        Raises:
            ArtifactError: If they differ, or the adapter has no effect or gives NaN.
        """
        if self.adapter is not None:
            check_conformance(self.base_model, self.adapter, self.generator.engine)

    def shelve(self) -> None:
        """Leave tuned deltas on disk until a request needs them, for whoever holds many models.

        The folder that the model was loaded from must stay as it is.
        """
        self.generator.shelve()

    async def arun(self, text: str, **sampling: Any) -> GeneratedTextResult:
        """``run`` on an event loop; cancelling the task frees the row.

        Args:
            text: The user's.
            **sampling: Fields of ``SamplingParams``.

        Returns:
            As ``run``.
        """
        return await self.generator.arun(text, SamplingParams.from_arguments(sampling))

    def run_many(self, text: str, n: int, **sampling: Any) -> list[GeneratedTextResult]:
        """Generate several answers to the same text, side by side.

        Args:
            text: The user's.
            n: How many; more than one only with ``decoding_method="SAMPLING"``.
            **sampling: Fields of ``SamplingParams``. With a ``seed`` the answers have that and the
                numbers following it.

        Returns:
            ``n`` results; each is that of ``run`` with the seed that it reports.

        Raises:
            LuthierError: If a parameter or the text cannot be, or the engine fails or is full.
        """
        return self.generator.run_many(text, SamplingParams.from_arguments(sampling), n=n)

    async def arun_many(self, text: str, n: int, **sampling: Any) -> list[GeneratedTextResult]:
        """``run_many`` on an event loop; cancelling the task frees the rows.

        Args:
            text: The user's.
            n: How many.
            **sampling: Fields of ``SamplingParams``.

        Returns:
            As ``run_many``.
        """
        return await self.generator.arun_many(text, SamplingParams.from_arguments(sampling), n=n)

    def arun_stream_out(
        self, text: str, **sampling: Any
    ) -> AsyncGenerator[GeneratedTextStreamResult]:
        """``run_stream_out`` on an event loop; closing the iterator frees the row.

        Args:
            text: The user's.
            **sampling: Fields of ``SamplingParams``.

        Returns:
            The pieces.
        """
        return self.generator.arun_stream_out(text, SamplingParams.from_arguments(sampling))

    async def arun_tokenizer(self, text: str) -> TokenizationResults:
        """``run_tokenizer`` on an event loop.

        Args:
            text: The user's.

        Returns:
            As ``run_tokenizer``.
        """
        return await self.generator.arun_tokenizer(text)

    def release(self) -> None:
        """Give the base model back; the module is of no use afterwards. Idempotent."""
        self.generator.release()


def lease_base_model(
    base_model: AnyBaseModel, here: Environment, *, quantization: str | None = None
) -> BaseModelLease:
    """A lease on what a Python caller names or brings.

    Args:
        base_model: A name, a path anywhere, or a resource in memory.
        here: Whose store keeps the shared copy.
        quantization: How weights are to be held; a resource in memory stays as it is.

    Returns:
        The lease; its owner releases it.
    """
    if isinstance(base_model, BaseModel):
        return BaseModelLease(base_model, here.base_models, None)
    return here.base_models.acquire(base_model, quantization=quantization)


def lease_saved_base_model(
    saved_name: str,
    brought: AnyBaseModel | None,
    here: Environment,
    *,
    dtype: str | None = None,
    quantization: str | None = None,
) -> BaseModelLease:
    """A lease on the caller's base model, or on the one that a saved model names.

    That name is a stranger's: it may not reach beyond what the operator allows.

    Args:
        saved_name: From the saved model's config.
        brought: By the caller of ``load``, who may name any path.
        here: Whose store keeps the shared copy.
        dtype: Precision for the saved name; None is the server's.
        quantization: How the saved name's weights are to be held; None is as they are.

    Returns:
        The lease; its owner releases it.
    """
    if brought is not None:
        return lease_base_model(brought, here, quantization=quantization)
    return here.base_models.acquire(
        saved_name, dtype=dtype, quantization=quantization, from_request=True
    )
