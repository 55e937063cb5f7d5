"""A history counts each token once, however it came."""

from __future__ import annotations

import torch

from luthier.inference.sampling.token_history import TokenHistory


def test_generated_tokens_are_those_after_the_prior_ones() -> None:
    history = TokenHistory((5, 6, 5))
    history.add(6)
    assert (history.num_prior, history.num_generated) == (3, 1)
    assert history.token_ids == [5, 6, 5, 6]


def test_each_token_is_said_once_whether_it_came_before_or_after_the_first_look() -> None:
    device = torch.device("cpu")
    history = TokenHistory((5, 6, 5))
    assert sorted(history.said(device).tolist()) == [5, 6]
    for token_id in (6, 9, 9, 5):
        history.add(token_id)
    assert sorted(history.said(device).tolist()) == [5, 6, 9]


def test_a_copy_of_a_history_is_its_own() -> None:
    history = TokenHistory((5, 6))
    device = torch.device("cpu")
    history.said(device)
    copy = history.followed_by(9)
    assert history.token_ids == [5, 6]
    assert copy.token_ids == [5, 6, 9]
    assert (history.num_generated, copy.num_generated) == (0, 1)
    assert sorted(history.said(device).tolist()) == [5, 6]
    assert sorted(copy.said(device).tolist()) == [5, 6, 9]
