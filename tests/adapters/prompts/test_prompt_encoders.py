"""Prompts that are learned through a network, against PEFT from the same seed."""

import copy

import pytest
import torch
from fixtures.network_prompts import NETWORK_PROMPTS, NUM_VIRTUAL_TOKENS
from peft import PeftModel

from luthier.adapters.model_inputs import prepare_inputs
from luthier.adapters.storage import load_adapter, save_adapter

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 10, 0, 0, 0], [11, 12, 13, 14, 0]])
MASK = (IDS > 0).long()
DECODER_IDS = torch.tensor([[0, 11, 12], [0, 13, 14], [0, 15, 16]])


@pytest.fixture(params=["tiny_causal_base", "tiny_seq2seq_base"])
def base(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=NETWORK_PROMPTS)
def method(request):
    return NETWORK_PROMPTS[request.param]


def _decoder(base):
    return {} if base.kind == "causal" else {"decoder_input_ids": DECODER_IDS}


def _ours(base, adapter):
    inputs = prepare_inputs(base, adapter, IDS, MASK, **_decoder(base))
    return _of_tokens(base, inputs.model(**inputs.as_kwargs()).logits)


def _theirs(base, peft_model):
    return _of_tokens(base, peft_model(input_ids=IDS, attention_mask=MASK, **_decoder(base)).logits)


def _of_tokens(base, logits):
    """Those of real tokens: not of virtual ones, not of padding."""
    return logits[:, -IDS.shape[1] :][MASK.bool()] if base.kind == "causal" else logits


def test_it_starts_with_pefts_numbers(base, method):
    ours = [parameter for _, parameter in method.ours(base).named_parameters()]
    theirs = list(method.theirs(base).prompt_encoder["default"].parameters())
    assert len(ours) == len(theirs)
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_logits_are_those_of_peft(base, method):
    ours = _ours(base, method.ours(base))
    torch.testing.assert_close(ours, _theirs(base, method.theirs(base)), atol=1e-4, rtol=0)
    bare = prepare_inputs(base, None, IDS, MASK, **_decoder(base))
    unlike = ours - _of_tokens(base, base.model(**bare.as_kwargs()).logits)
    assert unlike.abs().max() > 0.1


def test_plain_peft_loads_ours_and_its_own_load_here(base, method, tmp_path):
    adapter, peft_model = method.ours(base), method.theirs(base)
    save_adapter(adapter, tmp_path / "ours", base_model_name="tiny")
    peft_model.save_pretrained(tmp_path / "theirs")

    loaded_there = PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "ours")
    expected = _theirs(base, peft_model)
    torch.testing.assert_close(_theirs(base, loaded_there.eval()), expected, atol=1e-4, rtol=0)
    for folder in ("ours", "theirs"):
        loaded_here = load_adapter(tmp_path / folder, base_model=base)
        assert loaded_here.method == adapter.method
        assert loaded_here.num_virtual_tokens == NUM_VIRTUAL_TOKENS
        torch.testing.assert_close(_ours(base, loaded_here), expected, atol=1e-4, rtol=0)
        assert loaded_here.peft_config() == adapter.peft_config()


def test_rows_padded_on_the_left_give_what_they_give_alone(tiny_causal_base, method):
    adapter = method.ours(tiny_causal_base)
    padded = torch.tensor([[0, 0, 9, 10]])
    inputs = prepare_inputs(tiny_causal_base, adapter, padded, (padded > 0).long())
    alone = prepare_inputs(tiny_causal_base, adapter, torch.tensor([[9, 10]]))
    ours = inputs.model(**inputs.as_kwargs()).logits[0, -2:]
    torch.testing.assert_close(
        ours, alone.model(**alone.as_kwargs()).logits[0, -2:], atol=1e-4, rtol=0
    )
