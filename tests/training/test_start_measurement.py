"""Starts that look at data against PEFT's own on the same rows, and what a resume makes of them."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from fixtures.lora_models import (
    VOCAB_SIZE,
    make_gpt2,
    make_llama,
    make_t5,
    our_name,
    peft_parameters,
    with_peft,
)
from fixtures.tiny_models import make_tokenizer
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.tuners.lora.loraga import preprocess_loraga
from torch import nn
from transformers import PreTrainedModel

from luthier.adapters.lora.building import create_lora
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.lora_factors import LoraFactors
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import CancelledError, ConflictError, TrainingDataError
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.base import StepEvent, TrainingCallback
from luthier.training.checkpointing.checkpoints import list_checkpoints
from luthier.training.data.bucketing import plan_epoch
from luthier.training.data.examples import IGNORED_LABEL, Example, TrainingData, TruncationReport
from luthier.training.fusion.fused import tune_many
from luthier.training.job import TuningJob
from luthier.training.loop import tune
from luthier.training.processes.parallel import ALONE
from luthier.training.start_measurement import begin_from_data

# PEFT makes torch warn while it estimates gradients, and advises against what a test wants.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:lora with eva initialization"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar"),
]

OPTIONS = TrainingOptions(batch_size=8, accumulate_steps=1, seed=5)
NUM_TOKENS = 12
RECORDS = [
    GenerationTrainRecord(input=f"{text} {'please ' * (number % 5)}", output=label)
    for number in range(6)
    for text, label in (("charged twice", "billing"), ("black screen", "technical"))
]
QUICK = TrainingOptions(
    num_epochs=2, learning_rate=0.02, batch_size=2, accumulate_steps=1, save_every_steps=1
)


def _causal_data(num_rows: int = 16) -> TrainingData:
    """Rows of equal length, so that PEFT's batches need no padding."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(3, VOCAB_SIZE, (num_rows, NUM_TOKENS), generator=generator).tolist()
    examples = [
        Example(number, tuple(ids), tuple([IGNORED_LABEL] * 4 + ids[4:]))
        for number, ids in enumerate(rows, start=1)
    ]
    return TrainingData(examples, TruncationReport(num_rows))


def _begin(
    make: Callable[[], PreTrainedModel],
    data: TrainingData,
    *,
    should_stop: Callable[[], bool] = bool,
    **config: Any,
) -> LoraAdapter:
    model = make()
    base = BaseModel.from_memory(model, make_tokenizer(), name="tiny")
    adapter = create_lora(model, LoraConfig(rank=4, alpha=8, **config), seed=5)
    assert adapter.start_probe() is not None
    begin_from_data(base, adapter, data, OPTIONS, group=ALONE, should_stop=should_stop)
    assert adapter.start_probe() is None
    return adapter


def _batches(data: TrainingData, count: int) -> list[dict[str, torch.Tensor]]:
    """The same batches as PEFT wants them."""
    windows = plan_epoch(data.lengths, batch_size=8, accumulate_steps=1, seed=5, epoch=0)
    chosen = [[data.examples[index] for index in window[0]] for window in windows[:count]]
    return [
        {
            "input_ids": torch.tensor([example.input_ids for example in rows]),
            "attention_mask": torch.ones(len(rows), NUM_TOKENS, dtype=torch.long),
            "labels": torch.tensor([example.labels for example in rows]),
        }
        for rows in chosen
    ]


def _make_quiet_gpt2() -> PreTrainedModel:
    """GPT-2 without dropout: PEFT leaves it on while it measures."""
    model = make_gpt2()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return model


CAUSAL = {"llama": make_llama, "gpt2": _make_quiet_gpt2}


def _peft_config(make: Callable[[], PreTrainedModel], adapter: LoraAdapter, **known: Any) -> Any:
    names = sorted({path.rpartition(".")[2] for path in adapter.factors})
    return peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=names,
        fan_in_fan_out=make is _make_quiet_gpt2,
        task_type="CAUSAL_LM",
        **known,
    )


def _peft_factors(model: Any, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    named = {our_name(name): parameter for name, parameter in model.named_parameters()}
    return named[f"{path}.lora_A.weight"], named[f"{path}.lora_B.weight"]


def _product(factors: LoraFactors) -> torch.Tensor:
    return factors.lora_b @ factors.lora_a


@pytest.mark.parametrize(("rho", "adjusts"), [(2.0, True), (1.0, True), (3.0, False)])
@pytest.mark.parametrize("family", CAUSAL)
def test_eva_gives_the_ranks_and_directions_of_peft(family: str, rho: float, adjusts: bool) -> None:
    data = _causal_data()
    adapter = _begin(
        CAUSAL[family],
        data,
        initialisation="eva",
        start_batches=1,
        eva_rho=rho,
        eva_adjust_scaling=adjusts,
    )
    eva = EvaConfig(rho=rho, adjust_scaling_factors=adjusts)
    theirs = with_peft(
        CAUSAL[family](), seed=5, r=4, lora_alpha=8, init_lora_weights="eva", eva_config=eva
    )
    initialize_lora_eva_weights(theirs, _batches(data, 1), show_progress_bar=False)
    expected = peft_parameters(theirs)
    found = dict(adapter.named_parameters())
    assert {name: tuple(each.shape) for name, each in found.items()} == {
        name: tuple(each.shape) for name, each in expected.items()
    }
    for name, parameter in found.items():
        if "lora_A" in name:
            # Both find components nearly, from random beginnings of their own.
            alike = nn.functional.cosine_similarity(parameter, expected[name]).abs()
            assert float(alike.min()) > 0.99, name
        else:
            assert not bool(parameter.any())
    written = adapter.peft_config()
    assert written["rank_pattern"] == theirs.peft_config["default"].rank_pattern
    assert written["alpha_pattern"] == theirs.peft_config["default"].alpha_pattern
    assert (rho == 1.0) == (not written["rank_pattern"])


def test_whitened_directions_are_shorter_where_inputs_differ_more() -> None:
    plain = _begin(make_llama, _causal_data(), initialisation="eva", eva_rho=1.0)
    whitened = _begin(
        make_llama, _causal_data(), initialisation="eva", eva_rho=1.0, eva_whiten=True
    )
    for path, factors in whitened.factors.items():
        lengths = factors.lora_a.detach().norm(dim=1)
        torch.testing.assert_close(
            factors.lora_a.detach() / lengths[:, None], plain.factors[path].lora_a.detach()
        )
        assert lengths.tolist() == sorted(lengths.tolist())
        assert float(lengths[0]) < float(lengths[-1])


@pytest.mark.parametrize("method", ["ipm", "kpm"])
@pytest.mark.parametrize("family", CAUSAL)
def test_corda_begins_with_the_delta_of_peft(
    family: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PEFT's file wants a package that it does not depend on, for what dataclasses has.
    monkeypatch.setitem(sys.modules, "attr", types.SimpleNamespace(dataclass=dataclasses.dataclass))
    from peft.tuners.lora.corda import preprocess_corda  # noqa: PLC0415 - after the line above

    data = _causal_data()
    adapter = _begin(
        CAUSAL[family], data, initialisation="corda", start_batches=2, corda_method=method
    )
    config = _peft_config(
        CAUSAL[family],
        adapter,
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=method),
    )
    model = CAUSAL[family]()

    def run() -> None:
        for batch in _batches(data, 2):
            for row in batch["input_ids"]:
                model(row[None])

    preprocess_corda(model, config, run_model=run)
    theirs = peft.get_peft_model(model, config)
    for path, factors in adapter.factors.items():
        lora_a, lora_b = _peft_factors(theirs, path)
        expected = (lora_b @ lora_a).detach()
        scale = float(expected.abs().max())
        torch.testing.assert_close(_product(factors), expected, atol=3e-4 * scale, rtol=0, msg=path)


@pytest.mark.parametrize("scale", ["stable", "gd_scale", "unit"])
@pytest.mark.parametrize("direction", ["ArBr", "A2rBr", "ArB2r"])
def test_lora_ga_begins_with_the_factors_of_peft(direction: str, scale: str) -> None:
    data = _causal_data()
    adapter = _begin(
        make_llama,
        data,
        initialisation="lora_ga",
        start_batches=2,
        lora_ga_direction=direction,
        lora_ga_scale=scale,
    )
    _require_those_of_peft(make_llama, adapter, data, direction, scale)


def test_lora_ga_understands_transposed_weights() -> None:
    data = _causal_data()
    adapter = _begin(
        _make_quiet_gpt2, data, initialisation="lora_ga", start_batches=2, lora_ga_scale="unit"
    )
    _require_those_of_peft(_make_quiet_gpt2, adapter, data, "ArB2r", "unit")


def _require_those_of_peft(
    make: Callable[[], PreTrainedModel],
    adapter: LoraAdapter,
    data: TrainingData,
    direction: str,
    scale: str,
) -> None:
    config = _peft_config(
        make,
        adapter,
        init_lora_weights="lora_ga",
        lora_ga_config=LoraGAConfig(direction=direction, scale=scale),
    )
    model = make()

    def run() -> None:
        for batch in _batches(data, 2):
            model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.backward()

    preprocess_loraga(model, config, run)
    theirs = peft.get_peft_model(model, config)
    for path, factors in adapter.factors.items():
        lora_a, lora_b = _peft_factors(theirs, path)
        torch.testing.assert_close(
            factors.lora_a.abs(), lora_a.abs(), atol=1e-3, rtol=1e-2, msg=path
        )
        largest = float(lora_b.detach().abs().max())
        torch.testing.assert_close(
            factors.lora_b.abs(), lora_b.abs(), atol=2e-3 * largest, rtol=0, msg=path
        )


def test_lora_ga_scales_by_the_weights_largest_singular_value() -> None:
    data = _causal_data()
    adapter = _begin(
        make_llama, data, initialisation="lora_ga", start_batches=1, lora_ga_scale="weight_svd"
    )
    model = make_llama()
    for path, factors in adapter.factors.items():
        largest = torch.linalg.matrix_norm(model.get_submodule(path).weight, ord=2)
        torch.testing.assert_close(factors.lora_b.norm(dim=0)[0], largest, atol=0, rtol=0.05)


@pytest.mark.parametrize("word", ["corda", "lora_ga"])
def test_a_start_that_is_subtracted_changes_nothing_at_first(word: str) -> None:
    model = make_llama()
    adapter = _begin(make_llama, _causal_data(), initialisation=word, start_batches=1)
    ids = torch.arange(3, 12)[None]
    torch.testing.assert_close(
        adapter.tuned_model(model)(ids).logits, model(ids).logits, atol=1e-3, rtol=1e-3
    )
    assert all(bool(factors.lora_b.any()) for factors in adapter.factors.values())


@pytest.mark.parametrize("word", ["eva", "corda", "lora_ga"])
def test_encoders_and_decoders_are_looked_at_alike(word: str) -> None:
    generator = torch.Generator().manual_seed(8)
    examples = [
        Example(
            row,
            tuple(torch.randint(3, VOCAB_SIZE, (6 + row,), generator=generator).tolist()),
            tuple(torch.randint(3, VOCAB_SIZE, (12 - row,), generator=generator).tolist()),
        )
        for row in range(1, 9)
    ]
    data = TrainingData(examples, TruncationReport(8))
    adapter = _begin(make_t5, data, initialisation=word, start_batches=1, eva_rho=1.0)
    model = make_t5()
    targets = {path for path, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert adapter.factors.keys() == targets - {"lm_head"}
    if word == "eva":
        read: list[torch.Tensor] = []
        path = "decoder.block.1.layer.1.EncDecAttention.k"
        model.get_submodule(path).register_forward_hook(lambda _, x, __: read.append(x[0][0]))
        for example in examples:
            labels = torch.tensor([example.labels])
            model(input_ids=torch.tensor([example.input_ids]), labels=labels)
        inputs = torch.cat(read)
        _, _, vh = torch.linalg.svd(inputs - inputs.mean(dim=0), full_matrices=False)
        torch.testing.assert_close(
            adapter.factors[path].lora_a.abs(), vh[:4].abs(), atol=5e-3, rtol=1e-2
        )


def test_the_numbers_of_tokens_and_layers_that_a_start_needs_are_told() -> None:
    with pytest.raises(TrainingDataError, match=r"needs 16 label tokens .* batches have 8"):
        _begin(
            make_llama,
            _causal_data(num_rows=1),
            initialisation="eva",
            eva_rho=4.0,
        )


def test_a_cancellation_is_heard_while_the_start_is_measured() -> None:
    with pytest.raises(CancelledError, match="before its first update"):
        _begin(make_llama, _causal_data(), initialisation="eva", should_stop=lambda: True)


class _Losses(TrainingCallback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_step(self, event: StepEvent) -> None:
        self.values.append(event.loss)


def _new(base: BaseModel, word: str, **changes: Any) -> LoraAdapter:
    config = LoraConfig(**{"rank": 2, "alpha": 4, "initialisation": word, **changes})
    return create_lora(base.model, config, seed=QUICK.seed)


@pytest.mark.parametrize("word", ["eva", "corda", "lora_ga"])
def test_a_resumed_training_knows_its_start_without_looking_again(
    word: str, tiny_causal_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, options = tiny_causal_base, dataclasses.replace(QUICK, keep_checkpoints=0)
    whole = _new(base, word, start_batches=2)
    tune(base, whole, RECORDS, options=options, run_folder=tmp_path)
    checkpoint = list_checkpoints(tmp_path / "checkpoints")[4]
    resumed = _new(base, word, start_batches=2)
    # Numbers that are computed again may come out otherwise on another machine.
    monkeypatch.setattr("luthier.adapters.lora.starts.base.LoraStart.begin", None)
    monkeypatch.setattr("luthier.adapters.lora.starts.eva.EvaStart.begin", None)
    tune(base, resumed, RECORDS, options=options, resume_from=checkpoint)
    assert resumed.content_hash() == whole.content_hash()


def test_a_resume_that_asks_for_another_start_is_refused(
    tiny_causal_base: BaseModel, tmp_path: Path
) -> None:
    base = tiny_causal_base
    tune(base, _new(base, "eva"), RECORDS, options=QUICK, run_folder=tmp_path)
    other = _new(base, "eva", eva_rho=1.0)
    with pytest.raises(ConflictError, match=r"'eva_rho' was 2\.0 and is 1\.0"):
        tune(base, other, RECORDS, options=QUICK, resume_from=tmp_path)


@pytest.mark.parametrize("word", ["eva", "lora_ga"])
def test_trainings_that_share_passes_begin_as_they_would_alone(
    word: str, tiny_causal_base: BaseModel
) -> None:
    base, options = tiny_causal_base, dataclasses.replace(QUICK, save_every_steps=0)
    alone = _Losses()
    tune(base, _new(base, word), RECORDS, options=options, callbacks=[alone])
    together = _Losses()
    jobs = [
        TuningJob(_new(base, word), RECORDS, options, callbacks=[together]),
        TuningJob(_new(base, "default"), RECORDS[:6], options),
    ]
    outcomes = tune_many(base, jobs)
    assert not [each for each in outcomes if isinstance(each, Exception)]
    assert together.values == pytest.approx(alone.values, abs=1e-4)
