"""Prompt tuning of a frozen base model: the module that caikit-nlp's clients train and run."""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

import json
from pathlib import Path
from typing import Any, Optional, Union

import alog
from caikit.core import ModuleBase, module
from caikit.core.data_model import DataStream
from caikit.interfaces.nlp.tasks import TextGenerationTask, TokenizationTask

from luthier.adapters.caikit_archive import is_caikit_archive, read_caikit_archive
from luthier.adapters.prompts.initialisation import AnyPrompt
from luthier.adapters.prompts.soft_prompt import PEFT_TASK_TYPES
from luthier.data_model.options.prompt_words import TuningType
from luthier.data_model.options.training.machine import DETECT_DEVICE
from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.data_model.training_settings import TrainingSettings
from luthier.data_model.tuning import TuningConfig
from luthier.errors import ArtifactError
from luthier.modules.adapter_module import AdapterModule
from luthier.modules.environment import environment
from luthier.modules.leasing import AnyBaseModel, lease_saved_base_model
from luthier.modules.saving.history import (
    TrainingHistory,
)
from luthier.modules.saving.saved_model import (
    CLEAN_SPACES_KEY,
)
from luthier.modules.task_methods import arguments_of
from luthier.modules.text_generation.generator import TextGenerator
from luthier.modules.text_generation.prompt_plan import plan_prompt_tuning
from luthier.modules.text_generation.text_module import TextModule
from luthier.resources.base_model import BaseModel
from luthier.training.data.encoding.prompt_style import PromptStyle
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER

log = alog.use_channel(__name__)


# NOTE: the first task names the train rpc; the order is part of the wire.
@module(
    id="6655831b-960a-4dc5-8df4-867026e2cd41",
    name="Peft generation",
    version="0.1.0",
    tasks=[TextGenerationTask, TokenizationTask],
)
class PeftPromptTuning(TextModule, AdapterModule[TextGenerator], ModuleBase):
    """A base model with tuned virtual tokens before its input.

    Args:
        generator: Does the work.
        history: How they were tuned.
    """

    PLAN = staticmethod(plan_prompt_tuning)
    ADAPTERS = AnyPrompt
    ADAPTERS_IN_WORDS = "tuned prompts"

    @classmethod
    def train(
        cls,
        base_model: Union[str, BaseModel],
        train_stream: Union[
            DataStream[GenerationTrainRecord], DataStream[ClassificationTrainRecord]
        ],
        tuning_config: TuningConfig,
        val_stream: Optional[
            Union[DataStream[GenerationTrainRecord], DataStream[ClassificationTrainRecord]]
        ] = None,
        device: Optional[str] = DETECT_DEVICE,
        tuning_type: Optional[Union[str, TuningType]] = "PROMPT_TUNING",
        num_epochs: Optional[int] = 20,
        learning_rate: Optional[float] = 0.3,
        verbalizer: Optional[str] = DEFAULT_VERBALIZER,
        batch_size: Optional[int] = 8,
        max_source_length: Optional[int] = 256,
        max_target_length: Optional[int] = 128,
        accumulate_steps: Optional[int] = 32,
        torch_dtype: Optional[str] = None,
        silence_progress_bars: Optional[bool] = True,
        seed: Optional[int] = 73,
        training_options: Optional[TrainingSettings] = None,
        **kwargs: Any,
    ) -> "PeftPromptTuning":
        """Tune virtual tokens; the base model stays as it is and is shared.

        Args:
            base_model: Name, path or BaseModel.
            train_stream: Records, or whatever ``read_train_records`` takes.
            tuning_config: Number and start of the virtual tokens; a mapping is taken too.
            val_stream: Records whose loss is computed after each epoch.
            device: Where to train; ``__DETECT__`` and None take the server's.
            tuning_type: PROMPT_TUNING, MULTITASK_PROMPT_TUNING, P_TUNING or PREFIX_TUNING.
            num_epochs: Passes over the data.
            learning_rate: Of AdamW, at the schedule's peak. For P_TUNING and PREFIX_TUNING the
                default stands for 0.01.
            verbalizer: Template from a record to the prompt, or the name of one of the server's.
            batch_size: Rows at once.
            max_source_length: Tokens kept of each verbalized input.
            max_target_length: Tokens kept of each output.
            accumulate_steps: Batches per update.
            torch_dtype: Precision to train in; None is the server's.
            silence_progress_bars: False shows progress on stderr.
            seed: Makes the training repeatable.
            training_options: All other settings of the loop and of how records become text; a
                mapping is taken too.
            **kwargs: Other fields of ``TrainingOptions`` under any of their names, ``source_task``,
                and the hooks of ``TrainingHooks``.

        Returns:
            The tuned model.

        Raises:
            LuthierError: If an argument, a row or the run itself is wrong.
        """
        return cls._tuned(arguments_of(locals()))

    @property
    def tuning_type(self) -> TuningType:
        """How the virtual tokens were tuned."""
        return TuningType(self._whole_adapter().method.upper())

    @classmethod
    def _load_folder(cls, folder: Path, base_model: Optional[AnyBaseModel]) -> "PeftPromptTuning":
        if is_caikit_archive(folder):
            return cls._load_archive(folder, base_model)
        return super()._load_folder(folder, base_model)

    @classmethod
    def _load_archive(cls, folder: Path, base_model: Optional[AnyBaseModel]) -> "PeftPromptTuning":
        archive = read_caikit_archive(folder)
        if archive.base_model_name is None:
            raise ArtifactError(f"{folder.name!r} holds a whole model, not a tuned prompt")
        here = environment()
        lease = lease_saved_base_model(
            archive.base_model_name, base_model, here, dtype=_half_precision(archive.torch_dtype)
        )
        with lease.kept_if_no_error():
            generator = cls._make_runner(
                lease,
                here,
                adapter=cls._required(archive.make_adapter(lease.base_model)),
                style=PromptStyle(archive.verbalizer or DEFAULT_VERBALIZER),
                config={CLEAN_SPACES_KEY: True},
            )
        return cls(generator, history=TrainingHistory(lines=tuple(archive.training_logs)))

    def _whole_adapter(self) -> AnyPrompt:
        assert isinstance(self.adapter, AnyPrompt)
        return self.adapter

    def _config(self) -> dict[str, Any]:
        prompt = self._whole_adapter()
        return {
            **self._text_config(),
            "num_virtual_tokens": prompt.num_virtual_tokens,
            "output_model_types": json.dumps([place.upper() for place in prompt.places]),
            "task_type": PEFT_TASK_TYPES[self.base_model.kind],
            "tuning_type": self.tuning_type.value,
        }


def _half_precision(trained_dtype: str) -> Optional[str]:
    """The precision to load a base model of caikit-nlp's in, None for the server's.

    It ran a prompt in the precision that it was trained in, and half precision gives other texts.
    """
    return trained_dtype if trained_dtype in ("float16", "bfloat16") else None
