import pytest
import torch

from luthier.adapters.prompts.soft_prompt import MAX_VIRTUAL_TOKENS, SoftPrompt
from luthier.errors import InvalidInputError


def _causal(rows=6, hidden_size=4):
    prompt = torch.arange(rows * hidden_size, dtype=torch.float32).reshape(rows, hidden_size)
    return prompt, SoftPrompt(prompt, kind="causal", places=("decoder",))


def test_a_causal_prompt_stands_before_the_decoder():
    prompt, adapter = _causal()
    tensors = adapter.soft_prompt()
    assert torch.equal(tensors.decoder, prompt)
    assert tensors.encoder is None
    assert (adapter.num_virtual_tokens, adapter.hidden_size) == (6, 4)
    assert [name for name, _ in adapter.named_parameters()] == ["prompt_embeddings"]


def test_the_encoder_gets_the_first_rows_whatever_the_order_of_places():
    prompt = torch.arange(24.0).reshape(6, 4)
    for places in (("encoder", "decoder"), ("decoder", "encoder")):
        tensors = SoftPrompt(prompt, kind="seq2seq", places=places).soft_prompt()
        assert torch.equal(tensors.encoder, prompt[:3])
        assert torch.equal(tensors.decoder, prompt[3:])


def test_the_given_tensor_is_copied():
    prompt, adapter = _causal()
    prompt.zero_()
    assert adapter.prompt_embeddings.abs().sum() > 0


def test_the_hash_changes_with_any_number_and_only_then():
    _, adapter = _causal()
    _, twin = _causal()
    before = adapter.content_hash()
    assert twin.content_hash() == before
    with torch.no_grad():
        adapter.prompt_embeddings[3, 2] += 1e-6 * adapter.prompt_embeddings[3, 2]
    assert adapter.content_hash() != before
    assert len(before) == 64


def test_the_hash_knows_where_the_tokens_stand_and_their_dtype():
    prompt = torch.ones(4, 4)
    hashes = {
        SoftPrompt(prompt, kind="seq2seq", places=places).content_hash()
        for places in (("encoder",), ("decoder",), ("encoder", "decoder"))
    }
    hashes.add(SoftPrompt(prompt, kind="causal", places=("decoder",)).content_hash())
    hashes.add(SoftPrompt(prompt.bfloat16(), kind="causal", places=("decoder",)).content_hash())
    assert len(hashes) == 5


def test_a_copy_in_another_dtype_is_new_and_the_same_one_is_itself():
    _, adapter = _causal()
    cpu = torch.device("cpu")
    assert adapter.to(device=cpu, dtype=torch.float32) is adapter
    half = adapter.to(device=cpu, dtype=torch.bfloat16)
    assert half.prompt_embeddings.dtype is torch.bfloat16
    assert adapter.prompt_embeddings.dtype is torch.float32


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("causal", ("encoder",)),
        ("causal", ("encoder", "decoder")),
        ("causal", ()),
        ("seq2seq", ("encoder", "encoder")),
        ("seq2seq", ("middle",)),
    ],
)
def test_places_that_the_base_lacks_are_refused(kind, places):
    with pytest.raises(InvalidInputError, match="virtual tokens can stand before"):
        SoftPrompt(torch.ones(4, 4), kind=kind, places=places)


@pytest.mark.parametrize(
    "prompt",
    [
        torch.ones(4), torch.ones(1, 2, 3), torch.ones(0, 4), torch.ones(4, 0),
        torch.ones(4, 4, dtype=torch.long), torch.ones(MAX_VIRTUAL_TOKENS + 1, 1),
    ],
    ids=lambda tensor: f"{tensor.dtype}{list(tensor.shape)}",
)  # fmt: skip
def test_what_is_no_prompt_is_refused(prompt):
    with pytest.raises(InvalidInputError):
        SoftPrompt(prompt, kind="causal", places=("decoder",))


def test_rows_that_cannot_be_shared_out_are_refused():
    with pytest.raises(InvalidInputError, match="5 rows of virtual tokens do not fit 2"):
        SoftPrompt(torch.ones(5, 4), kind="seq2seq", places=("encoder", "decoder"))
