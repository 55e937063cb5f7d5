"""What a checkpoint says of a group, written and read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.training.checkpointing.group_record import GroupRecord, Member, tell_if_parted

RECORD = GroupRecord(1, 512, 2, 1, (Member("a", -3, 5), Member("b", 0), Member("c", 5)))


def test_a_record_comes_back_from_json() -> None:
    assert GroupRecord.from_json(json.loads(json.dumps(RECORD.as_json()))) == RECORD


@pytest.mark.parametrize(
    "changes",
    [
        {"member": 3},
        {"member": -1},
        {"max_pass_tokens": 0},
        {"max_live_jobs": True},
        {"generation": "1"},
        {"members": [{"mark": "a", "joined": 0.5, "ended": None}]},
    ],
)
def test_what_nobody_wrote_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        GroupRecord.from_json({**RECORD.as_json(), **changes})


def test_who_is_beside_a_member_depends_on_the_round(caplog: pytest.LogCaptureFixture) -> None:
    assert [RECORD.num_beside(num_done) for num_done in (0, 4, 5)] == [1, 1, 1]
    two = GroupRecord(0, 512, 2, 0, (Member("a", 0), Member("b", 0, ended=2)))
    assert [two.num_beside(num_done) for num_done in (1, 2)] == [1, 0]
    caplog.set_level("INFO")
    for record in (None, two):
        tell_if_parted(record, 2)
    assert not caplog.text
    tell_if_parted(two, 1)
    assert "num_others=1" in caplog.text
