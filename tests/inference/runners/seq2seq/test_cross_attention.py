from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from luthier.errors import NotSupportedError
from luthier.inference.memory.kv_cache import KvArena, KvShape
from luthier.inference.runners.current_step import CurrentStep
from luthier.inference.runners.packed_attention import PackedRow
from luthier.inference.runners.seq2seq.cross_attention import (
    AttentionStep,
    DecoderStep,
    EncoderStep,
    encoder_decoder_attention,
    reading_cache,
    stand_in_cache,
)
from luthier.inference.runners.seq2seq.relative_positions import RelativePositions

HEADS, DIM = 2, 4
NO_BIASES = RelativePositions(nn.Identity())


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def layer_in(step: AttentionStep | None, index: int = 1) -> nn.Module:
    """An attention layer of a network that is in a step."""
    layer: Any = nn.Identity()
    layer.layer_idx = index
    told: CurrentStep[AttentionStep] = CurrentStep(layer)
    if step is not None:
        told.set(step)
    return layer


def made_arena() -> KvArena:
    shape = KvShape(2, HEADS, DIM)
    return KvArena(shape, 64, dtype=torch.float32, device=torch.device("cpu"))


def test_rows_of_an_encoder_see_all_of_themselves_and_nothing_else() -> None:
    query, key, value = random(3, 1, HEADS, 7, DIM).unbind(0)
    step = EncoderStep(((0, 4), (4, 3)), NO_BIASES)
    got, _ = encoder_decoder_attention(layer_in(step), query, key, value, None)
    for span in (slice(0, 4), slice(4, 7)):
        torch.testing.assert_close(
            got[:, span],
            scaled_dot_product_attention(
                query[:, :, span], key[:, :, span], value[:, :, span]
            ).transpose(1, 2),
        )


@pytest.mark.usefixtures("either_way")
def test_what_was_read_is_what_a_step_looks_at_row_by_row() -> None:
    arena, stand_in = made_arena(), torch.zeros(1, HEADS, 1, DIM)
    keys, values = random(2, 1, HEADS, 5, DIM).unbind(0)
    cache = reading_cache(arena, torch.tensor([16, 17, 18, 40, 41]))
    cache.cross_attention_cache.update(keys, values, 1)
    kept = stand_in_cache(stand_in, 2)
    assert kept.is_updated == {0: True, 1: True}
    layer = kept.cross_attention_cache.layers[1]
    query = random(1, HEADS, 3, DIM)
    rows = (PackedRow(0, 1, 0, 1, None), PackedRow(1, 2, 32, 34, torch.ones(2, 2).tril().bool()))
    step = DecoderStep(
        arena, torch.tensor([0, 32, 33]), rows, ((16, 19), (40, 42)), NO_BIASES, stand_in
    )
    got, _ = encoder_decoder_attention(layer_in(step), query, layer.keys, layer.values, None)
    for tokens, read in ((slice(0, 1), slice(0, 3)), (slice(1, 3), slice(3, 5))):
        expected = scaled_dot_product_attention(
            query[:, :, tokens], keys[:, :, read], values[:, :, read]
        )
        torch.testing.assert_close(got[:, tokens], expected.transpose(1, 2))


@pytest.mark.parametrize("feature", ["indexer", "output_attentions"])
def test_a_feature_that_would_matter_is_refused(feature: str) -> None:
    empty = torch.zeros(1, HEADS, 1, DIM)
    step = EncoderStep(((0, 1),), NO_BIASES)
    asked: dict[str, Any] = {feature: True}
    with pytest.raises(NotSupportedError, match=feature):
        encoder_decoder_attention(layer_in(step), empty, empty, empty, None, **asked)


def test_a_layer_that_was_told_nothing_and_biases_of_an_unknown_sort_are_refused() -> None:
    empty = torch.zeros(1, HEADS, 1, DIM)
    for layer in (layer_in(None), nn.Identity()):
        with pytest.raises(NotSupportedError, match="not told"):
            encoder_decoder_attention(layer, empty, empty, empty, None)
    biased: Any = layer_in(EncoderStep(((0, 1),), NO_BIASES))
    biased.has_relative_attention_bias = True
    with pytest.raises(NotSupportedError, match="biases"):
        encoder_decoder_attention(biased, empty, empty, empty, None)
