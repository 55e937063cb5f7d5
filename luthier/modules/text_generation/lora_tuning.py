"""LoRA tuning of a frozen base model: LoRA, rsLoRA, DoRA and their starts."""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

from pathlib import Path
from typing import Any, Optional, Union

import alog
from caikit.core import ModuleBase, module
from caikit.core.data_model import DataStream
from caikit.interfaces.nlp.tasks import TextGenerationTask, TokenizationTask

from luthier.adapters.added_tokens import added_tokens, grown_tokenizer
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.lora.merge import save_merged
from luthier.adapters.stored_adapter import StoredAdapter
from luthier.data_model.options.training.machine import DETECT_DEVICE
from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.data_model.training_settings import TrainingSettings
from luthier.modules.adapter_module import AdapterModule
from luthier.modules.leasing import AnyPath
from luthier.modules.saving.saved_model import (
    ARTIFACTS_FOLDER,
    writing_model,
)
from luthier.modules.task_methods import arguments_of
from luthier.modules.text_generation.generator import TextGenerator
from luthier.modules.text_generation.lora_plan import plan_lora_tuning
from luthier.modules.text_generation.text_generation import TextGeneration
from luthier.modules.text_generation.text_module import TextModule
from luthier.resources.base_model import BaseModel
from luthier.training.data.encoding.verbalizer import DEFAULT_VERBALIZER

log = alog.use_channel(__name__)


# NOTE: the first task names the train rpc; the order is part of the wire.
@module(
    id="e478d0cc-0c5c-423e-b654-ca9fa881395a",
    name="LoRA tuning",
    version="0.1.0",
    tasks=[TextGenerationTask, TokenizationTask],
)
class LoraTuning(TextModule, AdapterModule[TextGenerator], ModuleBase):
    """A base model with tuned low-rank deltas beside its linear layers.

    Args:
        generator: Does the work.
        history: How they were tuned.
    """

    PLAN = staticmethod(plan_lora_tuning)
    ADAPTERS = LoraAdapter
    ADAPTERS_IN_WORDS = "LoRA"

    @classmethod
    def train(
        cls,
        base_model: Union[str, BaseModel],
        train_stream: Union[
            DataStream[GenerationTrainRecord], DataStream[ClassificationTrainRecord]
        ],
        val_stream: Optional[
            Union[DataStream[GenerationTrainRecord], DataStream[ClassificationTrainRecord]]
        ] = None,
        rank: Optional[int] = 8,
        alpha: Optional[float] = 16.0,
        dropout: Optional[float] = 0.0,
        use_rslora: Optional[bool] = False,
        use_dora: Optional[bool] = False,
        target_modules: Optional[list[str]] = None,
        exclude_modules: Optional[list[str]] = None,
        modules_to_save: Optional[list[str]] = None,
        unfreeze_layers: Optional[list[str]] = None,
        rank_pattern: Optional[list[str]] = None,
        alpha_pattern: Optional[list[str]] = None,
        initialisation: Optional[str] = "default",
        lora_plus_ratio: Optional[float] = 1.0,
        device: Optional[str] = DETECT_DEVICE,
        num_epochs: Optional[int] = 3,
        learning_rate: Optional[float] = 2e-4,
        verbalizer: Optional[str] = DEFAULT_VERBALIZER,
        batch_size: Optional[int] = 8,
        max_source_length: Optional[int] = 256,
        max_target_length: Optional[int] = 128,
        accumulate_steps: Optional[int] = 1,
        torch_dtype: Optional[str] = None,
        silence_progress_bars: Optional[bool] = True,
        seed: Optional[int] = 73,
        training_options: Optional[TrainingSettings] = None,
        layers_to_transform: Optional[list[int]] = None,
        layers_pattern: Optional[list[str]] = None,
        trainable_token_indices: Optional[list[int]] = None,
        start_batches: Optional[int] = 8,
        eva_rho: Optional[float] = 2.0,
        eva_adjust_scaling: Optional[bool] = True,
        eva_label_mask: Optional[bool] = True,
        eva_whiten: Optional[bool] = False,
        corda_method: Optional[str] = "ipm",
        lora_ga_direction: Optional[str] = "ArB2r",
        lora_ga_scale: Optional[str] = "stable",
        lora_ga_gamma: Optional[float] = 16.0,
        **kwargs: Any,
    ) -> "LoraTuning":
        """Tune low-rank deltas; the base model stays as it is and is shared.

        Args:
            base_model: Name, path or BaseModel.
            train_stream: Records, or whatever ``read_train_records`` takes.
            val_stream: Records whose loss is computed after each epoch.
            rank: Inner size of the deltas.
            alpha: The deltas are scaled by alpha / rank.
            dropout: Share of the deltas' input that is dropped while training.
            use_rslora: Scale by alpha / sqrt(rank) instead.
            use_dora: Learn each output's magnitude apart from its direction.
            target_modules: Layers that get a delta, by name or its end; None is every linear layer
                but the head. From Python also one string, a regular expression.
            exclude_modules: Layers that do not, in the same way.
            modules_to_save: Whole modules that are trained and saved as well.
            unfreeze_layers: Every parameter with one of these texts in its name is trained too.
            rank_pattern: Other ranks for some layers: ``name=rank`` each, where the name is a
                layer's, its end, or a regular expression. From Python also a mapping.
            alpha_pattern: Other alphas, in the same way.
            initialisation: default, gaussian, random, pissa, pissa_niter_N, olora, orthogonal,
                mica, loftq, eva, corda or lora_ga.
            lora_plus_ratio: LoRA+: learning rate of B over that of A.
            device: Where to train; ``__DETECT__`` and None take the server's.
            num_epochs: Passes over the data.
            learning_rate: Of AdamW, at the schedule's peak.
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
            layers_to_transform: Only blocks with these numbers, from 0, get a delta.
            layers_pattern: Name of the list of blocks that ``layers_to_transform`` counts in.
            trainable_token_indices: Ids of tokens whose embeddings are trained and saved, too.
            start_batches: Batches that the starts eva, corda and lora_ga look at.
            eva_rho: eva: a layer gets at most this many times its rank.
            eva_adjust_scaling: eva: a layer's alpha follows its rank.
            eva_label_mask: eva: look at tokens that are learned alone.
            eva_whiten: eva: divide directions by the root of their singular values.
            corda_method: corda: ipm or kpm.
            lora_ga_direction: lora_ga: ArBr, A2rBr, ArB2r or random.
            lora_ga_scale: lora_ga: stable, weight_svd, gd_scale or unit.
            lora_ga_gamma: lora_ga: divides the factors where they are scaled as stable.
            **kwargs: Other fields of ``LoraConfig`` and ``TrainingOptions`` under any of their
                names, and the hooks of ``TrainingHooks``.

        Returns:
            The tuned model.

        Raises:
            LuthierError: If an argument, a row or the run itself is wrong.
        """
        return cls._tuned(arguments_of(locals()))

    def _whole_adapter(self) -> LoraAdapter:
        return self.lora

    def _config(self) -> dict[str, Any]:
        return {**self._text_config(), "task_type": self.lora.task_type}

    def save_merged(self, model_path: AnyPath) -> None:
        """Write base model and deltas as one whole model, which loads as ``TextGeneration``.

        Costs the base model's size on disk. Replaces what is there in one step.

        Args:
            model_path: The folder.

        Raises:
            NotSupportedError: If the base model is quantised: rounding would eat the deltas.
            InvalidInputError: If a merged weight exceeds what the base's precision can hold.
        """
        base = self.base_model
        target = Path(model_path)
        whole = TextGeneration(self.generator, history=self.history)
        config = self._whole_config()
        with writing_model(whole, target, config=config, history=self.history) as folder:
            texts = self.lora.added_tokens()
            added = added_tokens(base.tokenizer, texts)
            save_merged(self.lora, base.model, folder / ARTIFACTS_FOLDER, added=added)
            grown_tokenizer(base.tokenizer, texts).save_pretrained(folder / ARTIFACTS_FOLDER)
        log.info("saved a merged LoRA", extra={"model": target.name})

    @property
    def lora(self) -> LoraAdapter:
        """The deltas."""
        adapter = self.adapter
        lora = adapter.loaded() if isinstance(adapter, StoredAdapter) else adapter
        assert isinstance(lora, LoraAdapter)
        return lora
