import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, EncoderDecoderCache

from luthier.adapters.prompts.key_values import prefix_cache, prefix_shape_of
from luthier.adapters.prompts.prefix_tuning import PrefixShape
from luthier.errors import NotSupportedError


def test_the_shape_is_that_of_the_models_own_keys(tiny_causal_base, tiny_seq2seq_base):
    assert prefix_shape_of(tiny_causal_base) == PrefixShape(2, 2, 8)
    assert prefix_shape_of(tiny_seq2seq_base) == PrefixShape(2, 4, 8)


def test_a_model_with_sliding_windows_is_refused(tiny_causal_base):
    config = AutoConfig.for_model(
        "mistral",
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        sliding_window=8,
        pad_token_id=0,
    )
    base = dataclasses.replace(
        tiny_causal_base, model=AutoModelForCausalLM.from_config(config), name="windows"
    )
    with pytest.raises(NotSupportedError, match="those of base model 'windows' are not"):
        prefix_shape_of(base)


def test_gradients_of_all_rows_add_up():
    key_values = torch.arange(4.0 * 2 * 3 * 5).reshape(4, 2, 3, 5).requires_grad_()
    cache = prefix_cache(key_values, num_rows=7, is_seq2seq=False)
    assert [tuple(layer.keys.shape) for layer in cache.layers] == [(7, 2, 3, 5)] * 2
    assert torch.equal(cache.layers[1].values[4], key_values[3])
    cache.layers[1].keys.sum().backward()
    assert torch.equal(key_values.grad[2], torch.full((2, 3, 5), 7.0))
    assert key_values.grad[[0, 1, 3]].abs().max() == 0


def test_a_decoder_gets_them_in_its_attention_to_itself():
    cache = prefix_cache(torch.ones(4, 2, 3, 5), num_rows=1, is_seq2seq=True)
    assert isinstance(cache, EncoderDecoderCache)
    assert cache.self_attention_cache.get_seq_length() == 3
    assert cache.cross_attention_cache.get_seq_length() == 0
