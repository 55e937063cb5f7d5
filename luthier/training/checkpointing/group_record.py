"""Who shared passes with whom: what a training that learns together with others adds to its
checkpoints.

How a pass rounds depends on which rows lie in it, and where, though not on what the other trainings
have learned. So a group that is taken up needs to know who was there in which round, no more. Each
member has one micro-batch in each round, from the one that it joined in::

    round     0 1 2 3 4 5 6 7
    member 0  | | | | |           joined 0, ended 5
    member 1  | | | | | | | |     joined 0
    member 2            | | |     joined 5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import alog

log = alog.use_channel(__name__)


@dataclass(frozen=True)
class Member:
    """A training of a group.

    Args:
        mark: Of what it is: data, options, base model, adapter.
        joined: Round of its first micro-batch. Below 0 if it had done some before the group began.
        ended: Round after its last; None as long as it is under way.
    """

    mark: str
    joined: int
    ended: int | None = None

    def is_live(self, at_round: int) -> bool:
        """Whether it has a micro-batch in a round."""
        return self.joined <= at_round and (self.ended is None or at_round < self.ended)


@dataclass(frozen=True)
class GroupRecord:
    """A group as one of its members knew it when its checkpoint was written.

    Args:
        generation: How often the group was put together in another way than before.
        max_pass_tokens: Most tokens of a shared pass.
        max_live_jobs: Trainings under way at once.
        member: Which of ``members`` the checkpoint is of.
        members: Everybody so far, as they joined.
    """

    generation: int
    max_pass_tokens: int
    max_live_jobs: int
    member: int
    members: tuple[Member, ...]

    def num_beside(self, num_done: int) -> int:
        """How many others take part in what this member does next.

        Args:
            num_done: Micro-batches that it has done.

        Returns:
            The number, as far as the record knows.
        """
        at_round = self.members[self.member].joined + num_done
        others = (each for index, each in enumerate(self.members) if index != self.member)
        return sum(each.is_live(at_round) for each in others)

    def as_json(self) -> dict[str, Any]:
        """JSON values, for ``from_json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``as_json`` gave.

        Args:
            values: From a file.

        Returns:
            The record.

        Raises:
            KeyError: If something is missing.
            TypeError: If something is of another kind.
            ValueError: If a number is none, or out of range.
        """
        members = tuple(
            Member(
                str(each["mark"])[:128],
                _whole(each["joined"]),
                None if each["ended"] is None else _whole(each["ended"]),
            )
            for each in values["members"]
        )
        record = cls(
            generation=_whole(values["generation"], least=0),
            max_pass_tokens=_whole(values["max_pass_tokens"], least=1),
            max_live_jobs=_whole(values["max_live_jobs"], least=1),
            member=_whole(values["member"], least=0),
            members=members,
        )
        if record.member >= len(members):
            raise ValueError(f"'member' is {record.member} of {len(members)}")
        return record


def tell_if_parted(record: GroupRecord | None, num_done: int) -> None:
    """Say in the log that a training which goes on alone had company.

    Args:
        record: From its checkpoint; None if it was alone.
        num_done: Micro-batches that it has done.
    """
    others = 0 if record is None else record.num_beside(num_done)
    if others:
        log.info(
            "a training that shared passes goes on alone: the result is that of the uninterrupted "
            "one up to rounding; resumed together they give the same bits: num_others=%d",
            others,
        )


def _whole(value: object, *, least: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{str(value)[:80]!r} is no whole number")
    if least is not None and value < least:
        raise ValueError(f"{value} is less than {least}")
    return value
