"""What all text generation modules are, beside how they are trained and saved."""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from caikit.interfaces.nlp.tasks import TextGenerationTask, TokenizationTask

from luthier.adapters.base import Adapter
from luthier.data_model.generation import (
    GeneratedTextResult,
    GeneratedTextStreamResult,
    ProducerId,
)
from luthier.data_model.sampling import SamplingParams
from luthier.modules.environment import Environment
from luthier.modules.saving.saved_model import (
    ARTIFACTS_FOLDER,
    CLEAN_SPACES_KEY,
    style_config,
    wants_clean_spaces,
)
from luthier.modules.text_generation.conformance import check_conformance
from luthier.modules.text_generation.generator import TextGenerator
from luthier.modules.text_generation.task_signature import with_sampling_parameters
from luthier.modules.tuned_module import NO_CONFIG, TunedModule
from luthier.resources.store import BaseModelLease
from luthier.training.data.encoding.prompt_style import PromptStyle


class TextModule(TunedModule[TextGenerator]):
    """A base model with or without an adapter, ready to generate. Thread-safe."""

    TASK_METHODS: ClassVar[Mapping[str, Callable[[Any], Any]]] = MappingProxyType(
        {
            "run": TextGenerationTask.taskmethod(),
            "run_stream_out": TextGenerationTask.taskmethod(output_streaming=True),
            "run_tokenizer": TokenizationTask.taskmethod(),
        }
    )
    #: caikit's decorator gives it.
    PRODUCER_ID: ClassVar[ProducerId]

    @classmethod
    def _make_runner(
        cls,
        lease: BaseModelLease,
        here: Environment,
        *,
        adapter: Adapter | None = None,
        style: PromptStyle | None = None,
        adapter_folder: Path | None = None,
        config: Mapping[str, Any] = NO_CONFIG,
    ) -> TextGenerator:
        return TextGenerator(
            lease,
            producer_id=cls.PRODUCER_ID,
            environment=here,
            adapter=adapter,
            style=style,
            adapter_folder=adapter_folder,
            cleans_up_spaces=wants_clean_spaces(config),
        )

    def _text_config(self) -> dict[str, Any]:
        """What a saved model says of how it writes."""
        return {
            CLEAN_SPACES_KEY: self.generator.cleans_up_spaces,
            "eos_token": self.base_model.tokenizer.eos_token,
        }

    def _whole_config(self) -> dict[str, Any]:
        """What a model says that is saved whole, with its base's weights."""
        return {
            "artifact_path": ARTIFACTS_FOLDER,
            "base_model_name": self.base_model.name,
            "torch_dtype": str(self.base_model.dtype),
            **style_config(self.generator.style),
            **self._text_config(),
        }

    @property
    def generator(self) -> TextGenerator:
        """What does the work."""
        return self._runner

    @property
    def adapter(self) -> Adapter | None:
        """The tuned delta."""
        return self.generator.adapter

    def check_conformance(self) -> None:
        """Compare what the engine gives with this adapter to what the training code gives.

        Raises:
            ArtifactError: If they differ, or the adapter has no effect or gives NaN.
        """
        if self.adapter is not None:
            check_conformance(self.base_model, self.adapter, self.generator.engine)

    @with_sampling_parameters
    def run(self, text: str, sampling: SamplingParams) -> GeneratedTextResult:
        """Generate, and wait for the whole text.

        Args:
            text: Goes into the verbalizer as ``input``.
            sampling: Given as separate arguments: the fields of ``SamplingParams``.

        Returns:
            The text, counts and finish reason.
        """
        return self.generator.run(text, sampling)

    @with_sampling_parameters
    def run_stream_out(
        self, text: str, sampling: SamplingParams
    ) -> Iterable[GeneratedTextStreamResult]:
        """Generate, piece by piece; joined, the pieces are the text of ``run``.

        Args:
            text: Goes into the verbalizer as ``input``.
            sampling: Given as separate arguments: the fields of ``SamplingParams``.

        Returns:
            The pieces as they come; dropping the iterator ends the generation.
        """
        return self.generator.run_stream_out(text, sampling)

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
