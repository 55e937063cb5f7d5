"""P-tuning; what it computes is compared with PEFT in test_prompt_encoders.py."""

import pytest
import torch
from fixtures.network_prompts import NETWORK_PROMPTS

from luthier.adapters.prompts.initialisation import make_adapter
from luthier.adapters.prompts.p_tuning import PTuning
from luthier.data_model.options.prompt_encoder import PromptEncoderOptions
from luthier.data_model.options.prompt_words import (
    PromptOutputModelType,
    PromptTuningInit,
    TuningType,
)
from luthier.errors import InvalidInputError, NotSupportedError


def test_what_is_served_is_what_comes_out_of_the_encoder(tiny_causal_base):
    adapter = NETWORK_PROMPTS["p_tuning_mlp"].ours(tiny_causal_base)
    served = adapter.served()
    assert torch.equal(served.soft_prompt().decoder, adapter.soft_prompt().decoder)
    assert served.content_hash() == adapter.content_hash()
    assert [name for name, _ in served.named_parameters()] == ["prompt_embeddings"]
    assert served.served() is served


def test_a_change_of_the_encoder_changes_the_hash(tiny_causal_base):
    adapter = NETWORK_PROMPTS["p_tuning_mlp"].ours(tiny_causal_base)
    before = adapter.content_hash()
    with torch.no_grad():
        dict(adapter.named_parameters())["mlp_head.4.bias"].add_(0.1)
    assert adapter.content_hash() != before


def test_a_copy_in_another_dtype_is_new_and_the_same_one_is_itself(tiny_causal_base):
    adapter = NETWORK_PROMPTS["p_tuning_mlp"].ours(tiny_causal_base)
    cpu = torch.device("cpu")
    assert adapter.to(device=cpu, dtype=torch.float32) is adapter
    half = adapter.to(device=cpu, dtype=torch.bfloat16)
    expected = adapter.soft_prompt().decoder.detach().bfloat16()
    assert torch.equal(half.soft_prompt().decoder, expected)


def test_dropout_acts_only_where_a_gradient_is_recorded(tiny_causal_base):
    options = PromptEncoderOptions(reparameterization_type="LSTM", dropout=0.5)
    adapter = make_adapter(
        tiny_causal_base,
        tuning_type=TuningType.P_TUNING,
        num_virtual_tokens=4,
        encoder=options,
        seed=1,
    )
    assert adapter.has_dropout
    first, second = adapter.soft_prompt().decoder, adapter.soft_prompt().decoder
    assert not torch.equal(first, second)
    with torch.no_grad():
        assert torch.equal(adapter.soft_prompt().decoder, adapter.soft_prompt().decoder)
    assert not adapter.served().has_dropout


def test_making_one_leaves_torchs_generator_alone(tiny_causal_base):
    before = torch.get_rng_state()
    for kind in NETWORK_PROMPTS.values():
        kind.ours(tiny_causal_base)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_decoder_of_a_seq2seq_model_is_no_place_for_it(tiny_seq2seq_base):
    with pytest.raises(NotSupportedError, match="before encoder of a seq2seq base model"):
        make_adapter(
            tiny_seq2seq_base,
            tuning_type=TuningType.P_TUNING,
            num_virtual_tokens=4,
            output_model_types=[PromptOutputModelType.DECODER],
            seed=1,
        )


def test_it_starts_at_random_and_nowhere_else(tiny_causal_base):
    with pytest.raises(InvalidInputError, match="P_TUNING starts at random, got init method TEXT"):
        make_adapter(
            tiny_causal_base,
            tuning_type=TuningType.P_TUNING,
            num_virtual_tokens=4,
            init_method=PromptTuningInit.TEXT,
            init_text="hello",
            seed=1,
        )


def test_what_is_no_prompt_is_refused():
    with pytest.raises(InvalidInputError, match="a soft prompt must be float numbers"):
        PTuning(torch.ones(4), kind="causal", options=PromptEncoderOptions())
