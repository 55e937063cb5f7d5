"""Classification heads on a frozen base model, alone or with a LoRA below them."""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

from pathlib import Path
from typing import Any, Optional, Union

import alog
from caikit.core import ModuleBase, module
from caikit.core.data_model import DataStream
from caikit.interfaces.nlp.data_model import ClassificationResults
from caikit.interfaces.nlp.tasks import TextClassificationTask, TokenizationTask

from luthier.adapters.base import Adapter
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.data_model.generation import TokenizationResults
from luthier.data_model.options.quantisation import NONE
from luthier.data_model.options.training_options import DETECT_DEVICE
from luthier.data_model.records import ClassificationTrainRecord
from luthier.data_model.training_settings import TrainingSettings
from luthier.files.names import resolve_inside
from luthier.modules.environment import environment
from luthier.modules.text_classification.classification_module import ClassificationModule
from luthier.modules.text_classification.classifier import TextClassifier, require_head
from luthier.modules.text_classification.head_plan import HeadTuningPlan, plan_head_tuning
from luthier.modules.text_generation.fingerprint import fingerprint, require_same_base
from luthier.modules.text_generation.history import QUANTIZATION_KEY, TrainingHistory
from luthier.modules.text_generation.saved_model import (
    ADAPTER_FOLDER,
    read_config,
    style_of,
    text_of,
    writing_model,
)
from luthier.modules.text_generation.text_module import (
    AnyBaseModel,
    AnyPath,
    lease_base_model,
    lease_saved_base_model,
)
from luthier.resources.base_model import BaseModel
from luthier.training.data.encoding.prompt_style import PromptStyle
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER

log = alog.use_channel(__name__)


# NOTE: the first task names the train rpc; the order is part of the wire.
@module(
    id="50d857a9-ffc5-49f8-9a56-a5d8f24a0b24",
    name="Head tuning",
    version="0.1.0",
    tasks=[TextClassificationTask, TokenizationTask],
)
class HeadTuning(ClassificationModule, ModuleBase):
    """A base model with a tuned head that tells classes of texts apart.

    Args:
        classifier: Does the work.
        history: How it was tuned.
    """

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
            **kwargs: Other fields of ``LoraConfig`` and ``TrainingOptions`` under any of their
                names, and the hooks of ``TrainingHooks``.

        Returns:
            The tuned model.

        Raises:
            LuthierError: If an argument, a row or the run itself is wrong.
        """
        plan = cls.plan_train(
            base_model=base_model,
            train_stream=train_stream,
            val_stream=val_stream,
            labels=labels,
            use_lora=use_lora,
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            use_rslora=use_rslora,
            use_dora=use_dora,
            target_modules=target_modules,
            exclude_modules=exclude_modules,
            lora_plus_ratio=lora_plus_ratio,
            device=device,
            num_epochs=num_epochs,
            learning_rate=learning_rate,
            verbalizer=verbalizer,
            batch_size=batch_size,
            max_source_length=max_source_length,
            accumulate_steps=accumulate_steps,
            torch_dtype=torch_dtype,
            silence_progress_bars=silence_progress_bars,
            seed=seed,
            training_options=training_options,
            **kwargs,
        )
        lease = plan.acquire()
        with lease.kept_if_no_error():
            head = plan.make_adapter(lease.base_model)
            result = plan.tune(lease.base_model, head)
        classifier = TextClassifier(
            lease,
            environment=plan.environment,
            head=head,
            style=PromptStyle(plan.options.verbalizer),
        )
        return cls(classifier, history=TrainingHistory.of(result, plan.options))

    @classmethod
    def plan_train(cls, **arguments: Any) -> HeadTuningPlan:
        """Check everything about a training that can be known without the weights.

        Args:
            **arguments: Of ``train``.

        Returns:
            What ``train`` would do.

        Raises:
            LuthierError: If it would fail.
        """
        return plan_head_tuning(arguments, module_id=cls.MODULE_ID, environment=environment())

    @classmethod
    def bootstrap(
        cls,
        base_model: AnyBaseModel,
        adapter: Union[AnyPath, Adapter],
        labels: Optional[list[str]] = None,
        verbalizer: str = DEFAULT_VERBALIZER,
    ) -> "HeadTuning":
        """Put a head that exists already on a base model.

        Args:
            base_model: Name, path or BaseModel.
            adapter: PEFT's folder of a sequence classifier's LoRA, or an adapter.
            labels: Names of the classes, which PEFT does not keep; None is those of the folder, or
                ``LABEL_0`` and so on.
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
            head = require_head(adapter)
            if labels is not None:
                head = head.renamed(labels)
            classifier = TextClassifier(
                lease, environment=here, head=head, style=PromptStyle(verbalizer)
            )
        return cls(classifier)

    @classmethod
    def _load_folder(cls, folder: Path, base_model: Optional[AnyBaseModel]) -> "HeadTuning":
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
            classifier = TextClassifier(
                lease,
                environment=here,
                head=require_head(load_adapter(adapter_folder, base_model=lease.base_model)),
                style=style_of(config),
                adapter_folder=adapter_folder,
            )
        return cls(classifier, history=TrainingHistory.read(folder, config))

    def save(self, model_path: AnyPath) -> None:
        """Write head and deltas as a folder; the base model is named in it, not copied.

        Replaces what is there in one step.

        Args:
            model_path: The folder.
        """
        base, head = self.base_model, self.classifier.head
        config = {
            "adapter_path": ADAPTER_FOLDER,
            "base_model_fingerprint": fingerprint(base),
            "base_model_name": base.name,
            "labels": list(head.class_labels),
            "trained_torch_dtype": str(base.dtype).removeprefix("torch."),
            "verbalizer": self.classifier.verbalizer,
        }
        target = Path(model_path)
        with writing_model(self, target, config=config, history=self.history) as folder:
            save_adapter(head, folder / ADAPTER_FOLDER, base_model_name=base.name)
        log.info("saved a head", extra={"model": target.name})

    @TextClassificationTask.taskmethod()
    def run(self, text: str) -> ClassificationResults:
        """Classify a text.

        Args:
            text: Goes into the verbalizer as ``input``.

        Returns:
            Every class with its probability, the most probable first.
        """
        return self.classifier.run(text)

    @TokenizationTask.taskmethod()
    def run_tokenizer(self, text: str) -> TokenizationResults:
        """Split a text into the model's tokens; the verbalizer is not applied.

        Args:
            text: Any text.

        Returns:
            The tokens and their count, special ones included.
        """
        return self.classifier.run_tokenizer(text)
