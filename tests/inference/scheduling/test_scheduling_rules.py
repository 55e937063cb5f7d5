from __future__ import annotations

import pytest
from fixtures.fake_rows import fake_row

from luthier.inference.scheduling.scheduling_rules import SchedulingRules


@pytest.mark.parametrize(("asked", "got"), [(1, 16), (16, 16), (17, 17)])
def test_a_step_has_two_tokens_for_each_row_at_least(asked: int, got: int) -> None:
    assert SchedulingRules(max_rows=8, max_step_tokens=asked).step_tokens == got


def test_a_turn_counts_from_the_last_admission() -> None:
    rules = SchedulingRules(max_rows=8, max_step_tokens=32, turn_tokens=5)
    row = fake_row(10)
    row.sequence.token_ids.extend([7] * 5)
    assert rules.had_turn(row)
    row.turn_start = 1
    assert not rules.had_turn(row)
    row.sequence.token_ids.append(7)
    assert rules.had_turn(row)


def test_each_beam_takes_a_place() -> None:
    rules = SchedulingRules(max_rows=4, max_step_tokens=32)
    running = [fake_row(5)]
    assert not rules.lacks_rows(fake_row(5, num_beams=3), running)
    assert rules.lacks_rows(fake_row(5, num_beams=4), running)


def test_only_beams_count_among_beams() -> None:
    rules = SchedulingRules(max_rows=8, max_step_tokens=32, max_beam_rows=4)
    running = [*fake_row(5, num_beams=2).members, fake_row(5), fake_row(5)]
    assert not rules.lacks_beam_rows(fake_row(5, num_beams=2), running)
    assert rules.lacks_beam_rows(fake_row(5, num_beams=3), running)
    assert not rules.lacks_beam_rows(fake_row(5), [*running, *fake_row(5, num_beams=2).members])
