"""Full fine-tuning of a base model, and the bare base model itself, as a module."""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional, Union

import alog
from caikit.core import ModuleBase, module
from caikit.core.data_model import DataStream
from caikit.interfaces.nlp.tasks import TextGenerationTask, TokenizationTask

from luthier.data_model.generation import (
    GeneratedTextResult,
    GeneratedTextStreamResult,
    TokenizationResults,
)
from luthier.data_model.options.quantisation import NONE
from luthier.data_model.options.training_options import FULL_FINE_TUNING_DEFAULTS
from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.data_model.sampling import SamplingParams
from luthier.data_model.training_settings import TrainingSettings
from luthier.errors import InvalidInputError, NotSupportedError
from luthier.files.names import resolve_inside
from luthier.modules.environment import Environment, environment
from luthier.modules.planning.marker_tokens import marker_tokens, whole_tuned_model
from luthier.modules.planning.pretrained_weights import full_weights
from luthier.modules.planning.train_plan import TrainingPlan, plan_training
from luthier.modules.text_generation.generator import TextGenerator
from luthier.modules.text_generation.history import TrainingHistory
from luthier.modules.text_generation.saved_model import (
    ARTIFACTS_FOLDER,
    CLEAN_SPACES_KEY,
    read_config,
    style_config,
    style_of,
    text_of,
    wants_clean_spaces,
    writing_model,
)
from luthier.modules.text_generation.task_signature import with_sampling_parameters
from luthier.modules.text_generation.text_module import AnyBaseModel, AnyPath, TextModule
from luthier.resources.base_model import BaseModel
from luthier.resources.model_loading import load_base_model, save_base_model
from luthier.resources.names import BaseModelLocation
from luthier.resources.store import BaseModelLease
from luthier.training.data.encoding.prompt_style import PromptStyle
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER

log = alog.use_channel(__name__)


# NOTE: the first task names the train rpc; the order is part of the wire.
@module(
    id="f9181353-4ccf-4572-bd1e-f12bcda26792",
    name="Text Generation",
    version="0.1.0",
    tasks=[TextGenerationTask, TokenizationTask],
)
class TextGeneration(TextModule, ModuleBase):
    """A whole model: a base model as it is, or one whose every weight was tuned.

    Args:
        generator: Does the work.
        history: How it was trained; empty for a bare base model.
    """

    @classmethod
    def train(
        cls,
        base_model: Union[str, BaseModel],
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
        val_stream: Optional[
            Union[DataStream[GenerationTrainRecord], DataStream[ClassificationTrainRecord]]
        ] = None,
        verbalizer: Optional[str] = DEFAULT_VERBALIZER,
        training_options: Optional[TrainingSettings] = None,
        **kwargs: Any,
    ) -> "TextGeneration":
        """Tune every weight of a copy of a base model.

        Args:
            base_model: Name, path or BaseModel; it stays as it is.
            train_stream: Records, or whatever ``read_train_records`` takes.
            torch_dtype: Precision to train in; None is the server's.
            max_source_length: Tokens kept of each input.
            max_target_length: Tokens kept of each output.
            batch_size: Rows at once.
            num_epochs: Passes over the data.
            accumulate_steps: Batches per update.
            random_seed: Makes the training repeatable.
            lr: Learning rate.
            use_iterable_dataset: Changes nothing; for callers of caikit-nlp.
            val_stream: Records that are evaluated and not learned.
            verbalizer: Template from a record to the prompt, or the name of one of the server's.
            training_options: All other settings of the loop and of how records become text; a
                mapping is taken too.
            **kwargs: Other fields of ``TrainingOptions`` under any of their names,
                and the hooks of ``TrainingHooks``.

        Returns:
            The tuned model.

        Raises:
            LuthierError: If an argument, a row or the run itself is wrong.
        """
        plan = cls.plan_train(
            base_model=base_model,
            train_stream=train_stream,
            torch_dtype=torch_dtype,
            max_source_length=max_source_length,
            max_target_length=max_target_length,
            batch_size=batch_size,
            num_epochs=num_epochs,
            accumulate_steps=accumulate_steps,
            random_seed=random_seed,
            lr=lr,
            use_iterable_dataset=use_iterable_dataset,
            val_stream=val_stream,
            verbalizer=verbalizer,
            training_options=training_options,
            **kwargs,
        )
        with plan.acquire() as base:
            adapter = full_weights(
                base,
                plan.weights,
                is_shared_out=plan.options.use_fsdp,
                added=marker_tokens(base, plan.dataset),
            )
            result = plan.tune(base, adapter)
            tuned = whole_tuned_model(base, adapter)
        generator = _generator(tuned, plan.environment, style=plan.prompt_style(tuned))
        return cls(generator, history=TrainingHistory.of(result, plan.options))

    @classmethod
    def plan_train(cls, **arguments: Any) -> TrainingPlan:
        """Check everything about a training that can be known without the weights.

        Args:
            **arguments: Of ``train``.

        Returns:
            What ``train`` would do.

        Raises:
            LuthierError: If it would fail.
        """
        arguments.pop("use_iterable_dataset", None)
        plan = plan_training(
            arguments,
            module_id=cls.MODULE_ID,
            defaults=FULL_FINE_TUNING_DEFAULTS,
            environment=environment(),
            tunes_all_weights=True,
        )
        if plan.start is not None:
            raise InvalidInputError(
                "'start_from' is for adapters; a whole model is gone on from as 'base_model'"
            )
        if plan.options.quantization != NONE:
            raise NotSupportedError(
                f"'quantization' {plan.options.quantization!r}: the weights of a quantised base "
                "model cannot be fine-tuned; tune a LoRA or a prompt"
            )
        return plan

    @classmethod
    def bootstrap(
        cls, base_model: AnyBaseModel, torch_dtype: Optional[str] = None
    ) -> "TextGeneration":
        """Serve a base model as it is.

        Args:
            base_model: Name, path or BaseModel.
            torch_dtype: Precision; None is the server's.

        Returns:
            The module; it shares the base model's one copy.

        Raises:
            LuthierError: If there is no such base model.
        """
        here = environment()
        if isinstance(base_model, BaseModel):
            return cls(_generator(base_model, here))
        lease = here.base_models.acquire(base_model, dtype=torch_dtype)
        return cls(TextGenerator(lease, producer_id=cls.PRODUCER_ID, environment=here))

    @classmethod
    def _load_folder(cls, folder: Path, base_model: Optional[AnyBaseModel]) -> "TextGeneration":
        if base_model is not None:
            raise InvalidInputError(f"{folder.name!r} is a whole model: it takes no 'base_model'")
        config = read_config(folder)
        here = environment()
        artifacts = resolve_inside(
            folder, text_of(config, "artifact_path"), what="artifact_path", max_parts=2
        )
        # Not through the store: a folder may be replaced while its predecessor is in use.
        loaded = load_base_model(
            BaseModelLocation(folder.resolve().name, artifacts, "path"),
            dtype=text_of(config, "torch_dtype", default=here.config.torch_dtype),
            sources=here.base_models.sources,
        )
        generator = _generator(
            loaded,
            here,
            style=style_of(config),
            cleans_up_spaces=wants_clean_spaces(config),
        )
        return cls(generator, history=TrainingHistory.read(folder, config))

    def save(self, model_path: AnyPath) -> None:
        """Write the whole model as a folder; replaces what is there in one step.

        Args:
            model_path: The folder.
        """
        config = {
            "artifact_path": ARTIFACTS_FOLDER,
            "base_model_name": self.base_model.name,
            "eos_token": self.base_model.tokenizer.eos_token,
            "torch_dtype": str(self.base_model.dtype),
            **style_config(self.generator.style),
            CLEAN_SPACES_KEY: self.generator.cleans_up_spaces,
        }
        target = Path(model_path)
        with writing_model(self, target, config=config, history=self.history) as folder:
            save_base_model(self.base_model, folder / ARTIFACTS_FOLDER)
        log.info("saved a whole model", extra={"model": target.name})

    @TextGenerationTask.taskmethod()
    @with_sampling_parameters
    def run(self, text: str, sampling: SamplingParams) -> GeneratedTextResult:
        """Generate, and wait for the whole text.

        Args:
            text: What to continue or answer.
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
            text: What to continue or answer.
            sampling: Given as separate arguments: the fields of ``SamplingParams``.

        Returns:
            The pieces as they come; dropping the iterator ends the generation.
        """
        return self.generator.run_stream_out(text, sampling)

    @TokenizationTask.taskmethod()
    def run_tokenizer(self, text: str) -> TokenizationResults:
        """Split a text into the model's tokens.

        Args:
            text: Any text.

        Returns:
            The tokens and their count, special ones included.
        """
        return self.generator.run_tokenizer(text)


def _generator(
    base_model: BaseModel,
    here: Environment,
    *,
    style: PromptStyle | None = None,
    cleans_up_spaces: bool = False,
) -> TextGenerator:
    return TextGenerator(
        BaseModelLease(base_model, here.base_models, None),
        producer_id=TextGeneration.PRODUCER_ID,
        environment=here,
        style=style,
        cleans_up_spaces=cleans_up_spaces,
    )
