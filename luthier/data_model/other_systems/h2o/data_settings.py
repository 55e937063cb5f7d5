"""H2O LLM Studio: general settings, data set, tokenizer and augmentation."""

from __future__ import annotations

from luthier.data_model.other_systems.foreign_setting import ForeignSetting, Status, always, only
from luthier.data_model.other_systems.h2o.conversions import (
    columns,
    decoded_text,
    id_column,
    model_name,
    only_last,
    or_none,
    quantile,
    validation_file,
)

CAUSAL = "text_causal_language_modeling"
SEQ2SEQ = "text_sequence_to_sequence_modeling"

_GENERAL = (
    ForeignSetting("experiment_name", "", "general.model_name", model_name),
    ForeignSetting("llm_backbone", "", "general.base_model"),
    ForeignSetting(
        "output_directory",
        "",
        status=Status.REPLACED,
        reason="general.output_folder; paths of another machine are not taken over",
        is_harmless=always,
    ),
    ForeignSetting(
        "problem_type",
        CAUSAL,
        status=Status.REPLACED,
        reason="the base model itself says whether it is causal or sequence-to-sequence",
        is_harmless=only(CAUSAL, SEQ2SEQ),
    ),
)

_DATASET = (
    ForeignSetting(
        "dataset.personalize",
        False,
        "dataset.personalize",
        reason="what is put in is not replaced once more, unlike there",
    ),
    *(
        ForeignSetting(f"dataset.{name}", default, f"dataset.{name}", only_if="dataset.personalize")
        for name, default in (("chatbot_name", "h2oGPT"), ("chatbot_author", "H2O.ai"))
    ),
    ForeignSetting("dataset.train_dataframe", "", "dataset.train_dataframe"),
    ForeignSetting("dataset.validation_strategy", "automatic", "dataset.validation_strategy"),
    ForeignSetting(
        "dataset.validation_dataframe", "", "dataset.validation_dataframe", validation_file
    ),
    ForeignSetting("dataset.validation_size", 0.01, "dataset.validation_size"),
    ForeignSetting("dataset.data_sample", 1.0, "dataset.data_sample"),
    ForeignSetting(
        "dataset.data_sample_choice", ["Train", "Validation"], "dataset.data_sample_choice"
    ),
    ForeignSetting("dataset.system_column", "system", "dataset.system_column", or_none),
    ForeignSetting(
        "dataset.prompt_column", ["instruction", "input"], "dataset.prompt_column", columns
    ),
    ForeignSetting(
        "dataset.prompt_column_separator", "\\n\\n", "dataset.prompt_column_separator", decoded_text
    ),
    ForeignSetting("dataset.answer_column", "output", "dataset.answer_column"),
    ForeignSetting("dataset.parent_id_column", "parent_id", "dataset.parent_id_column", or_none),
    ForeignSetting("dataset.id_column", "id", "dataset.id_column", id_column),
    ForeignSetting(
        "dataset.text_system_start",
        "<|system|>",
        "dataset.text_system_start",
        decoded_text,
        seq2seq_default="",
    ),
    ForeignSetting(
        "dataset.text_prompt_start",
        "<|prompt|>",
        "dataset.text_prompt_start",
        decoded_text,
        seq2seq_default="",
    ),
    ForeignSetting(
        "dataset.text_answer_separator",
        "<|answer|>",
        "dataset.text_answer_separator",
        decoded_text,
        seq2seq_default="",
    ),
    *(
        ForeignSetting(f"dataset.{name}", default, f"dataset.{name}")
        for name, default in (
            ("add_eos_token_to_system", True),
            ("add_eos_token_to_prompt", True),
            ("add_eos_token_to_answer", True),
            ("limit_chained_samples", False),
            ("mask_prompt_labels", True),
        )
    ),
    ForeignSetting("dataset.only_last_answer", False, "dataset.only_last_answer", only_last),
    ForeignSetting(
        "dataset.rejected_prompt_column",
        None,
        status=Status.PREFERENCE,
        is_harmless=only(None, "None"),
    ),
    ForeignSetting(
        "dataset.rejected_answer_column",
        None,
        status=Status.PREFERENCE,
        is_harmless=only(None, "None"),
    ),
    ForeignSetting("dataset.num_classes", 1, status=Status.HEADS, is_harmless=only(1)),
    ForeignSetting(
        "dataset.add_prompt_answer_tokens",
        False,
        status=Status.REPLACED,
        reason="ignored there too; the one of the group tokenizer counts",
        is_harmless=always,
    ),
)

_TOKENIZER = (
    ForeignSetting(
        "tokenizer.max_length",
        512,
        "tokenizer.max_length",
        reason="what is cut is reported by row",
    ),
    ForeignSetting(
        "tokenizer.add_prompt_answer_tokens",
        False,
        "tokenizer.add_prompt_answer_tokens",
        reason="the tokens' embeddings are learned with a LoRA as well, where there they stay as "
        "they were drawn; a LoRA's model reads them and never writes them, so the adapter shares "
        "its base model; they start as the mean of the markers' pieces; and they are control "
        "tokens, so what a user types that spells one stays text",
    ),
    ForeignSetting("tokenizer.padding_quantile", 1.0, "tokenizer.padding_quantile", quantile),
    ForeignSetting(
        "tokenizer.tokenizer_kwargs",
        '{"use_fast": true, "add_prefix_space": false}',
        status=Status.NOT_OFFERED,
        reason="a tokenizer is used as the base model's files describe it",
        is_harmless=only('{"use_fast": true, "add_prefix_space": false}', "", "{}", None),
    ),
)

_AUGMENTATION = tuple(
    ForeignSetting(f"augmentation.{name}", 0.0, f"augmentation.{name}", reason=reason)
    for name, reason in (
        ("token_mask_probability", ""),
        ("skip_parent_probability", ""),
        ("random_parent_probability", "the random row's answer gets its EOS, unlike there"),
        ("neftune_noise_alpha", ""),
    )
)

H2O_DATA_SETTINGS = (*_GENERAL, *_DATASET, *_TOKENIZER, *_AUGMENTATION)
