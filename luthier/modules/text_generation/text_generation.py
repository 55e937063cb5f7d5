"""Full fine-tuning of a base model, and the bare base model itself, as a module."""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

from collections.abc import Iterable
from typing import Any, Optional, Union

from caikit.core import ModuleBase, module
from caikit.core.data_model import DataStream
from caikit.interfaces.nlp.tasks import TextGenerationTask, TokenizationTask

from luthier.data_model.generation import (
    GeneratedTextResult,
    GeneratedTextStreamResult,
    TokenizationResults,
)
from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.data_model.sampling import SamplingParams
from luthier.modules.text_generation.task_signature import with_sampling_parameters


# NOTE: the first task names the train rpc; the order is part of the wire.
@module(
    id="f9181353-4ccf-4572-bd1e-f12bcda26792",
    name="Text Generation",
    version="0.1.0",
    tasks=[TextGenerationTask, TokenizationTask],
)
class TextGeneration(ModuleBase):
    @classmethod
    def train(
        cls,
        base_model: str,
        train_stream: Union[
            DataStream[GenerationTrainRecord], DataStream[ClassificationTrainRecord]
        ],
        torch_dtype: Optional[str] = None,
        max_source_length: Optional[int] = 256,
        max_target_length: Optional[int] = 128,
        batch_size: Optional[int] = 8,
        num_epochs: Optional[int] = 5,
        accumulate_steps: Optional[int] = 32,
        random_seed: Optional[int] = 73,
        lr: Optional[float] = 2e-5,
        use_iterable_dataset: Optional[bool] = True,
        **kwargs: Any,
    ) -> "TextGeneration":
        raise NotImplementedError

    @TextGenerationTask.taskmethod()
    @with_sampling_parameters
    def run(self, text: str, sampling: SamplingParams) -> GeneratedTextResult:
        raise NotImplementedError

    @TextGenerationTask.taskmethod(output_streaming=True)
    @with_sampling_parameters
    def run_stream_out(
        self, text: str, sampling: SamplingParams
    ) -> Iterable[GeneratedTextStreamResult]:
        raise NotImplementedError

    @TokenizationTask.taskmethod()
    def run_tokenizer(self, text: str) -> TokenizationResults:
        raise NotImplementedError
