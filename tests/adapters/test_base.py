"""What every adapter promises, run for each tuning method."""

import pytest
import torch

from luthier.adapters.full_weights import FullWeights
from luthier.adapters.model_inputs import prepare_inputs
from luthier.adapters.prompts.initialisation import make_adapter
from luthier.data_model.options.prompt_words import TuningType

CPU = torch.device("cpu")
METHODS = ["prompt_tuning", "multitask_prompt_tuning", "full_fine_tuning"]


@pytest.fixture(params=["causal", "seq2seq"])
def base(request):
    return request.getfixturevalue(f"tiny_{request.param}_base")


@pytest.fixture(params=METHODS)
def make(request, base):
    """Makes a fresh adapter of one method."""
    if request.param == "full_fine_tuning":
        return lambda: FullWeights(base.model)
    tuning_type = TuningType[request.param.upper()]
    return lambda: make_adapter(base, tuning_type=tuning_type, num_virtual_tokens=4, seed=7)


def _logits(base, adapter):
    decoder = {"decoder_input_ids": torch.tensor([[0, 9]])} if base.kind == "seq2seq" else {}
    inputs = prepare_inputs(base, adapter, torch.tensor([[5, 6, 7]]), **decoder)
    return inputs.model(**inputs.as_kwargs()).logits


def test_the_method_has_a_word_of_the_glossary(make):
    assert make().method in METHODS


def test_parameters_are_leaves_with_stable_names(make):
    adapter = make()
    parameters = dict(adapter.named_parameters())
    assert parameters
    assert [name for name, _ in adapter.named_parameters()] == list(parameters)
    assert all(p.is_leaf and p.requires_grad for p in parameters.values())
    again = dict(adapter.named_parameters())
    assert all(again[name] is parameter for name, parameter in parameters.items())


def test_gradients_reach_the_adapter_and_never_the_base(make, base):
    adapter = make()
    _logits(base, adapter).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for _, p in adapter.named_parameters())
    assert all(p.grad is None and not p.requires_grad for p in base.model.parameters())


def test_a_change_of_the_adapter_changes_its_hash_and_its_logits_but_not_the_base(make, base):
    adapter = make()
    before = _logits(base, adapter).detach()
    bare = _logits(base, None).detach()
    first_hash = adapter.content_hash()
    assert make().content_hash() == first_hash
    hashes = {first_hash}
    with torch.no_grad():
        for _, parameter in adapter.named_parameters():
            parameter.mul_(1.5)
            hashes.add(adapter.content_hash())
    assert len(hashes) == 1 + len(dict(adapter.named_parameters()))
    assert not torch.equal(_logits(base, adapter), before)
    assert torch.equal(_logits(base, None), bare)


def test_a_copy_in_another_dtype_leaves_the_original_alone(make):
    adapter = make()
    assert adapter.to(device=CPU, dtype=torch.float32) is adapter
    half = adapter.to(device=CPU, dtype=torch.bfloat16)
    assert type(half) is type(adapter)
    assert {p.dtype for _, p in half.named_parameters()} == {torch.bfloat16}
    assert {p.dtype for _, p in adapter.named_parameters()} == {torch.float32}
    with torch.no_grad():
        next(p for _, p in half.named_parameters()).zero_()
    assert all(p.abs().sum() > 0 for _, p in adapter.named_parameters())


def test_two_adapters_on_one_base_do_not_know_each_other(make, base):
    first, second = make(), make()
    before = _logits(base, second).detach()
    with torch.no_grad():
        for _, parameter in first.named_parameters():
            parameter.zero_()
    assert torch.equal(_logits(base, second), before)


def test_a_snapshot_stays_as_it_is_or_tells_of_the_change(make, base):
    adapter = make()
    with torch.no_grad():
        before = _logits(base, adapter)
    first_hash, snapshot = adapter.content_hash(), adapter.snapshot()
    changes = snapshot.changes()
    for _, parameter in adapter.named_parameters():
        parameter.detach().mul_(1.5)
    with torch.no_grad():
        is_same = torch.equal(_logits(base, snapshot), before)
    assert is_same != (snapshot.changes() != changes)
    assert is_same == (snapshot.content_hash() == first_hash)
    assert adapter.content_hash() != first_hash
    assert is_same == (snapshot is not adapter)


def test_what_is_changed_past_torchs_own_counter_changes_the_hash(make):
    adapter = make()
    first_hash = adapter.content_hash()
    for _, parameter in adapter.named_parameters():
        parameter.data.mul_(-1)
    changed_hash = adapter.content_hash()
    for _, parameter in adapter.named_parameters():
        parameter.data.mul_(-1)
    assert changed_hash != first_hash == adapter.content_hash()
