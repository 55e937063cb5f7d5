"""Augmentations: as often as asked, repeatable, and never without a label."""

import random
from typing import Any

import pytest
from fixtures.tiny_models import EOS_ID, PAD_ID, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from luthier.data_model.conversations import ChatMessage, ChatTrainRecord
from luthier.data_model.options.dataset_options import DatasetOptions
from luthier.training.data.augmentation import (
    Augmentation,
    changes_rows,
    cut_to_quantile,
    mask_token_of,
    mask_tokens,
    split_turns,
)
from luthier.training.data.encoding.conversation_encoding import ConversationEncoder
from luthier.training.data.encoding.row_tokenizer import RowTokenizer
from luthier.training.data.examples import IGNORED_LABEL, Example

MASK_ID = 9


def _chat(*names: str, system: str = "") -> ChatTrainRecord:
    head = (ChatMessage("system", system),) if system else ()
    turns = [(ChatMessage("user", f"q{n}"), ChatMessage("assistant", f"a{n}")) for n in names]
    return ChatTrainRecord((*head, *(message for turn in turns for message in turn)))


RECORDS = {1: _chat("1", "2", "3", system="S"), 2: _chat("4", "5"), 3: _chat("6")}


def _augmentation(
    records: dict[int, ChatTrainRecord], *, max_row_length: int | None = None, **options: Any
) -> Augmentation:
    row_tokenizer = RowTokenizer(
        tokenizer=make_tokenizer(),
        is_seq2seq=False,
        eos_token_id=EOS_ID,
        max_source_length=8,
        max_target_length=8,
        has_virtual_tokens=True,
        max_row_length=max_row_length,
    )
    bare = {"text_system_start": "", "text_prompt_start": "", "text_answer_separator": ""}
    no_end = dict.fromkeys(
        ("add_eos_token_to_system", "add_eos_token_to_prompt", "add_eos_token_to_answer"), False
    )
    settings = DatasetOptions(**bare, **no_end, **options)
    encoder = ConversationEncoder(row_tokenizer, settings)
    return Augmentation(settings, 7, MASK_ID, False, records, encoder)


def _said(augmentation: Augmentation, row: int, epoch: int) -> str:
    assert augmentation.encoder is not None
    example = augmentation.encoder.encode(row, RECORDS[row], "row").example
    (changed,) = augmentation({row: example}, epoch=epoch)
    return str(make_tokenizer().decode(changed.input_ids))


def test_parents_are_skipped_one_by_one_and_the_last_turn_never() -> None:
    augmentation = _augmentation(RECORDS, skip_parent_probability=0.5)
    drawn = [_said(augmentation, 1, epoch) for epoch in range(200)]
    assert set(drawn) == {
        "Sq1a1q2a2q3a3",
        "Sq1a1q3a3",
        "Sq2a2q3a3",
        "Sq3a3",
    }
    assert 60 < sum("q1" in text for text in drawn) < 140


def test_a_random_parent_takes_the_place_of_the_first_or_is_added() -> None:
    augmentation = _augmentation(RECORDS, random_parent_probability=1.0)
    drawn = {_said(augmentation, 1, epoch) for epoch in range(60)}
    assert drawn == {"Sq3a3q2a2q3a3", "Sq5a5q2a2q3a3", "Sq6a6q2a2q3a3"}
    assert {_said(augmentation, 3, epoch) for epoch in range(60)} >= {"q5a5q6a6", "q3a3q6a6"}


def test_a_random_parent_that_makes_a_row_too_long_is_left_out() -> None:
    longest = len(make_tokenizer()("q6a6")["input_ids"])
    augmentation = _augmentation(RECORDS, max_row_length=longest, random_parent_probability=1.0)
    assert _said(augmentation, 3, 0) == "q6a6"


def test_seed_epoch_and_row_decide() -> None:
    augmentation = _augmentation(RECORDS, skip_parent_probability=0.5, token_mask_probability=0.3)
    first = [_said(augmentation, 1, epoch) for epoch in range(20)]
    random.seed(0)
    state = random.getstate()
    assert [_said(augmentation, 1, epoch) for epoch in range(20)] == first
    assert random.getstate() == state
    assert len(set(first)) > 5


def test_without_probabilities_nothing_changes() -> None:
    assert not changes_rows(DatasetOptions())
    assert changes_rows(DatasetOptions(padding_quantile=0.9))
    assert _said(_augmentation(RECORDS), 1, 0) == "Sq1a1q2a2q3a3"


@given(
    labels=st.lists(st.sampled_from([IGNORED_LABEL, 5, 6]), min_size=1, max_size=30),
    probability=st.floats(min_value=0.0, max_value=0.9),
    seed=st.integers(),
)
def test_masked_tokens_are_hidden_and_not_learned(
    labels: list[int], probability: float, seed: int
) -> None:
    example = Example(1, tuple(range(100, 100 + len(labels))), tuple(labels))
    masked = mask_tokens(
        example, probability, random.Random(seed), mask_token_id=MASK_ID, is_seq2seq=False
    )
    for token, label, before, label_before in zip(
        masked.input_ids, masked.labels, example.input_ids, example.labels, strict=True
    ):
        assert (token, label) in ((before, label_before), (MASK_ID, IGNORED_LABEL))
    assert masked.num_label_tokens >= min(1, example.num_label_tokens)


def test_as_many_tokens_are_masked_as_asked() -> None:
    example = Example(1, (5,) * 10_000, (5,) * 10_000)
    masked = mask_tokens(example, 0.3, random.Random(1), mask_token_id=MASK_ID, is_seq2seq=False)
    assert masked.input_ids.count(MASK_ID) == pytest.approx(3000, rel=0.06)


def test_what_a_seq2seq_model_writes_is_not_masked() -> None:
    example = Example(1, (5,) * 100, (6,) * 50)
    masked = mask_tokens(example, 0.5, random.Random(1), mask_token_id=MASK_ID, is_seq2seq=True)
    assert masked.labels == example.labels
    assert MASK_ID in masked.input_ids


def test_a_batch_is_cut_to_the_quantile_of_its_lengths() -> None:
    rows = [Example(n, tuple(range(n)), tuple(range(n))) for n in (28, 38, 68, 128)]
    cut = cut_to_quantile(rows, 0.75, is_seq2seq=False)
    assert [len(row.input_ids) for row in cut] == [28, 38, 68, 83]
    assert cut[3].input_ids == tuple(range(45, 128))
    assert cut[3].labels == cut[3].input_ids
    assert cut_to_quantile(rows, 1.0, is_seq2seq=False) == rows


def test_a_seq2seq_batch_loses_starts_of_inputs_and_ends_of_labels() -> None:
    rows = [Example(n, tuple(range(n)), tuple(range(n))) for n in (2, 4)]
    cut = cut_to_quantile(rows, 0.5, is_seq2seq=True)
    assert [row.input_ids for row in cut] == [(0, 1), (1, 2, 3)]
    assert [row.labels for row in cut] == [(0, 1), (0, 1, 2)]


def test_a_row_is_never_cut_to_no_label() -> None:
    early = Example(1, (1, 2, 3, 4), (1, *[IGNORED_LABEL] * 3))
    short = Example(2, (1,), (1,))
    assert cut_to_quantile([early, short], 0.5, is_seq2seq=False) == [early, short]


def test_turns_end_with_answers_and_system_texts_stand_before_them() -> None:
    head, turns = split_turns(RECORDS[1])
    assert [message.content for message in head] == ["S"]
    assert [[message.content for message in turn] for turn in turns] == [
        ["q1", "a1"],
        ["q2", "a2"],
        ["q3", "a3"],
    ]


def test_a_hidden_token_is_one_that_the_model_knows() -> None:
    tokenizer = make_tokenizer()
    assert mask_token_of(tokenizer) == PAD_ID
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    assert mask_token_of(tokenizer) == tokenizer.unk_token_id
