"""What a step's logits give its rows: a token, several, the scores of a head, or an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import alog
import torch

from luthier.errors import EngineError, LuthierError
from luthier.inference.base import FinishReason
from luthier.inference.batch_rows import BatchRow, RowSlice, SliceLogits
from luthier.inference.beam_rows import BeamRow
from luthier.inference.channels import Item
from luthier.inference.memory.kv_memory import KvMemory
from luthier.inference.sampling.sampler import Sampler, choose_together
from luthier.inference.scored_sequence import ScoredSequence
from luthier.inference.sequences import GeneratedSequence

log = alog.use_channel(__name__)

Made = TypeVar("Made")
#: What rows get, in order.
RowItems = list[tuple[BatchRow, Item]]


class StepAnswers:
    """Lets rows choose, and remember how far they got. Called by the engine's thread alone.

    Args:
        memory: Where rows leave what others may start from, and beams go on from one another.
    """

    def __init__(self, memory: KvMemory) -> None:
        self._memory = memory

    def take(
        self,
        slices: Sequence[RowSlice],
        results: Mapping[BatchRow, SliceLogits | LuthierError],
    ) -> RowItems:
        """Give each row what its slice computed.

        Args:
            slices: Of the step.
            results: What the runner gave, or an error in its place; nothing for rows in whose
                prompt the step went on.

        Returns:
            What to deliver; whatever goes wrong with a row is the row's own last item.
        """
        best = _chosen_together(results.values())
        items: RowItems = []
        for each in slices:
            take = partial(self._take, each, results.get(each.row), best.get(each.row))
            items.extend(_with_row(each.row, made(take)))
        return items

    def _take(
        self,
        each: RowSlice,
        result: SliceLogits | LuthierError | None,
        best: tuple[int, float] | None,
    ) -> RowItems:
        """What a computed slice gives its row."""
        if isinstance(result, LuthierError):
            return [(each.row, result)]
        each.row.num_computed = each.stop - len(each.drafted)
        if each.count > 1 and not each.drafted:
            self._memory.keep(each.row)
        return [] if result is None else self._advance(result, best)

    def _advance(self, result: SliceLogits, best: tuple[int, float] | None) -> RowItems:
        row, sequence = result.slice.row, result.slice.row.sequence
        if isinstance(sequence, ScoredSequence):
            hidden = result.hidden
            assert hidden is not None
            return [(row, made(lambda: sequence.score(hidden)))]
        if row.reports_prompt:
            assert isinstance(sequence, GeneratedSequence)
            sequence.report_prompt(result.logits, start=result.slice.start - row.num_virtual)
        if not result.slice.reaches_end:
            return []
        if isinstance(row, BeamRow):
            return self._advance_beams(row, result.logits[-1])
        if result.slice.drafted:
            return _check_draft(result)
        return [_choose(row, result.logits[-1], best=best)]

    def _advance_beams(self, row: BeamRow, logits: torch.Tensor) -> RowItems:
        """A step of a search, once the last of its beams has been computed."""
        if not row.group.takes_step(row, logits):
            return []
        given = made(lambda: list(row.group.advance(self._memory)))
        return [(row, item) for item in (given if isinstance(given, list) else [given])]


def made(make: Callable[[], Made]) -> Made | LuthierError:
    """What a row is given next; what goes wrong is its own.

    Args:
        make: Makes it.

    Returns:
        What ``make`` gives, or the error that the row must end with.
    """
    try:
        return make()
    except LuthierError as error:
        return error
    except Exception as error:
        log.error("Making an answer failed", exc_info=True)
        return EngineError(f"generation failed: {error}")


def end_of(row: BatchRow, reason: FinishReason) -> Item:
    """The last chunk of a row that ends without a further token."""
    return made(partial(row.sequence.end, reason))


def ended_in_time(row: BatchRow) -> RowItems:
    """The last chunks of a row whose time is over."""

    def end() -> RowItems:
        if isinstance(row, BeamRow):
            return [(row, chunk) for chunk in row.group.cut()]
        return [(row, row.sequence.end(FinishReason.TIME_LIMIT))]

    return _with_row(row, made(end))


def _with_row(row: BatchRow, items: RowItems | LuthierError) -> RowItems:
    return items if isinstance(items, list) else [(row, items)]


def _check_draft(result: SliceLogits) -> RowItems:
    """Choose one token after the other, as long as each is the one that was guessed."""
    row, drafted = result.slice.row, result.slice.drafted
    items: RowItems = []
    for place, logits in enumerate(result.logits):
        _, item = _choose(row, logits)
        items.append((row, item))
        if isinstance(item, LuthierError) or item.is_last or place == len(drafted):
            break
        if row.sequence.token_ids[-1] != drafted[place]:
            break
        row.num_computed += 1
    return items


def _choose(
    row: BatchRow, logits: torch.Tensor, *, best: tuple[int, float] | None = None
) -> tuple[BatchRow, Item]:
    sequence = row.sequence
    assert isinstance(sequence, GeneratedSequence)
    return row, made(lambda: sequence.advance(logits, best=best))


def _chosen_together(
    results: Iterable[SliceLogits | LuthierError],
) -> dict[BatchRow, tuple[int, float]]:
    """The next tokens of all rows that get one: a GPU is asked only once."""
    rows: list[BatchRow] = []
    samplers: list[Sampler] = []
    logits: list[torch.Tensor] = []
    for each in results:
        if not isinstance(each, SliceLogits) or not each.slice.reaches_end or each.slice.drafted:
            continue
        row = each.slice.row
        sampler = getattr(row.sequence, "sampler", None)
        if isinstance(sampler, Sampler) and not row.is_beam:
            rows.append(row)
            samplers.append(sampler)
            logits.append(each.logits[-1])
    try:
        return dict(zip(rows, choose_together(samplers, logits), strict=True))
    except Exception:
        log.error("Choosing tokens together failed; each row chooses by itself", exc_info=True)
        return {}
