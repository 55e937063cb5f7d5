"""H2O LLM Studio: what is measured and generated."""

from __future__ import annotations

from luthier.data_model.other_systems.foreign_setting import (
    ForeignSetting,
    Status,
    always,
)
from luthier.data_model.other_systems.h2o.conversions import (
    is_not_choosing,
    judge_model,
    judge_prompt,
    metric,
)

_AT_REQUEST = "given with each request for text, not with a training"

H2O_PREDICTION_SETTINGS = (
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
