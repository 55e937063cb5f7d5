"""What ends an answer is known by its spelling."""

import pytest
from fixtures.tiny_models import BOS_ID, EOS_ID, make_tokenizer

from luthier.errors import NotSupportedError
from luthier.training.data.encoding.row_tokenizer import RowTokenizer, eos_token_id_of


def test_the_end_of_sequence_is_spelled_first() -> None:
    row_tokenizer = RowTokenizer(
        tokenizer=make_tokenizer(),
        is_seq2seq=False,
        eos_token_id=EOS_ID,
        max_source_length=8,
        max_target_length=8,
        end_token_ids=(BOS_ID, EOS_ID),
    )
    assert row_tokenizer.end_texts == ("</s>", "<s>")


def test_the_tokenizers_own_end_counts_if_generation_stops_at_it() -> None:
    tokenizer = make_tokenizer()
    assert eos_token_id_of(tokenizer, (7, EOS_ID), name="m") == EOS_ID
    assert eos_token_id_of(tokenizer, (7, 8), name="m") == 7
    assert eos_token_id_of(tokenizer, (), name="m") == EOS_ID
    tokenizer.eos_token = None
    with pytest.raises(NotSupportedError, match="'m' has no end-of-sequence token"):
        eos_token_id_of(tokenizer, (), name="m")
