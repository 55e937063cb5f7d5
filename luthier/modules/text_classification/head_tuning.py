"""Classification heads on a frozen base model, alone or with a LoRA below them."""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

from typing import Any, Optional, Union

import alog
from caikit.core import ModuleBase, module
from caikit.core.data_model import DataStream
from caikit.interfaces.nlp.tasks import TextClassificationTask, TokenizationTask

from luthier.adapters.base import Adapter
from luthier.adapters.heads.classification_head import ClassificationHead
from luthier.data_model.options.training.machine import DETECT_DEVICE
from luthier.data_model.records import ClassificationTrainRecord
from luthier.data_model.training_settings import TrainingSettings
from luthier.modules.adapter_module import AdapterModule
from luthier.modules.leasing import AnyBaseModel, AnyPath
from luthier.modules.task_methods import arguments_of
from luthier.modules.text_classification.classification_module import ClassificationModule
from luthier.modules.text_classification.classifier import TextClassifier
from luthier.modules.text_classification.head_plan import plan_head_tuning
from luthier.resources.base_model import BaseModel
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER

log = alog.use_channel(__name__)


# NOTE: the first task names the train rpc; the order is part of the wire.
@module(
    id="50d857a9-ffc5-49f8-9a56-a5d8f24a0b24",
    name="Head tuning",
    version="0.1.0",
    tasks=[TextClassificationTask, TokenizationTask],
)
class HeadTuning(ClassificationModule, AdapterModule[TextClassifier], ModuleBase):
    """A base model with a tuned head that tells classes of texts apart.

    Args:
        classifier: Does the work.
        history: How it was tuned.
    """

    PLAN = staticmethod(plan_head_tuning)
    ADAPTERS = ClassificationHead
    ADAPTERS_IN_WORDS = "classification heads"

    @classmethod
    def train(
        cls,
        base_model: Union[str, BaseModel],
        # Python callers may bring pairs too. They are not named: to typing, a union is the same in
        # any order, so the wire of modules that name pairs first would change.
        train_stream: DataStream[ClassificationTrainRecord],
        val_stream: Optional[DataStream[ClassificationTrainRecord]] = None,
        labels: Optional[list[str]] = None,
        use_lora: Optional[bool] = True,
        rank: Optional[int] = 8,
        alpha: Optional[float] = 16.0,
        dropout: Optional[float] = 0.0,
        use_rslora: Optional[bool] = False,
        use_dora: Optional[bool] = False,
        target_modules: Optional[list[str]] = None,
        exclude_modules: Optional[list[str]] = None,
        lora_plus_ratio: Optional[float] = 1.0,
        device: Optional[str] = DETECT_DEVICE,
        num_epochs: Optional[int] = 3,
        learning_rate: Optional[float] = 2e-4,
        verbalizer: Optional[str] = DEFAULT_VERBALIZER,
        batch_size: Optional[int] = 8,
        max_source_length: Optional[int] = 256,
        accumulate_steps: Optional[int] = 1,
        torch_dtype: Optional[str] = None,
        silence_progress_bars: Optional[bool] = True,
        seed: Optional[int] = 73,
        training_options: Optional[TrainingSettings] = None,
        rank_pattern: Optional[list[str]] = None,
        alpha_pattern: Optional[list[str]] = None,
        initialisation: Optional[str] = "default",
        layers_to_transform: Optional[list[int]] = None,
        layers_pattern: Optional[list[str]] = None,
        modules_to_save: Optional[list[str]] = None,
        unfreeze_layers: Optional[list[str]] = None,
        trainable_token_indices: Optional[list[int]] = None,
        **kwargs: Any,
    ) -> "HeadTuning":
        """Tune a head, and low-rank deltas below it; the base model stays as it is and is shared.

        Args:
            base_model: Name, path or BaseModel; a causal one.
            train_stream: Texts with one label each, or whatever ``read_train_records`` takes.
            val_stream: Texts that are classified after each epoch: loss, accuracy, macro F1.
            labels: Names of the classes, in order; None is those of ``train_stream``, in order of
                the alphabet.
            use_lora: Whether low-rank deltas are tuned below the head; False tunes the head alone.
            rank: Inner size of the deltas.
            alpha: The deltas are scaled by alpha / rank.
            dropout: Share of the deltas' input that is dropped while training.
            use_rslora: Scale by alpha / sqrt(rank) instead.
            use_dora: Learn each output's magnitude apart from its direction.
            target_modules: Layers that get a delta, by name or its end; None is every linear layer.
            exclude_modules: Layers that do not, in the same way.
            lora_plus_ratio: LoRA+: learning rate of B over that of A.
            device: Where to train; ``__DETECT__`` and None take the server's.
            num_epochs: Passes over the data.
            learning_rate: Of AdamW, at the schedule's peak.
            verbalizer: Template from a text to what the model reads, or the name of one of the
                server's.
            batch_size: Rows at once.
            max_source_length: Tokens kept of each verbalized text.
            accumulate_steps: Batches per update.
            torch_dtype: Precision to train in; None is the server's.
            silence_progress_bars: False shows progress on stderr.
            seed: Makes the training repeatable.
            training_options: All other settings of the loop; a mapping is taken too.
            rank_pattern: Other ranks for some layers, as ``LoraTuning`` takes them.
            alpha_pattern: Other alphas, in the same way.
            initialisation: How the deltas start; none of the starts that look at data.
            layers_to_transform: Only blocks with these numbers, from 0, get a delta.
            layers_pattern: Name of the list of blocks that ``layers_to_transform`` counts in.
            modules_to_save: Whole modules that are trained and saved as well.
            unfreeze_layers: Every parameter with one of these texts in its name is trained too.
            trainable_token_indices: Ids of tokens whose embeddings are trained and saved, too.
            **kwargs: Other fields of ``LoraConfig`` and ``TrainingOptions`` under any of their
                names, and the hooks of ``TrainingHooks``.

        Returns:
            The tuned model.

        Raises:
            LuthierError: If an argument, a row or the run itself is wrong.
        """
        return cls._tuned(arguments_of(locals()))

    @classmethod
    def bootstrap(
        cls,
        base_model: AnyBaseModel,
        adapter: Union[AnyPath, Adapter],
        verbalizer: str = DEFAULT_VERBALIZER,
        labels: Optional[list[str]] = None,
    ) -> "HeadTuning":
        """Put a head that exists already on a base model.

        Args:
            base_model: Name, path or BaseModel.
            adapter: PEFT's folder of a sequence classifier's LoRA, or an adapter.
            verbalizer: Template that it was tuned with.
            labels: Names of the classes, which PEFT does not keep; None is those of the folder, or
                ``LABEL_0`` and so on.

        Returns:
            The module.

        Raises:
            LuthierError: If they do not fit or cannot be read.
        """
        change = None if labels is None else lambda head: head.renamed(labels)
        return cls._put_on(base_model, adapter, verbalizer, change=change)

    def _whole_adapter(self) -> ClassificationHead:
        return self.adapter

    def _config(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}
