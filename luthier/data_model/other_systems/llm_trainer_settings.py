"""The fields of the LLM Trainer element and its presets, and what each becomes here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from luthier.data_model.options.quantisation import INT8, NF4
from luthier.data_model.other_systems.foreign_setting import (
    ABSENT,
    ForeignSetting,
    Refusal,
    Status,
    Unneeded,
    Values,
    always,
)

#: Its words for base models -> names on the hub.
BASE_MODELS: Mapping[str, str] = MappingProxyType(
    {
        "LLaMA 3.1 8B Instruct": "meta-llama/Llama-3.1-8B-Instruct",
        "LLaMA 3.1 8B": "meta-llama/Llama-3.1-8B",
        "Mistral 7B": "mistralai/Mistral-7B-v0.3",
        "LLaMA 13B": "meta-llama/Llama-2-13b-hf",
    }
)
#: Bits per weight that are no quantisation -> our number format.
_UNQUANTISED = {16: "bfloat16", 32: "float32"}
#: The others -> ours.
_QUANTISED = {4: NF4, 8: INT8}


def _base_model(value: Any, values: Values) -> Any:
    path = values.get("Base model assets path")
    return path or BASE_MODELS.get(value, value)


def _bits(value: Any, values: Values) -> Any:
    """A bit width, for all its name says rank: of weights that are not quantised."""
    return _UNQUANTISED.get(value) or Unneeded("weights are quantised")


def _quantised_bits(value: Any, values: Values) -> Any:
    """The bit widths that are a quantisation."""
    if value in _UNQUANTISED:
        return Unneeded("weights are not quantised")
    return _QUANTISED.get(value) or Refusal(
        f"weights of {value!r:.20} bits are not offered: 4 and 8 are, and 16 and 32 as number "
        "formats (the rank of LoRA is lora.rank)"
    )


def _earlier_result(value: Any, values: Values) -> Any:
    return value or None


LLM_TRAINER_SETTINGS: tuple[ForeignSetting, ...] = (
    ForeignSetting("Element name", ABSENT, "general.model_name"),
    ForeignSetting(
        "Version",
        ABSENT,
        status=Status.REPLACED,
        reason="the installed version; luthier --version tells it",
        is_harmless=always,
    ),
    ForeignSetting(
        "Running on",
        ABSENT,
        status=Status.REPLACED,
        reason="where the command or the server runs",
        is_harmless=always,
    ),
    ForeignSetting(
        "Trained artifact",
        ABSENT,
        "general.start_from",
        _earlier_result,
        reason="a new training from an earlier result; general.resume_from goes on with a training "
        "that was cut short",
    ),
    ForeignSetting("Base model architecture", ABSENT, "general.base_model", _base_model),
    ForeignSetting("Training data path", ABSENT, "dataset.train_dataframe"),
    ForeignSetting(
        "Base model assets path",
        ABSENT,
        "general.base_model",
        _base_model,
        reason="before the architecture",
    ),
    ForeignSetting(
        "Enable metrics for trained model",
        ABSENT,
        status=Status.REPLACED,
        reason="losses are always written; with held-out rows the validation loss, too",
        is_harmless=always,
    ),
    ForeignSetting("Batch size", ABSENT, "training.batch_size"),
    ForeignSetting("Learning rate", 0.0001, "training.learning_rate"),
    ForeignSetting(
        "Quantization rank",
        ABSENT,
        "architecture.torch_dtype",
        _bits,
        reason="a bit width, not LoRA's rank: 16 is bfloat16, 32 float32",
    ),
    ForeignSetting(
        "Quantization rank",
        ABSENT,
        "architecture.quantization",
        _quantised_bits,
        reason="a bit width, not LoRA's rank: 4 is nf4, 8 int8; 2 bits are not offered",
    ),
    ForeignSetting(
        "Save every N iterations",
        ABSENT,
        "training.save_every_steps",
        reason="checkpoints, in general.run_folder",
        is_harmless=always,
    ),
    ForeignSetting("Random seed", ABSENT, "environment.seed"),
    ForeignSetting(
        "Artifact backup save path",
        ABSENT,
        "general.backup_folder",
        reason="copies of checkpoints; they are written where general.run_folder is given",
    ),
)

#: Preset -> what it fills in. The element itself asks for the data.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "customer_service_bot": {
            "Base model architecture": "LLaMA 3.1 8B",
            "Batch size": 4,
            "Learning rate": 1e-4,
            "Quantization rank": 4,
        },
        "healthcare_qa": {
            "Base model architecture": "Mistral 7B",
            "Batch size": 2,
            "Learning rate": 5e-5,
            "Quantization rank": 4,
        },
        "legal_documents": {
            "Base model architecture": "LLaMA 13B",
            "Batch size": 1,
            "Learning rate": 1e-5,
            "Quantization rank": 4,
        },
    }
)
