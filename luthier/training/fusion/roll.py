"""Who is in a group of trainings, in which round: written down in checkpoints, and found again.

In each round every member has one micro-batch, so a member's checkpoint says where it stands: the
round in which it joined, and the micro-batches that it has done. The rest follows from the limits
and the order of the jobs. A group that was killed begins again in the round of the member that is
furthest behind. Those that are ahead have done that round: they are laid into its passes once more,
because what the others compute rounds by who lies beside them::

    round              40 41 42 43 44
    member 0, at 42     r  r  |  |  |      r  replayed: its rows count for the others, not for it
    member 1, at 40     |  |  |  |  |
    member 2, ended 41  r  .  .  .  .
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import alog

from luthier.training.checkpointing.group_record import GroupRecord, Member

log = alog.use_channel(__name__)


@dataclass(frozen=True)
class Standing:
    """A training as it comes to a group.

    Args:
        mark: Of what it is.
        num_done: Micro-batches that it has done.
        is_done: Whether no more will come.
        record: Of the group that it was in; None if it was in none.
    """

    mark: str
    num_done: int
    is_done: bool
    record: GroupRecord | None


class Roll:
    """The members of a group, and the round that is next.

    Args:
        max_pass_tokens: Most tokens of a shared pass.
        max_live_jobs: Trainings under way at once.
    """

    def __init__(self, *, max_pass_tokens: int, max_live_jobs: int) -> None:
        self.round = 0
        self._max_pass_tokens = max_pass_tokens
        self._max_live_jobs = max_live_jobs
        self._generation = 0
        self._members: list[Member] = []
        self._is_told = False

    def take_up(self, standings: Sequence[Standing]) -> list[int | None]:
        """Begin where a group was left, if these trainings are one.

        Args:
            standings: Of those that were under way when it was left, and perhaps of more.

        Returns:
            For each the place among the members that it had; None if it is new.
        """
        records = [each.record for each in standings if each.record is not None]
        if not records:
            return [None] * len(standings)
        newest = max(record.generation for record in records)
        found = self._found_again(
            [record for record in records if record.generation == newest], standings
        )
        if isinstance(found, str):
            self._generation = newest + 1
            self._tell(found)
            return [None] * len(standings)
        members, places = found
        self._generation = newest
        self.round = _first_round(members, standings, places)
        self._members = [each for each in members if each.joined <= self.round]
        for place, standing in zip(places, standings, strict=True):
            if place is not None and place < len(self._members):
                stands_at = self._members[place].joined + standing.num_done
                is_over = standing.is_done and stands_at <= self.round
                ended = stands_at if is_over else None
                self._members[place] = dataclasses.replace(self._members[place], ended=ended)
        return places

    def is_over(self, standing: Standing, place: int | None) -> bool:
        """Whether nothing that a training did is of use from this round on.

        Args:
            standing: Of the training.
            place: That ``take_up`` gave it.
        """
        if not standing.is_done:
            return False
        if place is None:
            return not self._is_its_turn(standing)
        is_member = place < len(self._members)
        return is_member and self.joined(place) + standing.num_done <= self.round

    def join(self, standing: Standing, place: int | None) -> int:
        """Enter a training, from this round on; one that was live in it is entered already.

        Args:
            standing: Of the training.
            place: That ``take_up`` gave it; None for one that came later.

        Returns:
            Its place.
        """
        if place is not None and place < len(self._members):
            return place
        joined = self.round
        if standing.num_done and not self._is_its_turn(standing):
            joined -= standing.num_done
            self._tell("a training joins that was not in it, or at another time")
        self._members.append(Member(standing.mark, joined))
        return len(self._members) - 1

    def joined(self, place: int) -> int:
        """The round in which a member joined."""
        return self._members[place].joined

    def leave(self, place: int, *, took_part: bool) -> None:
        """Note that a member is gone.

        Args:
            place: Of the member.
            took_part: Whether it had a micro-batch in this round.
        """
        ended = self.round + int(took_part)
        self._members[place] = dataclasses.replace(self._members[place], ended=ended)

    def record(self, place: int) -> GroupRecord:
        """What goes into a member's checkpoint."""
        return GroupRecord(
            self._generation,
            self._max_pass_tokens,
            self._max_live_jobs,
            place,
            tuple(self._members),
        )

    def _is_its_turn(self, standing: Standing) -> bool:
        """Whether this is where a training joined, by its own checkpoint."""
        record = standing.record
        return (
            record is not None
            and record.generation == self._generation
            and record.member == len(self._members)
            and record.members[record.member].joined == self.round
        )

    def _found_again(
        self, records: Sequence[GroupRecord], standings: Sequence[Standing]
    ) -> tuple[tuple[Member, ...], list[int | None]] | str:
        """The members, and which of them each training is; or what is not as it was."""
        for record in records:
            if (record.max_pass_tokens, record.max_live_jobs) != (
                self._max_pass_tokens,
                self._max_live_jobs,
            ):
                return (
                    f"passes had {record.max_pass_tokens} tokens and {record.max_live_jobs} "
                    f"trainings at once, now {self._max_pass_tokens} and {self._max_live_jobs}"
                )
        members = _merged(records)
        if members is None:
            return "the checkpoints are of several groups"
        places = _places(members, standings, records[0].generation)
        first_round = _first_round(members, standings, places)
        missing = [
            each
            for place, each in enumerate(members)
            if each.is_live(first_round) and place not in places
        ]
        if missing:
            return f"{len(missing)} of its trainings are missing"
        # Whoever is new has a place that somebody has just left, else it was not waiting for one.
        before = max(first_round - 1, min(each.joined for each in members), 0)
        num_live = sum(each.is_live(before) for each in members)
        if num_live < self._max_live_jobs and any(
            place is None and not standing.is_done
            for place, standing in zip(places, standings, strict=True)
        ):
            return "trainings are there that were not in it"
        return members, places

    def _tell(self, reason: str) -> None:
        """Say once that the bits may be others."""
        if not self._is_told:
            log.info(
                "the group is not the one that was left, so results are those of the "
                "uninterrupted one up to rounding: %s",
                reason,
            )
        self._is_told = True


def _merged(records: Sequence[GroupRecord]) -> tuple[Member, ...] | None:
    """What they know together; None if they contradict each other."""
    members = []
    for known in itertools.zip_longest(*(record.members for record in records)):
        versions = [each for each in known if each is not None]
        if len({(each.mark, each.joined) for each in versions}) > 1:
            return None
        # Not the first end: of a training that was taken up again a later one counts.
        ends = [each.ended for each in versions if each.ended is not None]
        members.append(dataclasses.replace(versions[0], ended=max(ends, default=None)))
    return tuple(members)


def _places(
    members: Sequence[Member], standings: Sequence[Standing], generation: int
) -> list[int | None]:
    """Which member each training is: by its own record, else by what it is of."""
    places: list[int | None] = [None] * len(standings)
    for index, standing in enumerate(standings):
        record = standing.record
        if record is not None and record.generation == generation and record.member not in places:
            places[index] = record.member
    for index, standing in enumerate(standings):
        if places[index] is None:
            free = (
                place
                for place, each in enumerate(members)
                if each.mark == standing.mark and place not in places
            )
            places[index] = next(free, None)
    return places


def _first_round(
    members: Sequence[Member], standings: Sequence[Standing], places: Sequence[int | None]
) -> int:
    """That of the member that is furthest behind."""
    rounds = [
        members[place].joined + standing.num_done
        for place, standing in zip(places, standings, strict=True)
        if place is not None and not standing.is_done
    ]
    return min(rounds, default=0)
