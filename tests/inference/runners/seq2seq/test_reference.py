from __future__ import annotations

import torch

from luthier.inference.memory.kv_cache import KvShape
from luthier.inference.runners.seq2seq.reference import logits_of, shape_of
from luthier.resources.base_model import BaseModel


@torch.no_grad()
def test_logits_are_those_of_the_model_given_all_at_once(seq2seq_base: BaseModel) -> None:
    read, written = [5, 9, 11, 6], [0, 8, 30]
    expected = seq2seq_base.model(
        input_ids=torch.tensor([read]), decoder_input_ids=torch.tensor([written])
    ).logits[0]
    torch.testing.assert_close(
        logits_of(seq2seq_base, read, written), expected, atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_the_shape_is_that_of_the_decoders_layers(seq2seq_base: BaseModel) -> None:
    config = seq2seq_base.model.config
    assert shape_of(seq2seq_base) == KvShape(
        config.num_decoder_layers, config.num_heads, config.d_kv
    )
