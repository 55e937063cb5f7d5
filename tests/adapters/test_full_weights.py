import pytest
import torch

from luthier.adapters.full_weights import FullWeights
from luthier.errors import ArtifactError, NotSupportedError


def test_tuning_the_copy_leaves_the_base_alone(tiny_causal_base):
    base = tiny_causal_base
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    adapter = FullWeights(base.model)
    model = adapter.tuned_model(base.model)
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.square().mean().backward()
    with torch.no_grad():
        for _, parameter in adapter.named_parameters():
            parameter -= 0.1 * parameter.grad
    assert all(torch.equal(p, before[name]) for name, p in base.model.named_parameters())
    assert not any(p.requires_grad or p.grad is not None for p in base.model.parameters())
    assert any(not torch.equal(p, before[name]) for name, p in adapter.named_parameters())


def test_every_weight_is_a_parameter_and_the_hash_sees_each(tiny_seq2seq_base):
    adapter = FullWeights(tiny_seq2seq_base.model)
    names = [name for name, _ in adapter.named_parameters()]
    assert names == [name for name, _ in tiny_seq2seq_base.model.named_parameters()]
    before = adapter.content_hash()
    assert FullWeights(tiny_seq2seq_base.model).content_hash() == before
    with torch.no_grad():
        next(p for name, p in adapter.named_parameters() if "decoder" in name).view(-1)[0] += 1
    assert adapter.content_hash() != before


def test_there_are_no_virtual_tokens(tiny_causal_base):
    tensors = FullWeights(tiny_causal_base.model).soft_prompt()
    assert tensors.encoder is None
    assert tensors.decoder is None


def test_it_is_no_peft_adapter(tiny_causal_base):
    adapter = FullWeights(tiny_causal_base.model)
    for write in (adapter.peft_config, adapter.peft_state):
        with pytest.raises(NotSupportedError, match="whole model"):
            write()


def test_a_copy_in_another_dtype_is_new(tiny_causal_base):
    adapter = FullWeights(tiny_causal_base.model)
    cpu = torch.device("cpu")
    assert adapter.to(device=cpu, dtype=torch.float32) is adapter
    assert adapter.to(device=cpu, dtype=torch.bfloat16).model.dtype is torch.bfloat16
    assert adapter.model.dtype is torch.float32


def test_other_numbers_are_taken_by_name_and_the_rest_stays(tiny_seq2seq_base, caplog):
    base = tiny_seq2seq_base.model
    adapter = FullWeights(base)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    with caplog.at_level("WARNING"):
        adapter.load({name: torch.full_like(base.get_parameter(name), 0.5)}, source="a.pth")
    assert "not in a.pth and stay the base model's" in caplog.text
    found = dict(adapter.named_parameters())
    assert bool((found[name] == 0.5).all())
    assert all(torch.equal(found[n], p) for n, p in base.named_parameters() if n != name)


def test_numbers_that_do_not_fit_are_refused_and_change_nothing(tiny_causal_base):
    adapter = FullWeights(tiny_causal_base.model)
    before = adapter.content_hash()
    good = {"lm_head.weight": torch.zeros_like(tiny_causal_base.model.lm_head.weight)}
    with pytest.raises(ArtifactError, match=r"'a.pth' holds 1 tensors .*'other.weight'"):
        adapter.load({**good, "other.weight": torch.zeros(2)}, source="a.pth")
    with pytest.raises(ArtifactError, match=r"'model.norm.weight' has shape \[3\], in the base"):
        adapter.load({**good, "model.norm.weight": torch.zeros(3)}, source="a.pth")
    assert adapter.content_hash() == before
