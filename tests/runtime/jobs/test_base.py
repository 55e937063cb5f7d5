"""What a job may become."""

from __future__ import annotations

from luthier.runtime.jobs.base import TRANSITIONS, JobState


def test_every_state_has_its_transitions():
    assert set(TRANSITIONS) == set(JobState)


def test_a_final_state_leads_nowhere():
    final = {state for state in JobState if state.is_final}
    assert final == {JobState.COMPLETED, JobState.CANCELED, JobState.ERRORED}


def test_every_state_can_be_reached_from_the_queue():
    reached = {JobState.QUEUED}
    for _ in JobState:
        reached |= {after for before in reached for after in TRANSITIONS[before]}
    assert reached == set(JobState)


def test_only_what_did_not_complete_can_wait_again():
    back = {before for before, after in TRANSITIONS.items() if JobState.QUEUED in after}
    assert back == {JobState.CANCELED, JobState.ERRORED}


def test_numbers_are_those_of_the_wire():
    assert {state.name: state.value for state in JobState} == {
        "QUEUED": 1,
        "RUNNING": 2,
        "COMPLETED": 3,
        "CANCELED": 4,
        "ERRORED": 5,
    }
