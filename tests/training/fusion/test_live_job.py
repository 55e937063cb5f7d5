"""A training of a group; how groups go on with it is tested in ``test_roll``."""

from __future__ import annotations

import contextlib

from fixtures.fused_jobs import make_job

from luthier.resources.base_model import BaseModel
from luthier.training.fusion.live_job import LiveJob, attempt
from luthier.training.fusion.roll import Standing
from luthier.training.loop import open_run


def test_what_is_replayed_are_the_rows_of_before_and_teaches_nothing(
    tiny_causal_base: BaseModel,
) -> None:
    job = make_job(tiny_causal_base, "lora", 1)
    before = job.adapter.content_hash()
    rows = []
    with open_run(tiny_causal_base, job) as run, contextlib.closing(run.steps()) as steps:
        micro_batch = next(steps)
        with contextlib.suppress(StopIteration):
            while True:
                rows.append((micro_batch.number, micro_batch.batch.rows))
                micro_batch = steps.send(micro_batch.backward())
    assert job.adapter.content_hash() != before

    again = make_job(tiny_causal_base, "lora", 1)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(open_run(tiny_causal_base, again))
        live = LiveJob(0, again, stack, run, run.steps(), Standing("", len(rows), True, None))
        live.replay(2)
        assert live.is_replayed
        found = []
        for _ in rows[2:]:
            replayed = live.take()
            replayed.backward()
            found.append((replayed.number, replayed.batch.rows))
        live.stop_replaying()
    assert found == rows[2:]
    assert again.adapter.content_hash() == before
    assert all(parameter.grad is None for _, parameter in again.adapter.named_parameters())


def test_an_attempt_gives_what_came_or_the_error() -> None:
    assert attempt(lambda: 3) == 3
    error = attempt(lambda: int("x"))
    assert isinstance(error, ValueError)
