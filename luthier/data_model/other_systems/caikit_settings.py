"""The arguments of caikit-nlp's prompt tuning, and what each becomes here."""

from __future__ import annotations

from typing import Any

from luthier.data_model.options.run_options import MULTITASK_PROMPT_TUNING, PROMPT_TUNING
from luthier.data_model.other_systems.foreign_setting import (
    ABSENT,
    ForeignSetting,
    Refusal,
    Status,
    Values,
    always,
)

_METHODS = {
    "PROMPT_TUNING": PROMPT_TUNING,
    "MULTITASK_PROMPT_TUNING": MULTITASK_PROMPT_TUNING,
}


def _method(value: Any, values: Values) -> Any:
    return _METHODS.get(value) or Refusal(f"tuning type {value!r:.80} is not built yet")


def _device(value: Any, values: Values) -> Any:
    return None if value == "__DETECT__" else value


CAIKIT_SETTINGS: tuple[ForeignSetting, ...] = (
    ForeignSetting("base_model", ABSENT, "general.base_model"),
    ForeignSetting("train_stream", ABSENT, "dataset.train_dataframe", reason="a file's path"),
    ForeignSetting("val_stream", ABSENT, "dataset.validation_dataframe", reason="a file's path"),
    ForeignSetting("tuning_type", "PROMPT_TUNING", "general.method", _method),
    ForeignSetting("num_epochs", 20, "training.num_epochs"),
    ForeignSetting("device", ABSENT, "environment.device", _device),
    ForeignSetting("lr", ABSENT, "training.learning_rate", reason="the older name"),
    ForeignSetting("learning_rate", ABSENT, "training.learning_rate", reason="0.3 if not given"),
    ForeignSetting("accumulate_steps", 32, "training.accumulate_steps"),
    ForeignSetting("verbalizer", "{{input}}", "dataset.verbalizer"),
    ForeignSetting("batch_size", 8, "training.batch_size"),
    ForeignSetting("max_source_length", 256, "tokenizer.max_source_length"),
    ForeignSetting("max_target_length", 128, "tokenizer.max_target_length"),
    *(
        ForeignSetting(f"tuning_config.{name}", ABSENT, f"tuning_config.{name}")
        for name in (
            "num_virtual_tokens",
            "prompt_tuning_init_method",
            "prompt_tuning_init_text",
            "prompt_tuning_init_source_model",
            "output_model_types",
        )
    ),
    ForeignSetting("torch_dtype", ABSENT, "architecture.torch_dtype"),
    ForeignSetting("silence_progress_bars", True, "logging.silence_progress_bars"),
    ForeignSetting("seed", 73, "environment.seed"),
    *(
        ForeignSetting(
            name,
            ABSENT,
            status=Status.REPLACED,
            reason=f"server setting {name}",
            is_harmless=always,
        )
        for name in (
            "allow_downloads",
            "base_models_dir",
            "source_prompt_base",
            "training_data_limit",
        )
    ),
    *(
        ForeignSetting(name, ABSENT, status=Status.REPLACED, reason=reason, is_harmless=always)
        for name, reason in (
            ("unload_tgis_prompt_artifacts", "models run in the server itself"),
            ("tgis_request_timeout", "models run in the server itself"),
            ("master_addr", "a training runs in one process"),
            ("master_port", "a training runs in one process"),
        )
    ),
)
