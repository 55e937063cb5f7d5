"""Rows become tensors, padded on the right."""

import torch

from luthier.training.data.collation import collate, idle_batch
from luthier.training.data.examples import Example

CPU = torch.device("cpu")


def test_causal_rows_are_padded_to_the_longest() -> None:
    batch = collate(
        [Example(3, (5, 6), (-100, 6)), Example(9, (7, 8, 9, 1), (-100, -100, 9, 1))],
        pad_token_id=0,
        is_seq2seq=False,
        device=CPU,
    )
    assert batch.rows == (3, 9)
    assert batch.input_ids.tolist() == [[5, 6, 0, 0], [7, 8, 9, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.labels.tolist() == [[-100, 6, -100, -100], [-100, -100, 9, 1]]
    assert (batch.num_input_tokens, batch.num_label_tokens) == (6, 3)


def test_seq2seq_labels_have_a_length_of_their_own() -> None:
    batch = collate(
        [Example(1, (5, 6, 7), (8, 1)), Example(2, (5,), (8, 9, 4, 1))],
        pad_token_id=0,
        is_seq2seq=True,
        device=CPU,
    )
    assert batch.input_ids.shape == (2, 3)
    assert batch.labels.tolist() == [[8, 1, -100, -100], [8, 9, 4, 1]]
    assert (batch.num_input_tokens, batch.num_label_tokens) == (10, 6)


def test_rows_without_a_source_still_give_tensors() -> None:
    batch = collate([Example(1, (), (8, 1))], pad_token_id=0, is_seq2seq=True, device=CPU)
    assert batch.input_ids.tolist() == [[0]]
    assert batch.attention_mask.tolist() == [[0]]


def test_an_idle_batch_has_tokens_and_nothing_to_learn() -> None:
    batch = collate(
        [Example(4, (5, 6), (-100, 6))],
        pad_token_id=0,
        is_seq2seq=False,
        device=torch.device("cpu"),
    )
    idle = idle_batch(batch)
    assert idle.rows == ()
    assert idle.input_ids.tolist() == [[5, 6]]
    assert idle.labels.tolist() == [[-100, -100]]
    assert (idle.num_input_tokens, idle.num_label_tokens) == (0, 0)
