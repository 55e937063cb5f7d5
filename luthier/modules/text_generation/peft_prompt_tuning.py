"""Prompt tuning of a frozen base model: the module that caikit-nlp's clients train and run."""

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
from luthier.data_model.tuning import TuningConfig, TuningType
from luthier.modules.text_generation.task_signature import with_sampling_parameters


# NOTE: the first task names the train rpc; the order is part of the wire.
@module(
    id="6655831b-960a-4dc5-8df4-867026e2cd41",
    name="Peft generation",
    version="0.1.0",
    tasks=[TextGenerationTask, TokenizationTask],
)
class PeftPromptTuning(ModuleBase):
    @classmethod
    def train(
        cls,
        base_model: str,
        train_stream: Union[
            DataStream[GenerationTrainRecord], DataStream[ClassificationTrainRecord]
        ],
        tuning_config: TuningConfig,
        val_stream: Optional[DataStream[GenerationTrainRecord]] = None,
        device: Optional[str] = "__DETECT__",
        tuning_type: Optional[Union[str, TuningType]] = "PROMPT_TUNING",
        num_epochs: Optional[int] = 20,
        learning_rate: Optional[float] = 0.3,
        verbalizer: Optional[str] = "{{input}}",
        batch_size: Optional[int] = 8,
        max_source_length: Optional[int] = 256,
        max_target_length: Optional[int] = 128,
        accumulate_steps: Optional[int] = 32,
        torch_dtype: Optional[str] = None,
        silence_progress_bars: Optional[bool] = True,
        seed: Optional[int] = 73,
        **kwargs: Any,
    ) -> "PeftPromptTuning":
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
