"""H2O LLM Studio: environment and logging."""

from __future__ import annotations

from luthier.data_model.other_systems.foreign_setting import (
    ForeignSetting,
    Status,
    always,
    only,
)
from luthier.data_model.other_systems.h2o.conversions import (
    batches_per_update,
    mixed_precision,
    tracker,
    tracker_project,
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

H2O_ENVIRONMENT_SETTINGS = (*_ENVIRONMENT, *_LOGGING)
