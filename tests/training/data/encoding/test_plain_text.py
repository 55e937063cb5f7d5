"""Plain text is cut into pieces, and every token of it is learned once."""

from typing import Any

import pytest
from fixtures.tiny_models import BOS_ID, EOS_ID, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from luthier.data_model.conversations import TextTrainRecord
from luthier.errors import InvalidInputError, NotSupportedError, TrainingDataError
from luthier.training.data.encoding.plain_text import encode_plain_text
from luthier.training.data.encoding.row_tokenizer import RowTokenizer
from luthier.training.data.examples import IGNORED_LABEL, TokenizedRow


def _encode(
    text: str, *, max_length: int | None = 8, add_bos: bool = False, **changes: Any
) -> list[TokenizedRow]:
    row_tokenizer = RowTokenizer(
        tokenizer=make_tokenizer(add_bos=add_bos),
        eos_token_id=EOS_ID,
        max_source_length=4,
        max_target_length=4,
        **{"is_seq2seq": False, **changes},
    )
    record = TextTrainRecord(text)
    return encode_plain_text(5, record, row_tokenizer, max_length=max_length, place="f row 5")


@given(st.text(min_size=1, max_size=60), st.integers(min_value=8, max_value=20), st.booleans())
def test_every_token_is_learned_once(text: str, max_length: int, has_virtual_tokens: bool) -> None:
    rows = _encode(text, max_length=max_length, has_virtual_tokens=has_virtual_tokens)
    examples = [row.example for row in rows]
    learned = [label for one in examples for label in one.labels if label != IGNORED_LABEL]
    whole = [*make_tokenizer()(text)["input_ids"], EOS_ID]
    assert learned == (whole if has_virtual_tokens else whole[1:])
    assert all(len(one.input_ids) <= max_length for one in examples)
    assert {one.row for one in examples} == {5}


def test_what_the_tokenizer_puts_before_a_text_stands_at_its_start_alone() -> None:
    rows = _encode("0123456789" * 3, add_bos=True)
    assert [row.example.input_ids.count(BOS_ID) for row in rows] == [1] + [0] * (len(rows) - 1)
    assert rows[0].example.input_ids[0] == BOS_ID


def test_control_tokens_in_a_text_are_text() -> None:
    (row,) = _encode("a</s>b", max_length=64)
    assert row.example.input_ids.count(EOS_ID) == 1


def test_a_piece_is_never_longer_than_the_base_model_takes() -> None:
    rows = _encode("0123456789" * 10, max_length=None, max_row_length=16)
    assert max(len(row.example.input_ids) for row in rows) == 16
    with pytest.raises(
        InvalidInputError, match="'max_length' is 32, the base model takes at most 16"
    ):
        _encode("a", max_length=32, max_row_length=16)


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(TrainingDataError, match="f row 5: the text is empty"):
        _encode("")
    with pytest.raises(TrainingDataError, match="f row 5: 'text' is no valid text"):
        _encode("\ud800")
    with pytest.raises(NotSupportedError, match="seq2seq"):
        _encode("a", is_seq2seq=True)
