import pytest

from luthier.client.results import JobState, TrainingMetric, TrainingStatus
from luthier.client.watch import Watch
from luthier.errors import CancelledError, TrainingFailedError


def _watch(**changes: object) -> Watch:
    return Watch("t1", **{"on_progress": None, "timeout_seconds": None, **changes})


def _status(state: JobState, *reasons: str) -> TrainingStatus:
    return TrainingStatus("t1", state, reasons=reasons)


def test_failed_training_gives_the_servers_reasons() -> None:
    with pytest.raises(TrainingFailedError, match="training 't1' failed: loss is NaN"):
        _watch().look(_status(JobState.ERRORED, "loss is NaN"), [])


def test_cancelled_training_is_no_success() -> None:
    with pytest.raises(CancelledError, match="t1"):
        _watch().look(_status(JobState.CANCELED), [])


def test_each_metric_is_told_once() -> None:
    told: list[list[float]] = []
    watch = _watch(on_progress=lambda _, new: told.append([each.value for each in new]))
    assert watch.wants_metrics and not _watch().wants_metrics
    metrics = [TrainingMetric("loss", step, step / 2) for step in (1, 2)]
    assert not watch.look(_status(JobState.RUNNING), metrics[:1])
    assert watch.look(_status(JobState.COMPLETED), metrics)
    assert told == [[0.5], [1.0]]


def test_a_training_that_goes_on_too_long_is_left_alone() -> None:
    with pytest.raises(TimeoutError, match="training 't1' still is QUEUED"):
        _watch(timeout_seconds=-1).look(_status(JobState.QUEUED), [])
