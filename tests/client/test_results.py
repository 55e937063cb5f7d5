import pytest

from luthier.client import JobState


@pytest.mark.parametrize("state", JobState)
def test_only_an_ended_training_is_final(state: JobState) -> None:
    assert state.is_final is (state not in (JobState.QUEUED, JobState.RUNNING))


def test_states_are_written_as_their_words() -> None:
    assert f"{JobState.CANCELED}" == "CANCELED"
