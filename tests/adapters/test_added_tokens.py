"""Tokens added to a vocabulary, against what transformers does with the same."""

from __future__ import annotations

import copy

import pytest
import torch
from fixtures.lora_models import make_gpt2, make_llama, make_t5
from fixtures.marker_tokens import MARKERS
from fixtures.tiny_models import make_tokenizer
from torch import nn
from transformers import AddedToken, PreTrainedModel

from luthier.adapters.added_tokens import (
    AddedTokens,
    OwnTokens,
    added_tokens,
    grow_embeddings,
    grown_tokenizer,
    require_plain_embeddings,
)
from luthier.errors import ArtifactError, InvalidInputError, NotSupportedError

ADDED = AddedTokens({"<p>": 60, "<a>": 61}, {"<p>": (5, 6), "<a>": (7, 8, 8)})
IDS = torch.tensor([[5, 6, 7, 9, 11]])


def test_ids_are_those_that_transformers_gives() -> None:
    tokenizer, theirs = make_tokenizer(), make_tokenizer()
    before = len(tokenizer)
    added = added_tokens(tokenizer, MARKERS)
    assert added is not None
    theirs.add_tokens([AddedToken(text, special=True, normalized=False) for text in MARKERS])
    assert added.ids == {text: theirs.convert_tokens_to_ids(text) for text in MARKERS}
    assert added.pieces == {
        text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in MARKERS
    }
    assert len(tokenizer) == before
    text = "<|prompt|>say it<|answer|>"
    assert grown_tokenizer(tokenizer, added.ids)(text)["input_ids"] == theirs(text)["input_ids"]


def test_what_is_a_token_already_stays_one() -> None:
    tokenizer = make_tokenizer()
    assert added_tokens(tokenizer, ("", "<|user|>", "a")) is None
    added = added_tokens(tokenizer, ("<|user|>", "<|x|>", "<|x|>"))
    assert added is not None
    assert list(added.ids) == ["<|x|>"]
    assert grown_tokenizer(tokenizer, {}) is tokenizer


def test_another_tokenizer_is_noticed() -> None:
    with pytest.raises(ArtifactError, match=r"'<\|x\|>' has id 7, .* makes it 400"):
        grown_tokenizer(make_tokenizer(), {"<|x|>": 7})


def test_a_marker_without_tokens_is_refused() -> None:
    class Blind(type(make_tokenizer())):  # type: ignore[misc]
        def __call__(self, *args: object, **kwargs: object) -> dict[str, list[int]]:
            return {"input_ids": []}

    blind = make_tokenizer()
    blind.__class__ = Blind
    with pytest.raises(InvalidInputError, match="cannot become a token"):
        added_tokens(blind, ("<|x|>",))


@pytest.mark.parametrize(
    "model",
    [
        make_llama(),
        make_llama(tie_word_embeddings=True),
        make_gpt2(),
        make_t5(),
        make_t5(tie_word_embeddings=True),
    ],
    ids=["untied", "tied", "gpt2", "t5", "t5 tied"],
)
def test_a_grown_model_is_one_that_transformers_resized(model: PreTrainedModel) -> None:
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    grow_embeddings(ours, ADDED)
    assert torch.equal(torch.random.get_rng_state(), state)
    theirs.resize_token_embeddings(62, mean_resizing=False)
    for layer, before in (
        (theirs.get_input_embeddings(), model.get_input_embeddings().weight),
        (theirs.get_output_embeddings(), model.get_output_embeddings().weight),
    ):
        with torch.no_grad():
            layer.weight[60] = (before[5] + before[6]) / 2
            layer.weight[61] = (before[7] + 2 * before[8]) / 3
    ids = torch.tensor([[60, 6, 7, 61, 11]])
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    found = ours(input_ids=ids, **more).logits
    torch.testing.assert_close(found, theirs(input_ids=ids, **more).logits, atol=1e-5, rtol=1e-5)
    assert found.shape[-1] == ours.config.vocab_size == 62
    old = model(input_ids=IDS, **more).logits
    torch.testing.assert_close(ours(input_ids=IDS, **more).logits[..., :60], old)
    scores = ours(input_ids=IDS, **more).logits
    # As likely as its pieces on average, or less.
    assert bool((scores[..., 60].exp() <= scores[..., [5, 6]].exp().mean(-1) * 1.001).all())


def test_rows_in_reserve_are_used_and_no_table_is_enlarged() -> None:
    model = make_llama()
    grow_embeddings(model, AddedTokens({"<p>": 58}, {"<p>": (5, 6)}))
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == 60
    torch.testing.assert_close(weight[58], (weight[5] + weight[6]) / 2)


def test_means_are_formed_in_full_precision() -> None:
    weight = torch.tensor([[60000.0], [60000.0]]).half()
    assert AddedTokens({"x": 2}, {"x": (0, 1)}).starting_rows(weight).item() == 60000.0


def test_a_model_without_a_table_of_embeddings_is_refused() -> None:
    model = make_llama()
    model.model.embed_tokens = nn.Linear(16, 60)
    with pytest.raises(NotSupportedError, match="plain embeddings, this model's are a Linear"):
        require_plain_embeddings(model)


def test_what_is_kept_of_own_tokens_does_not_change() -> None:
    own = OwnTokens({"<p>": 60}, torch.ones(1, 4))
    kept = own.kept()
    own.rows.zero_()
    assert torch.equal(kept.rows, torch.ones(1, 4))
    assert (kept.place_of, kept.text_of) == ({60: 0}, {60: "<p>"})
    half = kept.to(device=torch.device("cpu"), dtype=torch.float16)
    assert (half.rows.dtype, half.ids) == (torch.float16, kept.ids)
