"""What makes two trainings different ones."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from luthier.adapters.base import Adapter
from luthier.adapters.lora.building import create_lora
from luthier.data_model.conversations import ChatMessage, ChatTrainRecord
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.setting import Setting
from luthier.data_model.options.training_options import TrainingOptions
from luthier.resources.base_model import BaseModel
from luthier.training.checkpointing.run_fingerprint import RunFingerprint, fingerprint_run
from luthier.training.data.examples import Example, TrainingData, TruncationReport
from luthier.training.preparation import read_data

OPTIONS = TrainingOptions()
DATA = TrainingData(
    (Example(1, (1, 2), (-100, 2)), Example(2, (1, 2, 3), (-100, 2, 3))), TruncationReport()
)


def _fingerprint(base: BaseModel, **changes: Any) -> RunFingerprint:
    adapter: Adapter = changes.get("adapter") or create_lora(base.model, LoraConfig(rank=2), seed=0)
    return fingerprint_run(
        base,
        adapter,
        changes.get("data", DATA),
        changes.get("validation"),
        changes.get("options", OPTIONS),
    )


def test_the_same_training_has_no_differences(tiny_causal_base: BaseModel) -> None:
    changes = {"options": dataclasses.replace(OPTIONS, silence_progress_bars=False, device="cpu")}
    now = _fingerprint(tiny_causal_base, **changes)
    assert _fingerprint(tiny_causal_base).differences(now) == []


@pytest.mark.parametrize(
    "example", [Example(1, (1, 5), (-100, 2)), Example(1, (1, 2), (1, 2)), Example(1, (), (1, 2))]
)
def test_every_token_and_label_counts(example: Example, tiny_causal_base: BaseModel) -> None:
    data = TrainingData((example, DATA.examples[1]), TruncationReport())
    differences = _fingerprint(tiny_causal_base).differences(
        _fingerprint(tiny_causal_base, data=data)
    )
    assert differences == ["the training data differs in 1 rows, the first is row 1"]


def test_one_changed_layer_of_the_base_counts(tiny_causal_base: BaseModel) -> None:
    model = copy.deepcopy(tiny_causal_base.model)
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.down_proj").weight.mul_(1.001)
    other = BaseModel.from_memory(model, tiny_causal_base.tokenizer, name="other")
    differences = _fingerprint(tiny_causal_base).differences(_fingerprint(other))
    assert differences == ["the base model has other weights"]


def test_settings_of_the_adapter_are_named(tiny_causal_base: BaseModel) -> None:
    other = create_lora(tiny_causal_base.model, LoraConfig(rank=2, alpha=64), seed=0)
    (difference,) = _fingerprint(tiny_causal_base).differences(
        _fingerprint(tiny_causal_base, adapter=other)
    )
    assert difference.startswith("'lora_alpha' was ")


def _another_value(name: str, setting: Setting, default: Any) -> Any:
    """A value of an option unlike its default, by its kind; valid or not does not matter here."""
    if setting.kind == "bool":
        return not default
    if setting.kind in ("int", "number"):
        return (default or 0) + 1
    if setting.kind == "text":
        return f"{default} other"
    if setting.kind == "names":
        return ("another",)
    assert setting.kind == "choice", name
    if name == "save_checkpoint":
        return "best"
    return next(word for word in setting.choices if word != default)


#: Options that say how, where or when, but not what is learned.
BOOKKEEPING = {
    "checkpoint_time_share",
    "compile_model",
    "device",
    "keep_checkpoints",
    "num_processes",
    "save_every_seconds",
    "save_every_steps",
    "serve_quantized",
    "silence_progress_bars",
    "torch_dtype",
    "tracker_project",
    "trackers",
    "use_fsdp",
}


@pytest.mark.parametrize("field", dataclasses.fields(TrainingOptions), ids=lambda each: each.name)
def test_a_changed_option_is_named_unless_it_is_bookkeeping(
    field: dataclasses.Field[Any], tiny_causal_base: BaseModel
) -> None:
    value = _another_value(field.name, field.metadata["setting"], field.default)
    changed = dataclasses.replace(OPTIONS, **{field.name: value})
    found = _fingerprint(tiny_causal_base).differences(
        _fingerprint(tiny_causal_base, options=changed)
    )
    if field.name in BOOKKEEPING:
        assert found == []
    elif field.name == "save_checkpoint":  # whether the best comes out is all that counts
        assert found == ["'save_checkpoint' was 'not best' and is 'best'"]
    else:
        (difference,) = found
        assert difference.startswith(f"'{field.name}' was ")
        assert str(value).strip("(),") in difference


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 3},
        {"alpha": 3.0},
        {"dropout": 0.2},
        {"use_rslora": True},
        {"use_dora": True},
        {"target_modules": ("q_proj",)},
        {"exclude_modules": ("q_proj",)},
        {"layers_to_transform": (0,)},
        {"rank_pattern": {"q_proj": 1}},
        {"alpha_pattern": {"q_proj": 1.0}},
        {"modules_to_save": ("lm_head",)},
        {"unfreeze_layers": ("norm",)},
        {"initialisation": "pissa"},
        {"lora_plus_ratio": 4.0},
    ],
    ids=lambda each: next(iter(each)),
)
def test_a_changed_setting_of_lora_is_found(
    changes: dict[str, Any], tiny_causal_base: BaseModel
) -> None:
    config = LoraConfig(rank=2, alpha=4.0)
    one = create_lora(tiny_causal_base.model, config, seed=0)
    other = create_lora(tiny_causal_base.model, dataclasses.replace(config, **changes), seed=0)
    found = _fingerprint(tiny_causal_base, adapter=one).differences(
        _fingerprint(tiny_causal_base, adapter=other)
    )
    assert found, f"{changes} goes unnoticed"


@pytest.mark.parametrize(
    "changes",
    [
        {"text_system_start": "<sys>"},
        {"text_prompt_start": "<ask>"},
        {"text_answer_separator": "<say>"},
        {"add_eos_token_to_system": False},
        {"add_eos_token_to_prompt": False},
        {"add_eos_token_to_answer": False},
        {"mask_prompt_labels": False},
        {"only_last_answer": True},
        {"max_length": 9},
        {"prompt_format": "chat_template"},
        {"padding_quantile": 0.5},
        {"token_mask_probability": 0.5},
        {"skip_parent_probability": 0.5},
        {"random_parent_probability": 0.5},
        {"neftune_noise_alpha": 5.0},
    ],
    ids=lambda each: next(iter(each)),
)
def test_a_changed_way_of_writing_rows_is_found(
    changes: dict[str, Any], tiny_causal_base: BaseModel
) -> None:
    base = tiny_causal_base
    turns = [("system", "be kind"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [ChatMessage(role, text) for role, text in [*turns, ("assistant", "d")]]
    record = ChatTrainRecord(tuple(messages))
    adapter = create_lora(base.model, LoraConfig(rank=2), seed=0)

    def fingerprint(dataset: DatasetOptions) -> RunFingerprint:
        data, _ = read_data(
            base,
            adapter,
            [record, record],
            None,
            options=OPTIONS,
            dataset=dataset,
            should_stop=lambda: False,
        )
        return _fingerprint(base, data=data)

    dataset = DatasetOptions(prompt_format="markers")
    found = fingerprint(dataset).differences(fingerprint(dataclasses.replace(dataset, **changes)))
    assert found, f"{changes} goes unnoticed"
