"""What an operator may choose about the sharing of steps and places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.inference.batch_rows import BatchRow


@dataclass(frozen=True)
class SchedulingRules:
    """Limits, and who keeps within them.

    Args:
        max_rows: Rows that run at the same time, at most; each beam is one.
        max_beam_rows: Those of beam searches among them, at most.
        max_step_tokens: Tokens of one step; two for each row at least are used, so that no prompt
            stands still beside rows that decode. The ends of prompts may add a quarter.
        turn_tokens: Tokens a row generates before it may have to make way for a flow that has none
            running.
        ageing_steps: Steps of waiting that count as one priority.
        weight_of: Of a tenant; how much it gets for each of one that weighs 1.
    """

    max_rows: int
    max_step_tokens: int
    max_beam_rows: int = 16
    turn_tokens: int = 128
    ageing_steps: int = 64
    weight_of: Callable[[str], int] = lambda tenant: 1

    @property
    def step_tokens(self) -> int:
        """Tokens of one step, before what the ends of prompts may add."""
        return max(self.max_step_tokens, 2 * self.max_rows)

    def had_turn(self, row: BatchRow) -> bool:
        """Whether a row has generated a turn's tokens since it was admitted last."""
        return len(row.generated_ids) - row.turn_start >= self.turn_tokens

    def lacks_rows(self, row: BatchRow, running: Sequence[BatchRow]) -> bool:
        """Whether a row and its members would be too many beside others."""
        return len(running) + row.width > self.max_rows

    def lacks_beam_rows(self, row: BatchRow, running: Sequence[BatchRow]) -> bool:
        """Whether beams would be too many beside those of others; never for any other row."""
        if not row.is_beam:
            return False
        return row.width + sum(each.is_beam for each in running) > self.max_beam_rows
