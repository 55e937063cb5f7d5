"""What was said so far in one text: what rules about the next token look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class TokenHistory:
    """What was said so far.

    Args:
        prior_token_ids: Before the first generated token: a causal model's prompt, a seq2seq
            decoder's start token. Those that logits have no place for are negative.
    """

    def __init__(self, prior_token_ids: Sequence[int]) -> None:
        self.token_ids = list(prior_token_ids)
        self.num_prior = len(self.token_ids)
        self._said: torch.Tensor | None = None

    @property
    def num_generated(self) -> int:
        """Tokens since the prior ones."""
        return len(self.token_ids) - self.num_prior

    def add(self, token_id: int) -> None:
        """Count one more token as said."""
        self.token_ids.append(token_id)
        if self._said is not None and not bool((self._said == token_id).any()):
            self._said = torch.cat([self._said, self._said.new_tensor([token_id])])

    def followed_by(self, token_id: int) -> TokenHistory:
        """A copy with one more token."""
        copy = TokenHistory(())
        copy.token_ids = list(self.token_ids)
        copy.num_prior, copy._said = self.num_prior, self._said
        copy.add(token_id)
        return copy

    def said(self, device: torch.device) -> torch.Tensor:
        """Each token that logits have a place for once, [N]."""
        if self._said is None:
            distinct = [each for each in dict.fromkeys(self.token_ids) if each >= 0]
            self._said = torch.tensor(distinct, dtype=torch.long, device=device)
        return self._said
