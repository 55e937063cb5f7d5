"""Prompt tuning of a frozen base model: the module that caikit-nlp's clients train and run."""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional, Union

import alog
from caikit.core import ModuleBase, module
from caikit.core.data_model import DataStream
from caikit.interfaces.nlp.tasks import TextGenerationTask, TokenizationTask

from luthier.adapters.base import Adapter
from luthier.adapters.caikit_archive import is_caikit_archive, read_caikit_archive
from luthier.adapters.prompts.initialisation import AnyPrompt
from luthier.adapters.prompts.soft_prompt import PEFT_TASK_TYPES
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.data_model.generation import (
    GeneratedTextResult,
    GeneratedTextStreamResult,
    TokenizationResults,
)
from luthier.data_model.options.quantisation import NONE
from luthier.data_model.options.training_options import DETECT_DEVICE
from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.data_model.sampling import SamplingParams
from luthier.data_model.training_settings import TrainingSettings
from luthier.data_model.tuning import TuningConfig, TuningType
from luthier.errors import ArtifactError, NotSupportedError
from luthier.files.names import resolve_inside
from luthier.modules.environment import Environment, environment
from luthier.modules.text_generation.fingerprint import fingerprint, require_same_base
from luthier.modules.text_generation.generator import TextGenerator
from luthier.modules.text_generation.history import (
    NO_HISTORY,
    QUANTIZATION_KEY,
    TrainingHistory,
)
from luthier.modules.text_generation.prompt_plan import PromptTuningPlan, plan_prompt_tuning
from luthier.modules.text_generation.saved_model import (
    ADAPTER_FOLDER,
    CLEAN_SPACES_KEY,
    read_config,
    style_config,
    style_of,
    text_of,
    wants_clean_spaces,
    writing_model,
)
from luthier.modules.text_generation.task_signature import with_sampling_parameters
from luthier.modules.text_generation.text_module import (
    AnyBaseModel,
    AnyPath,
    TextModule,
    lease_base_model,
    lease_saved_base_model,
)
from luthier.resources.base_model import BaseModel
from luthier.resources.store import BaseModelLease
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
class PeftPromptTuning(TextModule, ModuleBase):
    """A base model with tuned virtual tokens before its input.

    Args:
        generator: Does the work.
        tuning_type: How the virtual tokens were tuned.
        history: How they were tuned.
    """

    def __init__(
        self,
        generator: TextGenerator,
        *,
        tuning_type: TuningType = TuningType.PROMPT_TUNING,
        history: TrainingHistory = NO_HISTORY,
    ) -> None:
        super().__init__(generator, history=history)
        self.tuning_type = tuning_type

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
        plan = cls.plan_train(
            base_model=base_model,
            train_stream=train_stream,
            tuning_config=tuning_config,
            val_stream=val_stream,
            device=device,
            tuning_type=tuning_type,
            num_epochs=num_epochs,
            learning_rate=learning_rate,
            verbalizer=verbalizer,
            batch_size=batch_size,
            max_source_length=max_source_length,
            max_target_length=max_target_length,
            accumulate_steps=accumulate_steps,
            torch_dtype=torch_dtype,
            silence_progress_bars=silence_progress_bars,
            seed=seed,
            training_options=training_options,
            **kwargs,
        )
        lease = plan.acquire()
        with lease.kept_if_no_error():
            adapter = plan.make_adapter(lease.base_model)
            result = plan.tune(lease.base_model, adapter)
        generator = _generator(
            lease, adapter, plan.environment, style=plan.prompt_style(lease.base_model)
        )
        return cls(
            generator,
            tuning_type=plan.tuning_type,
            history=TrainingHistory.of(result, plan.options),
        )

    @classmethod
    def plan_train(cls, **arguments: Any) -> PromptTuningPlan:
        """Check everything about a training that can be known without the weights.

        Args:
            **arguments: Of ``train``.

        Returns:
            What ``train`` would do.

        Raises:
            LuthierError: If it would fail.
        """
        return plan_prompt_tuning(arguments, module_id=cls.MODULE_ID, environment=environment())

    @classmethod
    def bootstrap(
        cls,
        base_model: AnyBaseModel,
        adapter: Union[AnyPath, Adapter],
        verbalizer: str = DEFAULT_VERBALIZER,
    ) -> "PeftPromptTuning":
        """Put virtual tokens that exist already before a base model.

        Args:
            base_model: Name, path or BaseModel.
            adapter: PEFT's folder of a (multitask) prompt tuning, or an adapter.
            verbalizer: Template that it was tuned with.

        Returns:
            The module.

        Raises:
            LuthierError: If they do not fit or cannot be read.
        """
        here = environment()
        lease = lease_base_model(base_model, here)
        with lease.kept_if_no_error():
            if not isinstance(adapter, Adapter):
                adapter = load_adapter(Path(adapter), base_model=lease.base_model)
            prompt = _require_prompt(adapter)
            generator = _generator(lease, prompt, here, style=PromptStyle(verbalizer))
        return cls(generator, tuning_type=_tuning_type_of(prompt))

    @classmethod
    def _load_folder(cls, folder: Path, base_model: Optional[AnyBaseModel]) -> "PeftPromptTuning":
        load = cls._load_archive if is_caikit_archive(folder) else cls._load_own
        return load(folder, base_model)

    @classmethod
    def _load_own(cls, folder: Path, base_model: Optional[AnyBaseModel]) -> "PeftPromptTuning":
        config = read_config(folder)
        adapter_folder = resolve_inside(
            folder, text_of(config, "adapter_path"), what="adapter_path"
        )
        here = environment()
        lease = lease_saved_base_model(
            text_of(config, "base_model_name"),
            base_model,
            here,
            quantization=text_of(config, QUANTIZATION_KEY, default=NONE),
        )
        with lease.kept_if_no_error():
            require_same_base(config, lease.base_model)
            adapter = _require_prompt(load_adapter(adapter_folder, base_model=lease.base_model))
            generator = _generator(
                lease,
                adapter,
                here,
                style=style_of(config),
                cleans_up_spaces=wants_clean_spaces(config),
            )
        return cls(
            generator,
            tuning_type=_tuning_type_of(adapter),
            history=TrainingHistory.read(folder, config),
        )

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
            generator = _generator(
                lease,
                _require_prompt(archive.make_adapter(lease.base_model)),
                here,
                style=PromptStyle(archive.verbalizer or DEFAULT_VERBALIZER),
                cleans_up_spaces=True,
            )
        return cls(generator, history=TrainingHistory(lines=tuple(archive.training_logs)))

    def save(self, model_path: AnyPath) -> None:
        """Write the prompt as a folder; the base model is named in it, not copied.

        Replaces what is there in one step.

        Args:
            model_path: The folder.
        """
        base, prompt = self.base_model, self._prompt
        config = {
            "adapter_path": ADAPTER_FOLDER,
            CLEAN_SPACES_KEY: self.generator.cleans_up_spaces,
            "base_model_fingerprint": fingerprint(base),
            "base_model_name": base.name,
            "eos_token": base.tokenizer.eos_token,
            "num_virtual_tokens": prompt.num_virtual_tokens,
            "output_model_types": json.dumps([place.upper() for place in prompt.places]),
            "task_type": PEFT_TASK_TYPES[base.kind],
            "trained_torch_dtype": str(base.dtype).removeprefix("torch."),
            "tuning_type": self.tuning_type.value,
            **style_config(self.generator.style),
        }
        target = Path(model_path)
        with writing_model(self, target, config=config, history=self.history) as folder:
            save_adapter(prompt, folder / ADAPTER_FOLDER, base_model_name=base.name)
        log.info("saved a tuned prompt", extra={"model": target.name})

    @property
    def _prompt(self) -> AnyPrompt:
        assert self.adapter is not None
        return _require_prompt(self.adapter)

    @TextGenerationTask.taskmethod()
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

    @TextGenerationTask.taskmethod(output_streaming=True)
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

    @TokenizationTask.taskmethod()
    def run_tokenizer(self, text: str) -> TokenizationResults:
        """Split a text into the model's tokens; the verbalizer is not applied.

        Args:
            text: Any text.

        Returns:
            The tokens and their count, special ones included.
        """
        return self.generator.run_tokenizer(text)


def _half_precision(trained_dtype: str) -> Optional[str]:
    """The precision to load a base model of caikit-nlp's in, None for the server's.

    It ran a prompt in the precision that it was trained in, and half precision gives other texts.
    """
    return trained_dtype if trained_dtype in ("float16", "bfloat16") else None


def _generator(
    lease: BaseModelLease,
    adapter: AnyPrompt,
    here: Environment,
    *,
    style: PromptStyle,
    cleans_up_spaces: bool = False,
) -> TextGenerator:
    return TextGenerator(
        lease,
        producer_id=PeftPromptTuning.PRODUCER_ID,
        environment=here,
        adapter=adapter,
        style=style,
        cleans_up_spaces=cleans_up_spaces,
    )


def _require_prompt(adapter: Adapter) -> AnyPrompt:
    if not isinstance(adapter, AnyPrompt):
        raise NotSupportedError(
            f"module PeftPromptTuning runs tuned prompts, this adapter is {adapter.method}"
        )
    return adapter


def _tuning_type_of(adapter: AnyPrompt) -> TuningType:
    return TuningType(adapter.method.upper())
