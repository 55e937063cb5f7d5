"""Full fine-tuning of a base model, and the bare base model itself, as a module."""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

from pathlib import Path
from typing import Any, Optional, Union

import alog
from caikit.core import ModuleBase, module
from caikit.core.data_model import DataStream
from caikit.interfaces.nlp.tasks import TextGenerationTask, TokenizationTask

from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.data_model.training_settings import TrainingSettings
from luthier.errors import InvalidInputError
from luthier.files.names import resolve_inside
from luthier.modules.environment import environment
from luthier.modules.leasing import AnyBaseModel, AnyPath, lease_base_model
from luthier.modules.planning.marker_tokens import marker_tokens, whole_tuned_model
from luthier.modules.planning.pretrained_weights import full_weights
from luthier.modules.saving.history import TrainingHistory
from luthier.modules.saving.saved_model import (
    ARTIFACTS_FOLDER,
    read_config,
    style_of,
    text_of,
    writing_model,
)
from luthier.modules.task_methods import arguments_of
from luthier.modules.text_generation.full_plan import plan_full_fine_tuning
from luthier.modules.text_generation.text_module import TextModule
from luthier.resources.base_model import BaseModel
from luthier.resources.model_loading import load_base_model, save_base_model
from luthier.resources.names import BaseModelLocation
from luthier.resources.store import BaseModelLease
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

    PLAN = staticmethod(plan_full_fine_tuning)

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
        plan = cls.plan_train(**arguments_of(locals()))
        with plan.acquire() as base:
            adapter = full_weights(
                base,
                plan.weights,
                is_shared_out=plan.options.use_fsdp,
                added=marker_tokens(base, plan.dataset),
            )
            result = plan.tune(base, adapter)
            tuned = whole_tuned_model(base, adapter)
        lease = BaseModelLease(tuned, plan.environment.base_models, None)
        generator = cls._make_runner(lease, plan.environment, style=plan.prompt_style(tuned))
        return cls(generator, history=TrainingHistory.of(result, plan.options))

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
        return cls(cls._make_runner(lease_base_model(base_model, here, dtype=torch_dtype), here))

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
        lease = BaseModelLease(loaded, here.base_models, None)
        generator = cls._make_runner(lease, here, style=style_of(config), config=config)
        return cls(generator, history=TrainingHistory.read(folder, config))

    def save(self, model_path: AnyPath) -> None:
        """Write the whole model as a folder; replaces what is there in one step.

        Args:
            model_path: The folder.
        """
        target = Path(model_path)
        with writing_model(
            self, target, config=self._whole_config(), history=self.history
        ) as folder:
            save_base_model(self.base_model, folder / ARTIFACTS_FOLDER)
        log.info("saved a whole model", extra={"model": target.name})
