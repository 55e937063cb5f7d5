"""LoRA tuning of a frozen base model: LoRA, rsLoRA, DoRA and their starts."""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional, Union

import alog
from caikit.core import ModuleBase, module
from caikit.core.data_model import DataStream
from caikit.interfaces.nlp.tasks import TextGenerationTask, TokenizationTask

from luthier.adapters.added_tokens import added_tokens, grown_tokenizer
from luthier.adapters.base import Adapter
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.lora.merge import save_merged
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.adapters.stored_adapter import StoredAdapter
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
from luthier.errors import NotSupportedError
from luthier.files.names import resolve_inside
from luthier.modules.environment import Environment, environment
from luthier.modules.text_generation.fingerprint import fingerprint, require_same_base
from luthier.modules.text_generation.generator import TextGenerator
from luthier.modules.text_generation.history import QUANTIZATION_KEY, TrainingHistory
from luthier.modules.text_generation.lora_plan import LoraTuningPlan, plan_lora_tuning
from luthier.modules.text_generation.saved_model import (
    ADAPTER_FOLDER,
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
from luthier.modules.text_generation.text_generation import TextGeneration
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
    id="e478d0cc-0c5c-423e-b654-ca9fa881395a",
    name="LoRA tuning",
    version="0.1.0",
    tasks=[TextGenerationTask, TokenizationTask],
)
class LoraTuning(TextModule, ModuleBase):
    """A base model with tuned low-rank deltas beside its linear layers.

    Args:
        generator: Does the work.
        history: How they were tuned.
    """

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
        plan = cls.plan_train(
            base_model=base_model,
            train_stream=train_stream,
            val_stream=val_stream,
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            use_rslora=use_rslora,
            use_dora=use_dora,
            target_modules=target_modules,
            exclude_modules=exclude_modules,
            modules_to_save=modules_to_save,
            unfreeze_layers=unfreeze_layers,
            rank_pattern=rank_pattern,
            alpha_pattern=alpha_pattern,
            initialisation=initialisation,
            lora_plus_ratio=lora_plus_ratio,
            device=device,
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
            layers_to_transform=layers_to_transform,
            layers_pattern=layers_pattern,
            trainable_token_indices=trainable_token_indices,
            start_batches=start_batches,
            eva_rho=eva_rho,
            eva_adjust_scaling=eva_adjust_scaling,
            eva_label_mask=eva_label_mask,
            eva_whiten=eva_whiten,
            corda_method=corda_method,
            lora_ga_direction=lora_ga_direction,
            lora_ga_scale=lora_ga_scale,
            lora_ga_gamma=lora_ga_gamma,
            **kwargs,
        )
        lease = plan.acquire()
        with lease.kept_if_no_error():
            adapter = plan.make_adapter(lease.base_model)
            result = plan.tune(lease.base_model, adapter)
        generator = _generator(
            lease, adapter, plan.environment, style=plan.prompt_style(lease.base_model)
        )
        return cls(generator, history=TrainingHistory.of(result, plan.options))

    @classmethod
    def plan_train(cls, **arguments: Any) -> LoraTuningPlan:
        """Check everything about a training that can be known without the weights.

        Args:
            **arguments: Of ``train``.

        Returns:
            What ``train`` would do.

        Raises:
            LuthierError: If it would fail.
        """
        return plan_lora_tuning(arguments, module_id=cls.MODULE_ID, environment=environment())

    @classmethod
    def bootstrap(
        cls,
        base_model: AnyBaseModel,
        adapter: Union[AnyPath, Adapter],
        verbalizer: str = DEFAULT_VERBALIZER,
    ) -> "LoraTuning":
        """Put deltas that exist already beside a base model.

        Args:
            base_model: Name, path or BaseModel.
            adapter: PEFT's folder of a LoRA, or an adapter.
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
            generator = _generator(
                lease, _require_lora(adapter), here, style=PromptStyle(verbalizer)
            )
        return cls(generator)

    @classmethod
    def _load_folder(cls, folder: Path, base_model: Optional[AnyBaseModel]) -> "LoraTuning":
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
            adapter = _require_lora(load_adapter(adapter_folder, base_model=lease.base_model))
            generator = _generator(
                lease,
                adapter,
                here,
                style=style_of(config),
                adapter_folder=adapter_folder,
                cleans_up_spaces=wants_clean_spaces(config),
            )
        return cls(generator, history=TrainingHistory.read(folder, config))

    def save(self, model_path: AnyPath) -> None:
        """Write the deltas as a folder; the base model is named in it, not copied.

        Replaces what is there in one step.

        Args:
            model_path: The folder.
        """
        base, lora = self.base_model, self.lora
        config = {
            "adapter_path": ADAPTER_FOLDER,
            CLEAN_SPACES_KEY: self.generator.cleans_up_spaces,
            "base_model_fingerprint": fingerprint(base),
            "base_model_name": base.name,
            "eos_token": base.tokenizer.eos_token,
            "task_type": lora.task_type,
            "trained_torch_dtype": str(base.dtype).removeprefix("torch."),
            **style_config(self.generator.style),
        }
        target = Path(model_path)
        with writing_model(self, target, config=config, history=self.history) as folder:
            save_adapter(
                lora, folder / ADAPTER_FOLDER, base_model_name=base.name, tokenizer=base.tokenizer
            )
        log.info("saved a LoRA", extra={"model": target.name})

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
        config = {
            "artifact_path": ARTIFACTS_FOLDER,
            "base_model_name": base.name,
            CLEAN_SPACES_KEY: self.generator.cleans_up_spaces,
            "eos_token": base.tokenizer.eos_token,
            "torch_dtype": str(base.dtype),
            **style_config(self.generator.style),
        }
        target = Path(model_path)
        whole = TextGeneration(self.generator, history=self.history)
        with writing_model(whole, target, config=config, history=self.history) as folder:
            texts = self.lora.added_tokens()
            added = added_tokens(base.tokenizer, texts)
            save_merged(self.lora, base.model, folder / ARTIFACTS_FOLDER, added=added)
            grown_tokenizer(base.tokenizer, texts).save_pretrained(folder / ARTIFACTS_FOLDER)
        log.info("saved a merged LoRA", extra={"model": target.name})

    @property
    def lora(self) -> LoraAdapter:
        """The deltas."""
        assert self.adapter is not None
        if isinstance(self.adapter, StoredAdapter):
            return _require_lora(self.adapter.loaded())
        return _require_lora(self.adapter)

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


def _generator(
    lease: BaseModelLease,
    adapter: LoraAdapter,
    here: Environment,
    *,
    style: PromptStyle,
    adapter_folder: Optional[Path] = None,
    cleans_up_spaces: bool = False,
) -> TextGenerator:
    return TextGenerator(
        lease,
        producer_id=LoraTuning.PRODUCER_ID,
        environment=here,
        adapter=adapter,
        style=style,
        adapter_folder=adapter_folder,
        cleans_up_spaces=cleans_up_spaces,
    )


def _require_lora(adapter: Adapter) -> LoraAdapter:
    if not isinstance(adapter, LoraAdapter):
        raise NotSupportedError(f"module LoraTuning runs LoRA, this adapter is {adapter.method}")
    return adapter
