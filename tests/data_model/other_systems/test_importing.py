from __future__ import annotations

from typing import Any

import pytest
from fixtures.h2o_default import H2O_DEFAULT

from luthier.config.yaml_text import parse_yaml
from luthier.data_model.experiment_file import experiment_from_yaml, experiment_to_yaml
from luthier.data_model.options.experiment import ExperimentOptions
from luthier.data_model.other_systems.importing import (
    Fate,
    ImportedExperiment,
    System,
    import_experiment,
    preset,
    system_of,
)
from luthier.errors import InvalidInputError, NotSupportedError, UnknownKeyError


def h2o(**changes: Any) -> ImportedExperiment:
    """The default experiment with some settings changed: ``training__epochs=2``."""
    content = parse_yaml(H2O_DEFAULT)
    for name, value in changes.items():
        group, _, key = name.partition("__")
        if key:
            content[group][key] = value
        else:
            content[group] = value
    return import_experiment(content, System.H2O)


def refused(imported: ImportedExperiment) -> list[str]:
    return [line.name for line in imported.lines(Fate.REFUSED)]


def test_an_h2o_default_experiment_is_mapped_setting_by_setting() -> None:
    imported = h2o()
    expected = ExperimentOptions.from_dict(
        {
            "general": {
                "method": "lora",
                "model_name": "default-8-a10g",
                "base_model": "h2oai/h2ogpt-4096-llama2-7b",
            },
            "dataset": {
                "train_dataframe": "/data/user/oasst/train_full.pq",
                "prompt_column": ["instruction"],
                "answer_column": "output",
                "prompt_format": "markers",
            },
            "tokenizer": {"max_length": 512},
            "architecture": {
                "gradient_checkpointing": True,
                "base_dropout": True,
                "quantization": "nf4",
            },
            "training": {
                "batch_size": 2,
                "accumulate_steps": 8,
                "learning_rate": 1e-4,
                "num_epochs": 1,
                "schedule": "cosine",
                "weight_decay": 0.0,
            },
            "prediction": {"metrics": ["loss", "bleu"]},
            "lora": {"rank": 4, "alpha": 16, "dropout": 0.05},
            "environment": {"seed": -1, "number_of_workers": 8, "mixed_precision": "bfloat16"},
        }
    )
    changes = expected.to_dict(is_complete=False)
    assert imported.options.to_dict(is_complete=False) == changes
    imported.options.validate()


def test_every_setting_of_the_file_is_in_the_report_once() -> None:
    content = parse_yaml(H2O_DEFAULT)
    names = [
        f"{group}.{name}" if isinstance(names, dict) else group
        for group, names in content.items()
        for name in (names if isinstance(names, dict) else [""])
    ]
    assert sorted(line.name for line in h2o().report) == sorted(names)
    assert all(line.text for line in h2o().report)


def test_nothing_of_the_default_experiment_is_refused() -> None:
    imported = h2o()
    imported.require_complete()
    (line,) = (each for each in imported.report if each.name == "architecture.backbone_dtype")
    assert (line.value, line.option) == ("int4", "architecture.quantization")


@pytest.mark.parametrize(
    ("word", "quantization", "torch_dtype"),
    [("int4", "nf4", None), ("int8", "int8", None), ("bfloat16", "none", "bfloat16")],
)
def test_a_backbone_dtype_is_a_quantisation_or_a_number_format(
    word: str, quantization: str, torch_dtype: str | None
) -> None:
    training = h2o(architecture__backbone_dtype=word).options.training
    assert (training.quantization, training.torch_dtype) == (quantization, torch_dtype)


def test_an_imported_experiment_is_exported_as_ours() -> None:
    options = h2o().options
    assert experiment_from_yaml(experiment_to_yaml(options)) == options


@pytest.mark.parametrize(
    ("changes", "path", "value"),
    [
        ({"training__warmup_epochs": 0.5}, "training.warmup_epochs", 0.5),
        ({"training__optimizer": "RMSprop"}, "training.optimizer", "rmsprop"),
        (
            {"training__loss_function": "SampleAveragedCrossEntropy"},
            "training.loss_function",
            "sample_average",
        ),
        ({"training__grad_accumulation": 4}, "training.accumulate_steps", 32),
        ({"environment__gpus": []}, "training.accumulate_steps", 1),
        ({"environment__mixed_precision": False}, "environment.mixed_precision", "off"),
        (
            {"environment__mixed_precision_dtype": "float16"},
            "environment.mixed_precision",
            "float16",
        ),
        ({"environment__compile_model": True}, "environment.compile_model", True),
        ({"environment__use_fsdp": True}, "environment.use_fsdp", True),
        ({"training__lora": False}, "general.method", "full_fine_tuning"),
        (
            {
                "training__lora": False,
                "architecture__backbone_dtype": "float32",
                "architecture__pretrained_weights": "a.pth",
            },
            "architecture.pretrained_weights",
            "a.pth",
        ),
        ({"training__gradient_clip": 1.5}, "training.max_grad_norm", 1.5),
        ({"training__lora_target_modules": "q, v"}, "lora.target_modules", ("q", "v")),
        ({"training__schedule": "Linear"}, "training.schedule", "linear"),
        ({"dataset__text_prompt_start": "Q:\\n"}, "dataset.text_prompt_start", "Q:\n"),
        ({"dataset__prompt_column": "text"}, "dataset.prompt_column", ("text",)),
        ({"dataset__system_column": "sys"}, "dataset.system_column", "sys"),
        ({"dataset__parent_id_column": "parent"}, "dataset.id_column", "id"),
        (
            {"tokenizer__add_prompt_answer_tokens": True},
            "tokenizer.add_prompt_answer_tokens",
            True,
        ),
        ({"tokenizer__padding_quantile": 0}, "tokenizer.padding_quantile", 1.0),
        ({"experiment_name": "a/b"}, "general.model_name", "a-b"),
        ({"architecture__backbone_dtype": "int8"}, "architecture.quantization", "int8"),
        ({"architecture__backbone_dtype": "float16"}, "architecture.torch_dtype", "float16"),
        ({"architecture__force_embedding_gradients": True}, "lora.unfreeze_layers", ("embed",)),
        (
            {"dataset__validation_dataframe": "v.csv", "dataset__validation_strategy": "custom"},
            "dataset.validation_dataframe",
            "v.csv",
        ),
    ],
)
def test_units_and_words_are_converted(changes: dict[str, Any], path: str, value: Any) -> None:
    imported = h2o(**changes)
    assert imported.options.value(path) == value
    imported.options.validate()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"environment__use_deepspeed": True}, "environment.use_deepspeed"),
        ({"architecture__pretrained": False}, "architecture.pretrained"),
        ({"architecture__pretrained_weights": "a.pth"}, "architecture.pretrained_weights"),
        ({"training__loss_function": "DPOLoss"}, "training.loss_function"),
        ({"training__use_rlhf": True}, "training.use_rlhf"),
        ({"environment__huggingface_branch": "dev"}, "environment.huggingface_branch"),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(
    changes: dict[str, Any], name: str
) -> None:
    imported = h2o(**changes)
    assert name in refused(imported)
    with pytest.raises(NotSupportedError, match=f"'{name}'"):
        imported.require_complete(answered={"architecture.torch_dtype"})


def test_a_metric_matters_only_where_it_chooses_the_checkpoint() -> None:
    assert "prediction.metric" not in refused(h2o())
    best = {"training__save_checkpoint": "best"}
    judged = h2o(prediction__metric="GPT", prediction__metric_gpt_model="gpt-x", **best)
    assert refused(judged) == []
    assert judged.options.training.metrics == ("ai_judge",)
    assert judged.options.training.judge_model == "gpt-x"
    asked = {"prediction__metric": "GPT", "prediction__metric_gpt_template": "rag"}
    assert "prediction.metric_gpt_template" in refused(h2o(**asked, **best))
    assert "prediction.metric_gpt_template" not in refused(h2o(**asked))
    assert "prediction.metric" not in refused(h2o(prediction__metric="GPT"))
    assert h2o(**best).options.training.metrics == ("bleu",)


def test_what_a_file_leaves_out_has_h2os_default_and_not_ours() -> None:
    imported = import_experiment({"llm_backbone": "b"}, System.H2O)
    assert imported.options.training.learning_rate == 1e-4
    assert imported.options.dataset.max_length == 512
    assert imported.options.training.quantization == "nf4"
    seq2seq = import_experiment(
        {"llm_backbone": "b", "problem_type": "text_sequence_to_sequence_modeling"}, System.H2O
    )
    assert seq2seq.options.dataset.text_prompt_start == ""
    assert seq2seq.options.training.torch_dtype == "bfloat16"


def test_a_key_that_h2o_does_not_have_is_refused() -> None:
    with pytest.raises(UnknownKeyError, match=r"training\.epoch'.*'training\.epochs'"):
        h2o(training__epoch=1)


@pytest.mark.parametrize("kind", ["text_dpo_modeling", "text_causal_classification_modeling"])
def test_other_kinds_of_problem_are_refused(kind: str) -> None:
    with pytest.raises(NotSupportedError, match=f"{kind}.*(not built yet|tuned by HeadTuning)"):
        h2o(problem_type=kind)


def test_arguments_of_caikit_nlp_are_mapped() -> None:
    content = {
        "base_model": "b",
        "train_stream": "t.jsonl",
        "tuning_type": "MULTITASK_PROMPT_TUNING",
        "lr": 0.1,
        "tuning_config": {"num_virtual_tokens": 8},
        "device": "__DETECT__",
    }
    assert system_of(content) is System.CAIKIT
    imported = import_experiment(content, System.CAIKIT)
    imported.require_complete()
    imported.options.validate()
    assert imported.options.general.method == "multitask_prompt_tuning"
    assert imported.options.training.learning_rate == 0.1
    assert imported.options.training.accumulate_steps == 32
    assert imported.options.dataset.validation_size == 0
    assert imported.options.tuning_config.num_virtual_tokens == 8


def test_an_unknown_tuning_type_of_caikit_nlp_is_refused() -> None:
    imported = import_experiment({"train_stream": "t", "tuning_type": "LORA"}, System.CAIKIT)
    assert refused(imported) == ["tuning_type"]


@pytest.mark.parametrize(
    ("name", "base_model", "batch_size", "learning_rate"),
    [
        ("customer_service_bot", "meta-llama/Llama-3.1-8B", 4, 1e-4),
        ("healthcare_qa", "mistralai/Mistral-7B-v0.3", 2, 5e-5),
        ("legal_documents", "meta-llama/Llama-2-13b-hf", 1, 1e-5),
    ],
)
def test_presets_of_the_llm_trainer_are_mapped(
    name: str, base_model: str, batch_size: int, learning_rate: float
) -> None:
    content = {**preset(name), "Training data path": "data", "Random Seed": 42}
    assert system_of(content) is System.LLM_TRAINER
    imported = import_experiment(content, System.LLM_TRAINER)
    options = imported.options
    assert (options.general.method, options.general.base_model) == ("lora", base_model)
    assert (options.training.batch_size, options.training.learning_rate, options.training.seed) == (
        batch_size, learning_rate, 42,
    )  # fmt: skip
    assert options.dataset.train_dataframe == "data"
    assert options.training.quantization == "nf4"
    imported.require_complete()


@pytest.mark.parametrize(
    ("bits", "quantization", "torch_dtype"),
    [(4, "nf4", None), (8, "int8", None), (16, "none", "bfloat16"), (32, "none", "float32")],
)
def test_a_quantization_rank_is_a_bit_width(
    bits: int, quantization: str, torch_dtype: str | None
) -> None:
    imported = import_experiment({"quantization_rank": bits}, System.LLM_TRAINER)
    imported.require_complete()
    training = imported.options.training
    assert (training.quantization, training.torch_dtype) == (quantization, torch_dtype)


def test_two_bits_are_refused() -> None:
    imported = import_experiment({"quantization_rank": 2}, System.LLM_TRAINER)
    with pytest.raises(NotSupportedError, match="weights of 2 bits are not offered"):
        imported.require_complete()


def test_fields_of_the_llm_trainer_are_known_however_they_are_written() -> None:
    content = {
        "🧬 Base Model Architecture": "LLaMA 3.1 8B Instruct",
        "Base model assets path (optional)": "/models/mine",
        "quantization_rank": 16,
    }
    imported = import_experiment(content, System.LLM_TRAINER)
    imported.require_complete()
    assert imported.options.general.base_model == "/models/mine"
    assert imported.options.training.torch_dtype == "bfloat16"


def test_a_field_given_twice_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="are the same"):
        import_experiment({"Batch Size": 1, "batch_size": 2}, System.LLM_TRAINER)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'healthcare_qa'"):
        preset("healthcare")


def test_our_own_files_are_of_no_other_system() -> None:
    assert system_of({"general": {"method": "lora"}}) is None
    assert system_of({"base_model": "b", "train_data": "t", "batch_size": 1}) is None
