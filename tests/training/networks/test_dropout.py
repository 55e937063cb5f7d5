"""Dropout of the base model's own layers against transformers with the same share in its config."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fixtures.lora_models import make_llama
from torch import nn

from luthier.adapters.lora.building import create_lora
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.errors import InvalidInputError
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import TokenBatch
from luthier.training.loop import tune
from luthier.training.networks.dropout import set_dropout
from luthier.training.networks.network import TrainingNetwork

RECORDS = [GenerationTrainRecord(input=f"charged {n} times", output="billing") for n in range(4)]
QUICK = TrainingOptions(num_epochs=2, learning_rate=0.01, batch_size=2, accumulate_steps=1)


def _batch(base: BaseModel) -> TokenBatch:
    ids = torch.tensor([[5, 9, 13, 17, 21, 25]])
    labels = torch.tensor([[-100, -100, 13, 17, 21, 25]])
    if base.kind == "causal":
        return TokenBatch((1,), ids, torch.ones_like(ids), labels, 6, 4)
    return TokenBatch((1,), ids, torch.ones_like(ids), ids, 12, 6)


def _network(base: BaseModel, **options: object) -> TrainingNetwork:
    adapter = create_lora(base.model, LoraConfig(rank=2), seed=1)
    return TrainingNetwork(base, adapter, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("base_name", ["tiny_causal_base", "tiny_seq2seq_base"])
def test_the_loss_is_that_of_transformers_with_this_dropout(
    base_name: str, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(base_name)
    names = {"tiny_causal_base": "attention_dropout", "tiny_seq2seq_base": "dropout_rate"}
    config = type(base.model.config)(**{**base.model.config.to_dict(), names[base_name]: 0.3})
    theirs = type(base.model)(config)
    theirs.load_state_dict(base.model.state_dict())
    batch = _batch(base)
    torch.manual_seed(7)
    expected = theirs.train()(input_ids=batch.input_ids, labels=batch.labels).loss
    network = _network(base, intermediate_dropout=0.3, packs_rows=False)
    torch.manual_seed(7)
    found = network.loss_sum(batch) / batch.num_label_tokens
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("packs_rows", [True, False])
def test_packed_and_padded_rows_are_dropped_from_in_training_alone(
    packs_rows: bool, tiny_causal_base: BaseModel
) -> None:
    batch = _batch(tiny_causal_base)
    quiet = _network(tiny_causal_base)
    network = _network(tiny_causal_base, intermediate_dropout=0.4, packs_rows=packs_rows)
    assert network.packs_rows == packs_rows
    torch.manual_seed(1)
    losses = torch.stack([network.loss_sum(batch).detach() for _ in range(8)])
    assert float(losses.std()) > 0.01
    with network.evaluating():
        torch.testing.assert_close(network.loss_sum(batch), quiet.loss_sum(batch).detach())


def test_a_training_with_it_can_be_repeated_and_differs(tiny_causal_base: BaseModel) -> None:
    hashes = []
    for share in (0.2, 0.2, 0.0):
        adapter = create_lora(tiny_causal_base.model, LoraConfig(rank=2), seed=1)
        options = dataclasses.replace(QUICK, intermediate_dropout=share)
        tune(tiny_causal_base, adapter, RECORDS, options=options)
        hashes.append(adapter.content_hash())
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_model_without_any_dropout_is_refused(
    tiny_causal_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = BaseModel.from_memory(make_llama(), tiny_causal_base.tokenizer, name="bare")
    for layer in bare.model.modules():
        for name in [each for each in vars(layer) if "dropout" in each]:
            setattr(layer, name, 0)  # no number to set
    with pytest.raises(InvalidInputError, match=r"'bare' has no layer that drops anything"):
        _network(bare, intermediate_dropout=0.1)


def test_both_kinds_of_dropout_are_set() -> None:
    class _Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_dropout = 0.5
            self.rate = 0.5

    functional, module = _Functional(), nn.Dropout(0.5)
    assert set_dropout(nn.ModuleList([functional, module]), 0.1)
    assert (functional.attention_dropout, functional.rate, module.p) == (0.1, 0.5, 0.1)
    assert not set_dropout(nn.Linear(2, 2), 0.1)
