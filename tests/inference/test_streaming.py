"""The reference is ``tokenizer.decode`` of all ids, and a search of the whole text."""

from __future__ import annotations

from functools import cache

import pytest
from fixtures.tiny_models import CORPUS, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from luthier.inference.streaming import IncrementalDetokenizer, StopMatcher

SPECIAL = ["<pad>", "</s>", "<s>", "<unk>"]


def _fast(tokenizer: Tokenizer, *, cleans_up: bool = False) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=cleans_up,
    )


def _byte_level() -> PreTrainedTokenizerBase:
    return make_tokenizer()


def _unigram_like_t5() -> PreTrainedTokenizerBase:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _fast(tokenizer)


def _byte_fallback_like_llama() -> PreTrainedTokenizerBase:
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁▁", "a", "b", "▁a", "▁b", "ab", "é", "▁the", ".", "\n", "\ufffd"]
    merges = [("▁", "▁"), ("▁", "a"), ("▁", "b"), ("a", "b")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Prepend("▁")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in SPECIAL])
    return _fast(tokenizer)


def _word_piece(*, cleans_up: bool) -> PreTrainedTokenizerBase:
    pieces = [*SPECIAL, "do", "##n", "n", "'", "t", "s", "m", "ve", "re", "##s", "##x", "word"]
    pieces += [".", ",", "!", "?", "n't", "'s", "##'", "##.", "é", "<|user|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in SPECIAL])
    return _fast(tokenizer, cleans_up=cleans_up)


def _slow_bytes() -> PreTrainedTokenizerBase:
    return ByT5Tokenizer()


MAKERS = {
    "byte level": _byte_level,
    "unigram": _unigram_like_t5,
    "byte fallback": _byte_fallback_like_llama,
    "word piece": lambda: _word_piece(cleans_up=False),
    "word piece, cleaned up": lambda: _word_piece(cleans_up=True),
    "slow": _slow_bytes,
}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    return MAKERS[name]()


def pieces_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_join_to_what_the_tokenizer_decodes(name: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(name)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=120))
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


TEXT = "Ünïcode ☕ text, 日本 and emoji 🙂🙂 don't  end . \ufffd A 👩\u200d👩\u200d👧 family!\n" * 3


@pytest.mark.parametrize("name", ["byte level", "byte fallback", "slow"])
def test_real_text_comes_out_whole_and_without_delay(name: str) -> None:
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert all(len(piece) < 40 for piece in pieces), "nothing is saved up"


def test_half_a_character_is_held_back_until_it_is_whole() -> None:
    tokenizer = tokenizer_of("byte level")
    ids = tokenizer.encode("🎻", add_special_tokens=False)
    assert len(ids) > 1, "the tokenizer must split this character for the test to mean anything"
    assert pieces_of(tokenizer, ids) == [*[""] * (len(ids) - 1), "🎻", ""]


def test_a_character_that_never_completes_ends_as_the_tokenizer_says() -> None:
    tokenizer = tokenizer_of("byte level")
    ids = tokenizer.encode("🎻", add_special_tokens=False)[:-1]
    assert pieces_of(tokenizer, ids)[-1] == tokenizer.decode(ids) == "\N{REPLACEMENT CHARACTER}"


def test_words_that_share_a_sentencepiece_space_keep_it() -> None:
    tokenizer = tokenizer_of("unigram")
    ids = tokenizer.encode("hello world and", add_special_tokens=False) * 20
    text = "".join(pieces_of(tokenizer, ids))
    assert text == tokenizer.decode(ids)
    assert text.startswith("hello world and hello")


def test_a_long_run_of_special_tokens_leaves_no_trace() -> None:
    tokenizer = tokenizer_of("unigram")
    words = tokenizer.encode("hello world", add_special_tokens=False)
    ids = [*words, *[tokenizer.eos_token_id] * 80, *words, *[tokenizer.eos_token_id] * 80, *words]
    assert "".join(pieces_of(tokenizer, ids)) == "hello world hello world hello world"


def naive_stop(text: str, stops: list[str]) -> tuple[int, int] | None:
    """(start, end) of the sequence that is complete first, the longest if several are."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return min(starts), end
    return None


few_letters = st.text("abc", max_size=8)


@settings(max_examples=400, deadline=None)
@given(
    pieces=st.lists(few_letters, max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
    is_kept=st.booleans(),
)
def test_stop_sequences_cut_where_a_search_of_the_whole_text_does(
    pieces: list[str], stops: list[str], is_kept: bool
) -> None:
    matcher = StopMatcher(stops, is_kept=is_kept)
    shown = "".join(matcher.push(piece) for piece in pieces) + matcher.flush()
    whole = "".join(pieces)
    found = naive_stop(whole, stops)
    assert matcher.has_matched == (found is not None)
    if found is None:
        assert shown == whole
    else:
        assert shown == whole[: found[1] if is_kept else found[0]]


def test_text_that_may_start_a_stop_sequence_is_held_back_only_if_it_would_be_cut() -> None:
    cut = StopMatcher(["END."], is_kept=False)
    assert [cut.push(piece) for piece in ["the E", "N", "emy EN", "D", "."]] == [
        "the ",
        "",
        "ENemy ",
        "",
        "",
    ]
    assert cut.has_matched
    kept = StopMatcher(["END."], is_kept=True)
    assert [kept.push(piece) for piece in ["the EN", "D", ". more"]] == ["the EN", "D", "."]


def test_nothing_is_shown_after_a_stop_sequence() -> None:
    matcher = StopMatcher(["\n"], is_kept=True)
    assert matcher.push("a\nb") == "a\n"
    assert matcher.push("c") == ""
    assert matcher.flush() == ""
