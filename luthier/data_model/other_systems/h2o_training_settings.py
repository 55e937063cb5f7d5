"""H2O LLM Studio: architecture, training, prediction, environment and logging."""

from __future__ import annotations

from luthier.data_model.other_systems.foreign_setting import (
    ForeignSetting,
    Status,
    always,
    as_choice,
    only,
)
from luthier.data_model.other_systems.h2o_conversions import (
    batches_per_update,
    dtype,
    is_not_choosing,
    judge_model,
    judge_prompt,
    loss,
    method,
    metric,
    mixed_precision,
    names,
    pretrained_weights,
    quantization,
    save_word,
    tracker,
    tracker_project,
)

_AT_REQUEST = "given with each request for text, not with a training"
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

_PREDICTION = (
    ForeignSetting(
        "prediction.metric",
        "GPT",
        "prediction.metrics",
        metric,
        reason="GPT is ai_judge; their fallback to BLEU without a key is a refusal here",
        is_harmless=is_not_choosing,
    ),
    ForeignSetting(
        "prediction.metric_gpt_model", "gpt-3.5-turbo-0301", "prediction.judge_model", judge_model
    ),
    ForeignSetting(
        "prediction.metric_gpt_template",
        "general",
        "prediction.judge_template",
        judge_prompt,
        reason="our own wording of general; rag and mt-bench need other data",
    ),
    ForeignSetting(
        "prediction.max_length_inference",
        256,
        "prediction.max_generated_tokens",
        reason="for metrics; a request for text brings its own max_new_tokens",
        is_harmless=always,
    ),
    ForeignSetting(
        "prediction.batch_size_inference",
        0,
        status=Status.REPLACED,
        reason="validation takes training.batch_size; serving batches by itself",
        is_harmless=always,
    ),
    *(
        ForeignSetting(
            f"prediction.{name}",
            default,
            status=Status.REPLACED,
            reason=f"{ours}: {_AT_REQUEST}; metrics generate greedily",
            is_harmless=always,
        )
        for name, default, ours in (
            ("min_length_inference", 2, "min_new_tokens"),
            ("max_time", 0.0, "max_time"),
            ("do_sample", False, "decoding_method"),
            ("temperature", 0.0, "temperature"),
            ("repetition_penalty", 1.0, "repetition_penalty"),
            ("stop_tokens", "", "stop_sequences"),
            ("top_k", 0, "top_k"),
            ("top_p", 1.0, "top_p"),
            ("num_beams", 1, "num_beams"),
        )
    ),
    ForeignSetting(
        "prediction.num_history",
        4,
        status=Status.REPLACED,
        reason="a client sends as much of a conversation as it wants",
        is_harmless=always,
    ),
)

_ENVIRONMENT = (
    ForeignSetting(
        "environment.gpus",
        [],
        "training.accumulate_steps",
        batches_per_update,
        reason="the devices' batches are accumulated, for the same updates; see num_processes",
    ),
    ForeignSetting(
        "environment.mixed_precision",
        True,
        "environment.mixed_precision",
        mixed_precision,
        reason="with mixed_precision_dtype; off on a CPU where it is slower",
        seq2seq_default=False,
    ),
    ForeignSetting(
        "environment.mixed_precision_dtype",
        "bfloat16",
        status=Status.REPLACED,
        reason="part of mixed_precision",
        is_harmless=always,
    ),
    ForeignSetting(
        "environment.compile_model",
        False,
        "environment.compile_model",
        reason="layers, not the whole model",
    ),
    ForeignSetting("environment.use_fsdp", False, "environment.use_fsdp"),
    ForeignSetting(
        "environment.use_deepspeed",
        False,
        status=Status.NOT_OFFERED,
        reason="use_fsdp shares weights out as its ZeRO 3 does, and needs no package of its own",
        is_harmless=only(False),
    ),
    ForeignSetting(
        "environment.deepspeed_method",
        "ZeRO2",
        status=Status.NOT_OFFERED,
        reason="part of use_deepspeed",
        only_if="environment.use_deepspeed",
    ),
    *(
        ForeignSetting(
            f"environment.deepspeed_{name}",
            1_000_000,
            status=Status.NOT_OFFERED,
            reason="part of use_deepspeed",
            only_if="environment.use_deepspeed",
        )
        for name in (
            "allgather_bucket_size",
            "reduce_bucket_size",
            "stage3_prefetch_bucket_size",
            "stage3_param_persistence_threshold",
        )
    ),
    ForeignSetting(
        "environment.find_unused_parameters",
        False,
        status=Status.REPLACED,
        reason="what a process has no gradient for counts as zero",
        is_harmless=always,
    ),
    ForeignSetting(
        "environment.trust_remote_code",
        True,
        status=Status.REPLACED,
        reason="the operator's to decide: the server setting trust_remote_code, off by default",
        is_harmless=always,
    ),
    ForeignSetting(
        "environment.huggingface_branch",
        "main",
        status=Status.NOT_OFFERED,
        reason="a base model's name means one content; put another revision into a folder of "
        "base_models_dir and name that",
        is_harmless=only("main", "", None),
    ),
    ForeignSetting("environment.number_of_workers", 4, "environment.number_of_workers"),
    ForeignSetting("environment.seed", -1, "environment.seed"),
)

_LOGGING = (
    *(
        ForeignSetting(
            f"logging.{name}",
            default,
            status=Status.REPLACED,
            reason="metrics.jsonl has updates, epochs and losses; one process writes it",
            is_harmless=always,
        )
        for name, default in (("log_step_size", "absolute"), ("log_all_ranks", False))
    ),
    ForeignSetting(
        "logging.logger",
        "None",
        "logging.trackers",
        tracker,
        reason="W&B; Neptune is not offered; metrics.jsonl is always written",
        is_harmless=always,
    ),
    ForeignSetting(
        "logging.wandb_project",
        "",
        "logging.tracker_project",
        tracker_project,
        is_harmless=always,
    ),
    ForeignSetting(
        "logging.wandb_entity",
        "",
        status=Status.REPLACED,
        reason="the environment variable WANDB_ENTITY",
        is_harmless=always,
    ),
    ForeignSetting(
        "logging.neptune_project",
        "",
        status=Status.NOT_OFFERED,
        reason="part of logger Neptune, whose service was closed in 2026",
        is_harmless=always,
    ),
)

H2O_TRAINING_SETTINGS = (*_ARCHITECTURE, *_TRAINING, *_PREDICTION, *_ENVIRONMENT, *_LOGGING)
