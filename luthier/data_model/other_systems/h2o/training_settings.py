"""H2O LLM Studio: architecture and training."""

from __future__ import annotations

from luthier.data_model.other_systems.foreign_setting import (
    ForeignSetting,
    Status,
    always,
    as_choice,
    only,
)
from luthier.data_model.other_systems.h2o.conversions import (
    batches_per_update,
    dtype,
    is_not_choosing,
    loss,
    method,
    names,
    pretrained_weights,
    quantization,
    save_word,
)

_NO_EFFECT = "it changes nothing that is learned"

_ARCHITECTURE = (
    ForeignSetting(
        "architecture.pretrained",
        True,
        status=Status.NOT_OFFERED,
        reason="a base model always comes with its weights",
        is_harmless=only(True),
    ),
    ForeignSetting(
        "architecture.backbone_dtype",
        "int4",
        "architecture.torch_dtype",
        dtype,
        reason="int4 and int8 leave it to architecture.torch_dtype what is computed in",
        seq2seq_default="bfloat16",
    ),
    ForeignSetting(
        "architecture.backbone_dtype",
        "int4",
        "architecture.quantization",
        quantization,
        reason="int4 is nf4, computed in architecture.torch_dtype; works without a GPU, too",
        seq2seq_default="bfloat16",
    ),
    ForeignSetting(
        "architecture.gradient_checkpointing",
        True,
        "architecture.gradient_checkpointing",
        reason="the same numbers either way; off is faster and takes more memory",
    ),
    ForeignSetting(
        "architecture.intermediate_dropout",
        0.0,
        "architecture.intermediate_dropout",
        reason="acts wherever a model can drop something; there only where its config has "
        "hidden_dropout_prob or attention_probs_dropout_prob, which few models that write text do",
    ),
    ForeignSetting(
        "architecture.pretrained_weights",
        "",
        "architecture.pretrained_weights",
        pretrained_weights,
        reason="for full fine-tuning; read without unpickling; what does not fit is refused, not "
        "left out. Of a LoRA's checkpoint.pth name the exported adapter as general.start_from",
    ),
)

_TRAINING = (
    ForeignSetting(
        "training.loss_function",
        "TokenAveragedCrossEntropy",
        "training.loss_function",
        loss,
        reason="an update learns the mean over its label tokens",
        is_harmless=only("TokenAveragedCrossEntropy"),
    ),
    ForeignSetting(
        "training.optimizer",
        "AdamW",
        "training.optimizer",
        as_choice("training.optimizer"),
        reason="AdamW8bit decays weights apart from the gradient, unlike there",
        is_harmless=only("AdamW"),
    ),
    ForeignSetting("training.learning_rate", 0.0001, "training.learning_rate"),
    ForeignSetting(
        "training.differential_learning_rate_layers",
        [],
        "training.differential_learning_rate_layers",
        is_harmless=only([], None, "None"),
    ),
    ForeignSetting(
        "training.differential_learning_rate",
        1e-05,
        "training.differential_learning_rate",
        only_if="training.differential_learning_rate_layers",
    ),
    ForeignSetting(
        "training.freeze_layers",
        [],
        "training.freeze_layers",
        is_harmless=only([], None, "None"),
        only_if="not training.lora",
    ),
    ForeignSetting(
        "training.attention_implementation",
        "auto",
        "architecture.attention_implementation",
        status=Status.REPLACED,
        reason="chosen by itself; " + _NO_EFFECT,
        is_harmless=always,
    ),
    ForeignSetting("training.batch_size", 2, "training.batch_size", reason="there per device"),
    ForeignSetting(
        "training.drop_last_batch",
        True,
        status=Status.REPLACED,
        reason="rows are never dropped: the last batch of an epoch is a short one",
        is_harmless=always,
    ),
    ForeignSetting("training.epochs", 1, "training.num_epochs"),
    ForeignSetting(
        "training.schedule",
        "Cosine",
        "training.schedule",
        as_choice("training.schedule"),
        reason="moves once per update, not per batch",
    ),
    ForeignSetting(
        "training.min_learning_rate_ratio",
        0.0,
        "training.min_learning_rate_ratio",
        is_harmless=only(0, 0.0),
    ),
    ForeignSetting(
        "training.warmup_epochs",
        0.0,
        "training.warmup_epochs",
        is_harmless=only(0, 0.0),
    ),
    ForeignSetting(
        "training.weight_decay",
        0.0,
        "training.weight_decay",
    ),
    ForeignSetting("training.gradient_clip", 0.0, "training.max_grad_norm"),
    ForeignSetting(
        "training.grad_accumulation",
        1,
        "training.accumulate_steps",
        batches_per_update,
        reason="times the number of devices; exact, without their off-by-one",
    ),
    ForeignSetting("training.lora", True, "general.method", method),
    *(
        ForeignSetting(f"training.{name}", default, option, only_if="training.lora")
        for name, default, option in (
            ("use_dora", False, "lora.use_dora"),
            ("lora_r", 4, "lora.rank"),
            ("lora_alpha", 16, "lora.alpha"),
            ("lora_dropout", 0.05, "lora.dropout"),
            ("use_rslora", False, "lora.use_rslora"),
        )
    ),
    ForeignSetting(
        "training.lora_target_modules",
        "",
        "lora.target_modules",
        names,
        only_if="training.lora",
    ),
    ForeignSetting(
        "training.lora_unfreeze_layers", [], "lora.unfreeze_layers", only_if="training.lora"
    ),
    ForeignSetting(
        "training.save_checkpoint",
        "last",
        "training.save_checkpoint",
        save_word,
        reason="the tuned model is always saved at the end",
        is_harmless=only("last", "disable"),
    ),
    ForeignSetting(
        "training.evaluation_epochs",
        1.0,
        "training.evaluation_epochs",
        reason="validation after each epoch",
        is_harmless=is_not_choosing,
    ),
    ForeignSetting(
        "training.evaluate_before_training",
        False,
        "training.evaluate_before_training",
        reason=_NO_EFFECT,
        is_harmless=always,
    ),
    ForeignSetting(
        "training.train_validation_data",
        False,
        "training.train_validation_data",
        is_harmless=only(False),
    ),
    *(
        ForeignSetting(
            f"training.{name}",
            default,
            status=Status.PREFERENCE,
            reason="settings of preference losses",
            is_harmless=always,
        )
        for name, default in (("beta", 0.2), ("simpo_gamma", 1.0))
    ),
)

H2O_TRAINING_SETTINGS = (*_ARCHITECTURE, *_TRAINING)
