"""Resuming through the loop's one door, and what a checkpoint folder may and may not hold."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.adapters.lora.building import create_lora
from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.adapters.storage import load_adapter
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import ArtifactError, ConflictError
from luthier.resources.base_model import BaseModel
from luthier.training.checkpointing.checkpoints import (
    find_checkpoint,
    list_checkpoints,
    read_checkpoint,
)
from luthier.training.checkpointing.state import ResumePoint
from luthier.training.loop import tune
from luthier.training.results import TrainingResult

RECORDS = [
    GenerationTrainRecord(input=f"{text} {'please ' * (number % 5)}", output=label)
    for number in range(4)
    for text, label in (("charged twice", "billing"), ("black screen", "technical"))
]
OPTIONS = TrainingOptions(
    num_epochs=3, learning_rate=0.01, batch_size=2, accumulate_steps=1, save_every_steps=1,
    keep_checkpoints=0,
)  # fmt: skip


def _soft_prompt(base: BaseModel, seed: int = 4) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    place: Any = "decoder" if base.kind == "causal" else "encoder"
    tensor = torch.randn(4, base.hidden_size, generator=generator)
    return SoftPrompt(tensor, kind=base.kind, places=(place,))


def _lora(base: BaseModel, seed: int = 0, **config: Any) -> Adapter:
    return create_lora(base.model, LoraConfig(rank=2, alpha=4, **config), seed=seed)


def _tune(base: BaseModel, adapter: Adapter, **changes: Any) -> TrainingResult:
    arguments: dict[str, Any] = {"options": OPTIONS, "validation": RECORDS[:3], **changes}
    return tune(base, adapter, arguments.pop("train", RECORDS), **arguments)


def _hash(adapter: Adapter) -> list[tuple[str, bytes]]:
    return [
        (name, parameter.detach().numpy().tobytes())
        for name, parameter in adapter.named_parameters()
    ]


@pytest.mark.parametrize(
    ("base_name", "make", "changes"),
    [
        ("tiny_causal_base", _soft_prompt, {}),
        ("tiny_seq2seq_base", _soft_prompt, {"base_dropout": True}),
        (
            "tiny_causal_base",
            lambda base: _lora(base, dropout=0.2, target_modules=("q_proj", "v_proj")),
            {"save_checkpoint": "best"},
        ),
        ("tiny_causal_base", lambda base: _lora(base, initialisation="pissa"), {}),
        ("tiny_causal_base", lambda base: _lora(base, initialisation="eva", use_dora=True), {}),
        ("tiny_seq2seq_base", lambda base: _lora(base, initialisation="corda"), {}),
        ("tiny_causal_base", lambda base: _lora(base, initialisation="lora_ga"), {}),
        ("tiny_causal_base", lambda base: FullWeights(base.model), {"learning_rate": 1e-3}),
    ],
    ids=[
        "soft_prompt",
        "base dropout",
        "lora with dropout, best",
        "pissa",
        "eva with dora",
        "corda",
        "lora_ga",
        "full",
    ],
)
def test_resuming_after_any_update_gives_the_bits_of_a_run_that_never_stopped(
    base_name: str,
    make: Callable[[BaseModel], Adapter],
    changes: dict[str, Any],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    options = dataclasses.replace(OPTIONS, **changes)
    whole = make(base)
    expected = _tune(base, whole, options=options, run_folder=tmp_path)
    checkpoints = list_checkpoints(tmp_path / "checkpoints")
    assert list(checkpoints) == list(range(1, 13))
    for step in (1, 6, 12):
        adapter = make(base)
        result = _tune(base, adapter, options=options, resume_from=checkpoints[step])
        assert _hash(adapter) == _hash(whole)
        assert result.validation_losses == expected.validation_losses
        assert [dataclasses.replace(p, timestamp=None) for p in result.losses] == [  # type: ignore[arg-type]
            dataclasses.replace(p, timestamp=None)  # type: ignore[arg-type]
            for p in expected.losses
        ]
        assert result.losses[:step] == expected.losses[:step]
        assert result.num_label_tokens == expected.num_label_tokens


def test_best_leaves_the_parameters_of_the_best_evaluation(
    tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    # What is validated is the opposite of what is learned: the longer, the worse.
    validation = [GenerationTrainRecord(input=record.input, output="日本") for record in RECORDS]
    options = dataclasses.replace(
        OPTIONS, learning_rate=0.3, save_checkpoint="best", save_every_steps=0, num_epochs=4
    )
    adapter = _soft_prompt(tiny_causal_base)
    result = _tune(
        tiny_causal_base, adapter, options=options, run_folder=tmp_path, validation=validation
    )
    best = min(result.validation_losses, key=lambda point: point.value)
    assert best.step < result.num_steps
    kept = list_checkpoints(tmp_path / "checkpoints")
    assert list(kept)[-1] == best.step
    saved = load_adapter(kept[best.step] / "adapter", base_model=tiny_causal_base)
    assert _hash(saved) == _hash(adapter)


def test_best_without_validation_data_is_refused(
    tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    options = dataclasses.replace(OPTIONS, save_checkpoint="best")
    with pytest.raises(ValueError, match="'save_checkpoint' is 'best', which needs validation"):
        _tune(tiny_causal_base, _soft_prompt(tiny_causal_base), options=options, validation=None)


@pytest.fixture
def run_folder(tiny_causal_base: BaseModel, tmp_path: Path) -> Path:
    _tune(tiny_causal_base, _soft_prompt(tiny_causal_base), run_folder=tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": [*RECORDS, RECORDS[0]]}, "the training data had 8 rows and has 9"),
        (
            {"train": [*RECORDS[:5], GenerationTrainRecord(input="a", output="b"), *RECORDS[6:]]},
            "the training data differs in 1 rows, the first is row 6",
        ),
        ({"validation": None}, "the validation data had 3 rows and has 0"),
        (
            {"options": dataclasses.replace(OPTIONS, learning_rate=0.5, num_epochs=9)},
            "'learning_rate' was 0.01 and is 0.5; 'num_epochs' was 3 and is 9",
        ),
        ({"options": dataclasses.replace(OPTIONS, seed=1)}, "'seed' was 73 and is 1"),
    ],
)
def test_a_resume_with_other_data_or_settings_is_refused_and_says_what_changed(
    changes: dict[str, Any], message: str, tiny_causal_base: BaseModel, run_folder: Path
) -> None:
    adapter = _soft_prompt(tiny_causal_base)
    before = _hash(adapter)
    with pytest.raises(ConflictError, match=message):
        _tune(tiny_causal_base, adapter, resume_from=run_folder, **changes)
    assert _hash(adapter) == before


def test_a_resume_with_another_base_or_method_is_refused(
    tiny_causal_base: BaseModel, tiny_seq2seq_base: BaseModel, run_folder: Path
) -> None:
    with pytest.raises(ConflictError, match="the method was prompt_tuning and is lora"):
        _tune(tiny_causal_base, _lora(tiny_causal_base), resume_from=run_folder)
    with pytest.raises(ConflictError, match="the base model has other weights"):
        _tune(tiny_seq2seq_base, _soft_prompt(tiny_seq2seq_base), resume_from=run_folder)


def test_a_resume_with_another_frozen_start_is_refused(
    tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    config: dict[str, Any] = {"initialisation": "pissa", "target_modules": ("q_proj",)}
    _tune(tiny_causal_base, _lora(tiny_causal_base, **config), run_folder=tmp_path)
    other = create_lora(tiny_causal_base.model, LoraConfig(rank=2, alpha=4, **config), seed=0)
    start = next(iter(other.factors.values())).start_a
    assert start is not None
    start.mul_(1.5)
    with pytest.raises(ConflictError, match="what is not learned of the adapter differs"):
        _tune(tiny_causal_base, other, resume_from=tmp_path)


def test_bookkeeping_may_change_and_a_drawn_seed_is_found_again(
    tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    drawn = dataclasses.replace(OPTIONS, seed=-1)
    expected = _tune(
        tiny_causal_base, _soft_prompt(tiny_causal_base), options=drawn, run_folder=tmp_path
    )
    options = dataclasses.replace(drawn, save_every_steps=2, save_checkpoint="never")
    checkpoint = list_checkpoints(tmp_path / "checkpoints")[5]
    result = _tune(
        tiny_causal_base, _soft_prompt(tiny_causal_base), options=options, resume_from=checkpoint
    )
    assert result.seed == expected.seed
    assert result.losses[-1].value == expected.losses[-1].value


def test_going_on_from_an_earlier_adapter_is_a_new_training(
    tiny_causal_base: BaseModel, run_folder: Path
) -> None:
    checkpoint = find_checkpoint(run_folder)
    adapter = load_adapter(checkpoint / "adapter", base_model=tiny_causal_base)
    result = _tune(tiny_causal_base, adapter, train=RECORDS[:4])
    assert (result.losses[0].step, result.num_rows) == (1, 4)
    assert result.losses[0].learning_rate == OPTIONS.learning_rate


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_or_refused_by_name(
    tiny_causal_base: BaseModel, run_folder: Path
) -> None:
    checkpoints = list_checkpoints(run_folder / "checkpoints")
    path = checkpoints[12] / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (checkpoints[11] / "state.json").unlink()
    (checkpoints[10] / "manifest.json").unlink()
    assert find_checkpoint(run_folder) == checkpoints[9]
    with pytest.raises(ArtifactError, match=r"damaged: 'optimizer\.safetensors' differs"):
        find_checkpoint(checkpoints[12])
    with pytest.raises(ArtifactError, match=r"'state\.json' is missing"):
        read_checkpoint(checkpoints[11])
    with pytest.raises(ArtifactError, match=r"'step-000000010' has no manifest\.json"):
        find_checkpoint(checkpoints[10])
    _tune(
        tiny_causal_base,
        _soft_prompt(tiny_causal_base),
        resume_from=run_folder,
        run_folder=run_folder,
    )
    assert find_checkpoint(run_folder) == checkpoints[12]
    for folder in checkpoints.values():
        (folder / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="'run' has no complete checkpoint; 12 are damaged"):
        find_checkpoint(run_folder)


def test_a_half_written_checkpoint_is_invisible_and_cleared_away(
    tiny_causal_base: BaseModel, run_folder: Path
) -> None:
    parent = run_folder / "checkpoints"
    whole = find_checkpoint(run_folder)
    half = parent / ".step-000000099-0123456789abcdef.partial"
    shutil.copytree(whole, half)
    assert find_checkpoint(run_folder) == whole
    _tune(
        tiny_causal_base,
        _soft_prompt(tiny_causal_base),
        resume_from=run_folder,
        run_folder=run_folder,
    )
    assert not half.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "has format 99"),
        ({"progress": {"step": "x"}}, "'step' is 'x'"),
        ({"progress": {"step": -5}}, "'step' is -5"),
        ({"progress": {"colour": 1}}, "colour"),
        ({"evaluations": [{"epoch": 1}]}, "not readable"),
        ({"options": None}, "not readable"),
    ],
)
def test_a_state_that_makes_no_sense_is_refused(
    change: dict[str, Any], message: str, run_folder: Path
) -> None:
    folder = find_checkpoint(run_folder)
    path = folder / "state.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **change}), encoding="utf-8")
    # A manifest without files vouches for nothing but is a manifest: what a stranger could write.
    (folder / "manifest.json").write_text('{"files": {}, "step": 1}', encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        read_checkpoint(folder)


def test_a_checkpoint_holds_nothing_that_needs_unpickling(run_folder: Path) -> None:
    files = [path for path in find_checkpoint(run_folder).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md"}
    for path in files:
        if path.suffix == ".safetensors":
            assert load_file(path)


def test_what_is_captured_is_a_copy(tiny_causal_base: BaseModel, run_folder: Path) -> None:
    state = read_checkpoint(list_checkpoints(run_folder / "checkpoints")[1])
    assert set(state.parameters) == {"prompt_embeddings"}
    assert {name.rpartition("::")[2] for name in state.optimizer} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }
    assert ResumePoint.__dataclass_params__.frozen  # type: ignore[attr-defined]
