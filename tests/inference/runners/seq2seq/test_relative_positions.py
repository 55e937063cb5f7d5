from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration, UMT5Config
from transformers import UMT5ForConditionalGeneration as Umt5Model

from luthier.inference.runners.seq2seq.relative_positions import RelativePositions

SIZES = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 4}


def tables_of(model: torch.nn.Module) -> list[Any]:
    """The model's own biases, drawn so that no two distances are alike."""
    modules: list[Any] = [
        m for m in model.modules() if getattr(m, "has_relative_attention_bias", False)
    ]
    for module in modules:
        torch.nn.init.normal_(module.relative_attention_bias.weight)
    return modules


@pytest.mark.parametrize("num_tokens", [1, 2, 33, 64, 65, 150])
def test_a_new_token_gets_the_last_row_of_the_models_own_biases(num_tokens: int) -> None:
    decoder = T5ForConditionalGeneration(T5Config(**SIZES)).decoder
    (table,) = tables_of(decoder)
    biases = RelativePositions(decoder)
    for layer in range(3):  # every layer has those of the first
        own = table.compute_bias(num_tokens, num_tokens)[:, :, -1:]
        torch.testing.assert_close(biases.next_token(layer, num_tokens), own)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("num_tokens", [1, 5, 64, 70, 600])
def test_rows_of_any_length_get_the_models_own_biases(part: str, num_tokens: int) -> None:
    stack = getattr(T5ForConditionalGeneration(T5Config(**SIZES)), part)
    (table,) = tables_of(stack)
    own = table.compute_bias(num_tokens, num_tokens)
    torch.testing.assert_close(RelativePositions(stack).square(2, num_tokens), own)


def test_each_layer_keeps_biases_of_its_own() -> None:
    decoder = Umt5Model(UMT5Config(**SIZES)).decoder
    biases = RelativePositions(decoder)
    for layer, table in enumerate(tables_of(decoder)):
        torch.testing.assert_close(biases.square(layer, 9), table.compute_bias(9, 9))
        torch.testing.assert_close(biases.next_token(layer, 9), table.compute_bias(9, 9)[:, :, -1:])


def test_a_model_without_them_has_none() -> None:
    assert not RelativePositions(torch.nn.Linear(2, 2))
