"""Prefix tuning; what it computes is compared with PEFT in test_prompt_encoders.py."""

import pytest
import torch
from fixtures.network_prompts import NETWORK_PROMPTS, NUM_VIRTUAL_TOKENS

from luthier.adapters.prompts.initialisation import make_adapter
from luthier.adapters.prompts.prefix_tuning import PrefixShape, PrefixTuning
from luthier.data_model.options.prompt_encoder import PromptEncoderOptions
from luthier.data_model.options.prompt_words import (
    PromptOutputModelType,
    PromptTuningInit,
    TuningType,
)
from luthier.errors import InvalidInputError, NotSupportedError

SHAPE = PrefixShape(num_layers=3, num_kv_heads=2, head_dim=4)


def _prefix(kind="causal"):
    rows = torch.arange(2.0 * SHAPE.width).reshape(2, SHAPE.width)
    return rows, PrefixTuning(rows, kind=kind, shape=SHAPE, options=PromptEncoderOptions())


def test_keys_and_values_come_layer_by_layer():
    rows, adapter = _prefix()
    key_values = adapter.prefix_key_values()
    assert key_values.shape == (6, 2, 2, 4)
    for token, row in enumerate(rows):
        for part, numbers in enumerate(row.split(SHAPE.layer_width)):
            assert torch.equal(key_values[part, :, token].flatten(), numbers)
    assert adapter.soft_prompt().decoder is None


def test_a_seq2seq_model_reads_the_table_as_peft_does():
    _, causal = _prefix()
    _, seq2seq = _prefix(kind="seq2seq")
    expected = causal.prefix_key_values()[[0, 1, 4, 5, 2, 3]]
    assert torch.equal(seq2seq.prefix_key_values(), expected)


def test_what_is_served_is_what_comes_out_of_the_projection(tiny_causal_base):
    adapter = NETWORK_PROMPTS["prefix_projection"].ours(tiny_causal_base)
    served = adapter.served()
    assert torch.equal(served.prefix_key_values(), adapter.prefix_key_values())
    assert served.content_hash() == adapter.content_hash()
    assert [name for name, _ in served.named_parameters()] == ["prompt_embeddings"]
    assert served.num_virtual_tokens == NUM_VIRTUAL_TOKENS
    assert served.served() is served


def test_a_copy_in_another_dtype_is_new_and_the_same_one_is_itself():
    rows, adapter = _prefix()
    cpu = torch.device("cpu")
    assert adapter.to(device=cpu, dtype=torch.float32) is adapter
    half = adapter.to(device=cpu, dtype=torch.bfloat16)
    assert torch.equal(half.rows, rows.bfloat16())
    assert half.content_hash() != adapter.content_hash()


@pytest.mark.parametrize(
    "rows",
    [torch.ones(2, SHAPE.width + 1), torch.ones(SHAPE.width), torch.ones(2, SHAPE.width).long()],
    ids=lambda tensor: f"{tensor.dtype}{list(tensor.shape)}",
)
def test_rows_of_another_shape_are_refused(rows):
    with pytest.raises(InvalidInputError, match=r"of shape \[virtual tokens, 48\]"):
        PrefixTuning(rows, kind="causal", shape=SHAPE, options=PromptEncoderOptions())


def test_a_prefix_without_tokens_is_refused():
    with pytest.raises(InvalidInputError, match="from 1 to 4096 virtual tokens, got 0"):
        PrefixTuning(
            torch.ones(0, SHAPE.width), kind="causal", shape=SHAPE, options=PromptEncoderOptions()
        )


def test_it_starts_at_random_and_nowhere_else(tiny_causal_base):
    with pytest.raises(InvalidInputError, match="PREFIX_TUNING starts at random"):
        make_adapter(
            tiny_causal_base,
            tuning_type=TuningType.PREFIX_TUNING,
            num_virtual_tokens=4,
            init_method=PromptTuningInit.TEXT,
            init_text="hello",
            seed=1,
        )


def test_an_encoder_is_no_place_for_it(tiny_seq2seq_base):
    with pytest.raises(NotSupportedError, match="puts keys and values into the decoder"):
        make_adapter(
            tiny_seq2seq_base,
            tuning_type=TuningType.PREFIX_TUNING,
            num_virtual_tokens=4,
            output_model_types=[PromptOutputModelType.ENCODER],
            seed=1,
        )
