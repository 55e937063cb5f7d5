"""The beams of one request as rows of the batch: they come and go together.

```
    reading:    row 0 computes the prompt         rows 1, 2 wait, in ranges of their own
    writing:    rows 0, 1, 2, one token a step, beside all other rows of the batch
                between steps:  beams 0 and 1 go on from row 0, beam 2 from row 2
                                row 0 keeps its range, what differs is copied into row 1's
```

Preempted beams keep their texts: when they come back, row 0 computes the prompt again, the others
copy that, and each computes its own text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from luthier.inference.base import FinishReason, GenerationChunk
from luthier.inference.batch_rows import BatchRow
from luthier.inference.memory.kv_memory import KvMemory
from luthier.inference.sequences import GeneratedSequence


class BeamRow(BatchRow):
    """One beam.

    Args:
        group: The search that it belongs to.
        adapter_key: As for ``BatchRow``.
        decoder_start_ids: As for ``BatchRow``.
    """

    def __init__(
        self, group: BeamGroup, *, adapter_key: str, decoder_start_ids: Sequence[int] | None
    ) -> None:
        super().__init__(
            group.sequence, adapter_key=adapter_key, decoder_start_ids=decoder_start_ids
        )
        self.group = group
        self.beam_ids: list[int] = []
        self.logits: torch.Tensor | None = None  # of the last step that reached its end

    @property
    def members(self) -> tuple[BatchRow, ...]:
        """The beams of its search."""
        return self.group.rows

    @property
    def is_beam(self) -> bool:
        """True."""
        return True

    @property
    def waits_for_head(self) -> bool:
        """True until the prompt was copied from the first beam."""
        return self is not self.group.rows[0] and self.num_computed < self.num_first

    @property
    def generated_ids(self) -> Sequence[int]:
        """This beam's text."""
        return self.beam_ids

    @property
    def turn_key(self) -> str:
        """Searches take turns with their adapter's other requests."""
        return f"{self.adapter_key} beams"

    @property
    def num_nameable(self) -> int:
        """Only what comes before the text: beams change theirs."""
        return self.num_first


class BeamGroup:
    """The beams of one request.

    Args:
        sequence: Of the request; its text comes when the search has ended.
        adapter_key: As for ``BatchRow``.
        decoder_start_ids: As for ``BatchRow``.
    """

    def __init__(
        self,
        sequence: GeneratedSequence,
        *,
        adapter_key: str,
        decoder_start_ids: Sequence[int] | None = None,
    ) -> None:
        self.sequence = sequence
        self._search = sequence.beam_search()
        self._has_begun = False
        self.rows = tuple(
            BeamRow(self, adapter_key=adapter_key, decoder_start_ids=decoder_start_ids)
            for _ in range(sequence.request.sampling.num_beams)
        )
        for row in self.rows:  # one reader, and one input that is read
            row.channel, row.encoded = self.rows[0].channel, self.rows[0].encoded

    def takes_step(self, row: BeamRow, logits: torch.Tensor) -> bool:
        """Note what the model says after a beam.

        Args:
            row: Which; all its positions are computed.
            logits: [V].

        Returns:
            Whether that was the last that ``advance`` waits for.
        """
        row.logits = logits
        if not self._has_begun:
            return True
        return all(each.num_pending == 0 for each in self.rows)

    def advance(self, memory: KvMemory) -> Iterator[GenerationChunk]:
        """Take a step of the search, and give its keys and values to the beams that go on.

        Args:
            memory: Of the rows.

        Yields:
            All of the text, once the search has ended; nothing before.

        Raises:
            EngineError: If the logits are unusable.
        """
        had_begun, self._has_begun = self._has_begun, True
        given = self.rows if had_begun else self.rows[:1]
        self._search.advance(torch.stack([row.logits for row in given if row.logits is not None]))
        for row in given:
            row.logits = None
        if self._search.is_done:
            yield from self.sequence.replay(self._search.best, was_cut=False)
            return
        texts = [row.beam_ids for row in self.rows]
        sources = self._search.sources
        if had_begun:
            num_first = self.rows[0].num_first
            memory.reorder(
                self.rows,
                sources,
                lambda one, other: num_first + _num_alike(texts[one], texts[other]),
            )
        for row, source, token_id in zip(self.rows, sources, self._search.token_ids, strict=True):
            row.beam_ids = [*texts[source], token_id]

    def cut(self) -> Iterator[GenerationChunk]:
        """End the search now: its time is over.

        Yields:
            The best text so far, or none if there is none.
        """
        if not self._has_begun:
            yield self.sequence.end(FinishReason.TIME_LIMIT)
            return
        self._search.cut()
        yield from self.sequence.replay(self._search.best, was_cut=True)


def _num_alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    pairs = enumerate(zip(one, other, strict=True))
    return next((place for place, pair in pairs if pair[0] != pair[1]), len(one))
