"""A group that is stopped anywhere and taken up again, against the same group in one go."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.fused_jobs import make_job
from fixtures.parallel_training import load
from fixtures.tiny_models import make_tiny_causal, make_tiny_seq2seq

from luthier.data_model.records import GenerationTrainRecord
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.base import StepEvent, TrainingCallback
from luthier.training.checkpointing.checkpoints import (
    CHECKPOINTS_FOLDER,
    list_checkpoints,
    read_checkpoint,
)
from luthier.training.checkpointing.group_record import GroupRecord, Member
from luthier.training.fusion.fused import tune_many
from luthier.training.fusion.roll import Roll, Standing
from luthier.training.job import TuningJob
from luthier.training.results import TrainingResult

#: The last two wait for others to end.
METHODS = {
    "causal": ("lora_with_dropout", "lora", "dora", "prompt_tuning"),
    "seq2seq": ("lora", "encoder_prompt", "lora_with_dropout", "dora"),
}
LIMITS: dict[str, Any] = {"max_pass_tokens": 150, "max_live_jobs": 2}


#: Products in layers this wide round in one way up to 15 rows, and in another from 16 on; a pass of
#: these jobs has fewer or more, depending on which of their rows meet. (With MKL and one thread; a
#: library that rounds all alike would let these tests pass, whoever shares a pass with whom.)
_HIDDEN_SIZE = 384


def _records(number: int) -> list[GenerationTrainRecord]:
    return [
        GenerationTrainRecord(input="xqz"[row % 3] * (1 + (5 * row + number) % 11), output="no")
        for row in range(6)
    ]


class _Stopper(TrainingCallback):
    """Ends the process's work after so many updates of all jobs, as a kill would."""

    def __init__(self, num_updates: int) -> None:
        self.num_left = num_updates

    def on_step(self, event: StepEvent) -> None:
        self.num_left -= 1
        if self.num_left == 0:
            raise KeyboardInterrupt


def _jobs(base: BaseModel, folder: Path, *callbacks: TrainingCallback) -> list[TuningJob]:
    """Each saves at other moments, one never: it begins anew whenever it is resumed."""
    jobs = []
    for number, method in enumerate(METHODS[base.kind]):
        own = folder / str(number)
        has_checkpoint = bool(list_checkpoints(own / CHECKPOINTS_FOLDER))
        jobs.append(
            make_job(
                base,
                method,
                number,
                train=_records(number),
                verbalizer="{{input}}",
                num_epochs=1 + number % 2,
                batch_size=1,
                save_every_steps=1 + number % 3,
                save_checkpoint=("last", "resumable")[number % 2],
                checkpoint_time_share=1e-6,
                run_folder=None if number == 2 else own,
                resume_from=own if has_checkpoint else None,
                callbacks=callbacks,
            )
        )
    return jobs


def _run(base: BaseModel, jobs: Sequence[TuningJob], **changes: Any) -> list[Any]:
    """All that must not depend on interruptions."""
    found: list[Any] = []
    for job, outcome in zip(jobs, tune_many(base, jobs, **{**LIMITS, **changes}), strict=True):
        assert isinstance(outcome, TrainingResult), outcome
        found.append((job.adapter.content_hash(), [point.value for point in outcome.losses]))
    return found


def _stop(base: BaseModel, folder: Path, num_updates: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        tune_many(base, _jobs(base, folder, _Stopper(num_updates)), **LIMITS)


@pytest.fixture(scope="module")
def causal_base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_causal(folder / "causal", hidden_size=_HIDDEN_SIZE)
    return load(folder, "causal")


@pytest.fixture(scope="module")
def seq2seq_base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_seq2seq(folder / "seq2seq", hidden_size=_HIDDEN_SIZE)
    return load(folder, "seq2seq")


@pytest.fixture(scope="module")
def whole(causal_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What comes of the causal group in one go."""
    return _run(causal_base, _jobs(causal_base, tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_a_group_that_is_stopped_twice_gives_the_same_bits(
    kind: str,
    causal_base: BaseModel,
    seq2seq_base: BaseModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = causal_base if kind == "causal" else seq2seq_base
    caplog.set_level("INFO")
    expected = _run(base, _jobs(base, tmp_path / "whole"))
    num_updates = sum(len(losses) for _, losses in expected)
    draw = random.Random(f"stops of {kind}")
    for turn in range(2):
        folder = tmp_path / str(turn)
        _stop(base, folder, draw.randrange(2 + turn * num_updates // 2, num_updates))
        _stop(base, folder, 2 + turn)
        assert _run(base, _jobs(base, folder)) == expected
    assert "up to rounding" not in caplog.text


def _require_close(found: Sequence[Any], expected: Sequence[Any]) -> None:
    for (_, losses), (_, others) in zip(found, expected, strict=True):
        assert losses == pytest.approx(others, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "left_out", "reason"),
    [
        ({"max_pass_tokens": 100}, (), "passes had 150 tokens and 2 trainings"),
        ({"max_live_jobs": 3}, (), "now 150 and 3"),
        ({}, (0,), "1 of its trainings are missing"),
    ],
)
def test_a_group_that_is_not_the_same_says_so_once(
    causal_base: BaseModel,
    whole: list[Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, int],
    left_out: tuple[int, ...],
    reason: str,
) -> None:
    base = causal_base
    _stop(base, tmp_path / "run", 7)
    caplog.set_level("INFO")
    jobs = [job for n, job in enumerate(_jobs(base, tmp_path / "run")) if n not in left_out]
    kept = [each for n, each in enumerate(whole) if n not in left_out]
    _require_close(_run(base, jobs, **changes), kept)
    told = [record.getMessage() for record in caplog.records if "up to rounding" in record.message]
    assert len(told) == 1
    assert reason in told[0]


def test_one_of_a_group_that_goes_on_alone_says_so_while_there_were_others(
    causal_base: BaseModel,
    whole: list[Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = causal_base
    _stop(base, tmp_path / "run", 7)
    caplog.set_level("INFO")
    alone = _run(base, _jobs(base, tmp_path / "run")[:1], max_pass_tokens=0)
    _require_close(alone, whole[:1])
    assert caplog.text.count("resumed together they give the same bits") == 1


def test_the_size_of_passes_is_that_of_the_checkpoints(
    causal_base: BaseModel, whole: list[Any], tmp_path: Path
) -> None:
    base, asked = causal_base, []

    def decide(had: int | None) -> int:
        asked.append(had)
        return 150 if had is None else had

    _stop(base, tmp_path / "run", 9)
    assert _run(base, _jobs(base, tmp_path / "run"), max_pass_tokens=decide) == whole
    assert _run(base, _jobs(base, tmp_path / "other"), max_pass_tokens=decide) == whole
    assert asked == [150, None]


def test_a_checkpoint_knows_who_was_there(causal_base: BaseModel, tmp_path: Path) -> None:
    base = causal_base
    _run(
        base,
        [
            replace(job, options=replace(job.options, save_every_steps=1, keep_checkpoints=0))
            for job in _jobs(base, tmp_path)
        ],
    )
    first = [
        read_checkpoint(list_checkpoints(tmp_path / str(number) / CHECKPOINTS_FOLDER)[step]).group
        for number, step in ((0, 1), (3, 1))
    ]
    assert all(record is not None for record in first)
    of_first, of_last = (record for record in first if record is not None)
    assert (of_first.member, of_last.member) == (0, 3)
    ends = [each.ended or 99 for each in of_last.members]
    # Those that waited came when another had gone.
    joined = [each.joined for each in of_last.members]
    assert joined == [0, 0, ends[0], min(ends[1:3])]
    assert [each.mark for each in of_first.members] == [each.mark for each in of_last.members[:2]]


def _standing(mark: str, num_done: int, record: GroupRecord | None = None) -> Standing:
    return Standing(mark, num_done, is_done=False, record=record)


def _roll(max_live_jobs: int = 2) -> Roll:
    return Roll(max_pass_tokens=8, max_live_jobs=max_live_jobs)


def _record(member: int, *members: Member, generation: int = 0) -> GroupRecord:
    return GroupRecord(generation, 8, 2, member, members)


def test_a_group_begins_again_with_the_one_that_is_furthest_behind() -> None:
    members = (Member("a", 0), Member("b", 0, ended=4), Member("c", 4))
    roll = _roll()
    # c has no checkpoint; a knows that it had joined.
    assert roll.take_up([_standing("a", 9, _record(0, *members)), _standing("c", 0)]) == [0, 2]
    assert roll.round == 4
    assert [roll.joined(0), roll.joined(2)] == [0, 4]


def test_equal_trainings_are_told_apart_by_their_checkpoints() -> None:
    members = (Member("a", 0), Member("a", 0))
    standings = [_standing("a", 5, _record(1, *members)), _standing("a", 3, _record(0, *members))]
    roll = _roll()
    assert roll.take_up(standings) == [1, 0]
    assert roll.round == 3


@pytest.mark.parametrize(
    ("standings", "reason"),
    [
        ([_standing("a", 2, _record(0, Member("a", 0), Member("b", 0)))], "1 of its trainings"),
        (
            [
                _standing("a", 2, _record(0, Member("a", 0), Member("b", 0))),
                _standing("b", 2, _record(0, Member("b", 0))),
            ],
            "of several groups",
        ),
        (
            [_standing("a", 2, _record(0, Member("a", 0))), _standing("new", 0)],
            "that were not in it",
        ),
    ],
)
def test_what_is_no_group_begins_as_a_new_one(
    standings: list[Standing], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    roll = _roll()
    assert roll.take_up(standings) == [None] * len(standings)
    assert caplog.text.count(reason) == 1
    for standing in standings:
        place = roll.join(standing, None)
        # It goes on in this round, whatever it did before.
        assert roll.joined(place) + standing.num_done == 0
        assert roll.record(place).generation == 1
    assert caplog.text.count("up to rounding") == 1


def test_checkpoints_of_a_group_that_was_put_together_anew_count_more_than_older_ones() -> None:
    older = _record(1, Member("a", 0), Member("b", 0))
    newer = _record(0, Member("a", -6), Member("b", -3), generation=1)
    roll = _roll()
    assert roll.take_up([_standing("a", 8, newer), _standing("b", 3, older)]) == [0, 1]
    assert roll.round == 0
