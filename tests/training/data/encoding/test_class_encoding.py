from __future__ import annotations

import dataclasses

import pytest

from luthier.data_model.records import ClassificationTrainRecord
from luthier.errors import TrainingDataError
from luthier.resources.base_model import BaseModel
from luthier.training.data.encoding.class_encoding import encode_classes
from luthier.training.data.encoding.pair_encoding import text_pair
from luthier.training.data.encoding.row_tokenizer import RowTokenizer
from luthier.training.data.encoding.verbalizer import Verbalizer
from luthier.training.data.examples import Example

VERBALIZER = Verbalizer("SMS: {{input}}")


@pytest.fixture
def row_tokenizer(tiny_causal_base: BaseModel) -> RowTokenizer:
    return RowTokenizer(
        tokenizer=tiny_causal_base.tokenizer,
        is_seq2seq=False,
        eos_token_id=1,
        max_source_length=20,
        max_target_length=1,
        class_labels=("ham", "spam"),
    )


def encode(row_tokenizer: RowTokenizer, text: str, label: str) -> tuple[Example, int]:
    record = ClassificationTrainRecord(text=text, labels=[label])
    pair = text_pair(7, record, VERBALIZER, name="train")
    (row,) = encode_classes([pair], VERBALIZER, row_tokenizer, name="train")
    return row.example, row.num_source_cut


def test_a_text_is_read_as_it_is_when_served_and_its_last_token_predicts_the_class(
    row_tokenizer: RowTokenizer,
) -> None:
    example, num_cut = encode(row_tokenizer, "win a prize", "spam")
    ids = tuple(row_tokenizer.encoder.encode(VERBALIZER, "win a prize").token_ids)
    assert example.row == 7
    assert example.input_ids[:-1] == ids
    assert example.labels == (-100,) * len(ids) + (1,)
    assert num_cut == 0


def test_control_tokens_in_a_text_stay_text(row_tokenizer: RowTokenizer) -> None:
    text = f"hello {row_tokenizer.tokenizer.eos_token} world"
    example, _ = encode(row_tokenizer, text, "ham")
    assert row_tokenizer.tokenizer.eos_token_id not in example.input_ids[1:-2]


def test_a_long_text_keeps_its_start(row_tokenizer: RowTokenizer) -> None:
    whole = row_tokenizer.encoder.encode(VERBALIZER, "word " * 50).token_ids
    example, num_cut = encode(row_tokenizer, "word " * 50, "ham")
    assert len(example.input_ids) == 21
    assert num_cut == len(whole) - 20


def test_a_label_that_is_no_class_is_refused_with_the_nearest(row_tokenizer: RowTokenizer) -> None:
    with pytest.raises(TrainingDataError, match=r"train row 7 has label 'Spam'.*'spam'"):
        encode(row_tokenizer, "win", "Spam")


def test_a_text_beyond_the_models_context_is_refused(row_tokenizer: RowTokenizer) -> None:
    short = dataclasses.replace(row_tokenizer, max_row_length=20)
    with pytest.raises(TrainingDataError, match="20 tokens, the base model takes at most 19"):
        encode(short, "word " * 50, "ham")
