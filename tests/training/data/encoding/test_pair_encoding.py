"""Pairs are checked before they are tokenized. What tokens they get, test_tokenization shows."""

import pytest
from fixtures.tiny_models import EOS_ID, make_tokenizer

from luthier.data_model.records import ClassificationTrainRecord, GenerationTrainRecord
from luthier.errors import TrainingDataError, VerbalizerError
from luthier.training.data.encoding.pair_encoding import TextPair, encode_pairs, text_pair
from luthier.training.data.encoding.row_tokenizer import RowTokenizer
from luthier.training.data.encoding.verbalizer import Verbalizer

VERBALIZER = Verbalizer("Text: {{input}}")


def _pair(record: GenerationTrainRecord | ClassificationTrainRecord) -> TextPair:
    return text_pair(3, record, VERBALIZER, name="train")


def test_both_kinds_of_records_are_verbalized() -> None:
    generation = _pair(GenerationTrainRecord(input="a", output="x,y"))
    assert generation == TextPair(3, "a", "Text: a", "x,y")
    assert _pair(ClassificationTrainRecord(text="a", labels=["x", "y"])) == generation


def test_what_cannot_be_learned_is_refused_by_row() -> None:
    with pytest.raises(TrainingDataError, match="train row 3 has no output"):
        _pair(GenerationTrainRecord(input="a", output=""))
    with pytest.raises(TrainingDataError, match="train row 3: 'output' is no valid text"):
        _pair(GenerationTrainRecord(input="a", output="\udc00"))
    with pytest.raises(VerbalizerError, match=r"row 3: the verbalizer names {{label}}"):
        text_pair(
            3,
            GenerationTrainRecord(input="a", output="b"),
            Verbalizer("{{label}}"),
            name="train",
        )


def test_what_is_cut_is_counted() -> None:
    row_tokenizer = RowTokenizer(
        tokenizer=make_tokenizer(),
        is_seq2seq=False,
        eos_token_id=EOS_ID,
        max_source_length=2,
        max_target_length=1,
        has_virtual_tokens=True,
    )
    pair = TextPair(1, "0123", "0123", "4567")
    (row,) = encode_pairs([pair], VERBALIZER, row_tokenizer, name="train")
    ids = make_tokenizer()("0123")["input_ids"], make_tokenizer()("4567")["input_ids"]
    assert (row.num_source_cut, row.num_target_cut) == (len(ids[0]) - 2, len(ids[1]) - 1)
    assert row.example.input_ids == (*ids[0][:2], ids[1][0], EOS_ID)
