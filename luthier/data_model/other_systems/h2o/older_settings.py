"""Settings that H2O LLM Studio had once: they count where a file gives them."""

from __future__ import annotations

from typing import Any

from luthier.data_model.other_systems.foreign_setting import (
    ABSENT,
    ForeignSetting,
    Refusal,
    Status,
    Values,
    always,
    only,
)


def _embeddings(value: Any, values: Values) -> Any:
    layers = values["training.lora_unfreeze_layers"]
    if not isinstance(layers, list) or not isinstance(value, bool):
        return Refusal("it must be a bool, and lora_unfreeze_layers a list")
    return [*layers, "embed"] if value and "embed" not in layers else layers


def _best_or_last(value: Any, values: Values) -> Any:
    return "best" if value else "last"


_PPO = (
    "reward_model",
    "adaptive_kl_control",
    "full_kl_penalty",
    "initial_kl_coefficient",
    "kl_target",
    "kl_horizon",
    "advantages_gamma",
    "advantages_lambda",
    "ppo_clip_policy",
    "ppo_clip_value",
    "scaling_factor_value_loss",
    "ppo_epochs",
    "ppo_batch_size",
    "ppo_generate_temperature",
    "offload_reward_model",
    "rollout_steps",
)

H2O_OLDER_SETTINGS = (
    *(
        ForeignSetting(
            f"tokenizer.{name}",
            ABSENT,
            f"tokenizer.{name}",
            reason="beside tokenizer.max_length, which caps each part and the whole",
        )
        for name in ("max_length_prompt", "max_length_answer")
    ),
    ForeignSetting(
        "tokenizer.use_fast",
        ABSENT,
        status=Status.REPLACED,
        reason="a fast tokenizer is used where there is one",
        is_harmless=always,
    ),
    ForeignSetting(
        "tokenizer.add_prefix_space",
        ABSENT,
        status=Status.NOT_OFFERED,
        reason="a tokenizer is used as the base model's files describe it",
        is_harmless=only(False),
    ),
    ForeignSetting(
        "architecture.force_embedding_gradients",
        ABSENT,
        "lora.unfreeze_layers",
        _embeddings,
        reason="adds embed; unlike there, the embeddings learn",
        only_if="training.lora",
    ),
    ForeignSetting(
        "training.use_flash_attention_2",
        ABSENT,
        status=Status.REPLACED,
        reason="attention is chosen by itself; it changes nothing that is learned",
        is_harmless=always,
    ),
    ForeignSetting(
        "training.save_best_checkpoint",
        ABSENT,
        "training.save_checkpoint",
        _best_or_last,
        is_harmless=only(False),
    ),
    ForeignSetting("training.use_rlhf", ABSENT, status=Status.PREFERENCE, is_harmless=only(False)),
    *(
        ForeignSetting(
            f"training.{name}",
            ABSENT,
            status=Status.PREFERENCE,
            reason="reinforcement learning from a reward model",
            is_harmless=always,
        )
        for name in _PPO
    ),
    *(
        ForeignSetting(
            f"environment.deepspeed_{name}",
            ABSENT,
            status=Status.NOT_OFFERED,
            reason="part of use_deepspeed",
            only_if="environment.use_deepspeed",
        )
        for name in (
            "offload_optimizer",
            "stage3_max_live_parameters",
            "stage3_max_reuse_distance",
        )
    ),
    ForeignSetting(
        "logging.number_of_texts",
        ABSENT,
        status=Status.REPLACED,
        reason="it changes nothing that is learned",
        is_harmless=always,
    ),
)
