"""What a model reads of a row, and what it should write then."""

from luthier.training.data.examples import Example
from luthier.training.evaluation.row_scoring import split_example


def test_of_a_conversation_the_last_answer_is_to_be_written() -> None:
    example = Example(1, (1, 2, 3, 4, 5, 6), (-100, 2, -100, 4, 5, -100))
    assert split_example(example, is_seq2seq=False) == ((1, 2, 3), (4, 5))
    plain = Example(1, (1, 2), (1, 2))
    assert split_example(plain, is_seq2seq=False) == ((), (1, 2))
    pair = Example(1, (1, 2), (7, -100))
    assert split_example(pair, is_seq2seq=True) == ((1, 2), (7,))
