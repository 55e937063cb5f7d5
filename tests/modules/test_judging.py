"""A judge over HTTP: retried, bounded, and its key stays where it belongs."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from fixtures.fake_judge import fake_judge
from fixtures.train_rows import QUICK, ROWS

import luthier
from luthier.data_model.options.limits import UNLIMITED
from luthier.data_model.options.training_options import TrainingOptions
from luthier.errors import CancelledError, InvalidInputError
from luthier.modules import LoraTuning
from luthier.modules.judging import JudgeEndpoint, judge_with, require_judge
from luthier.training.metrics.base import ScoredRow

KEY = "sk-very-secret"
OPTIONS = TrainingOptions(metrics=("loss", "ai_judge"), judge_model="judge-1")


def row(generated: str, number: int = 1) -> ScoredRow:
    return ScoredRow(number, 1.0, 1, 1, f"question {number}", "reference", generated)


def test_every_row_is_asked_about_and_its_score_read():
    def answer(question: str, _: int) -> tuple[int, str]:
        return 200, f"SCORE: {1 if 'yes!' in question else 0.25}"

    with fake_judge(answer) as server:
        endpoint = JudgeEndpoint(server.base_url, KEY)
        judge = judge_with(OPTIONS, endpoint)
        assert judge is not None
        assert judge([row("yes!"), row("no", 2), row("yes!", 3)]) == [1.0, 0.25, 1.0]
    assert {body["model"] for body in server.bodies} == {"judge-1"}
    assert {header["Authorization"] for header in server.headers} == {f"Bearer {KEY}"}
    assert any("question 2" in text and "reference" in text for text in server.questions)
    assert KEY not in repr(endpoint)


@pytest.mark.parametrize(
    ("first", "later", "score", "num_asked"),
    [
        ((500, "x"), (200, "SCORE: 1"), 1.0, 2),
        ((429, "x"), (200, "SCORE: 1"), 1.0, 2),
        ((503, "x"), (503, "x"), None, 3),
        ((401, "x"), (200, "SCORE: 1"), None, 1),
        ((200, "no idea"), (200, "SCORE: 1"), None, 1),
    ],
)
def test_what_may_pass_is_tried_again_and_a_failure_is_no_score(first, later, score, num_asked):
    with fake_judge(lambda _, times: first if times == 1 else later) as server:
        judge = judge_with(OPTIONS, JudgeEndpoint(server.base_url, KEY))
        assert judge([row("a")]) == [score]
    assert len(server.bodies) == num_asked


def test_nobody_there_is_no_score():
    judge = judge_with(OPTIONS, JudgeEndpoint("http://127.0.0.1:9/v1", max_attempts=1))
    assert judge([row("a")]) == [None]


def test_no_more_questions_at_once_than_allowed():
    both = threading.Barrier(2)

    def answer(*_: object) -> tuple[int, str]:
        both.wait(60)
        return 200, "SCORE: 1"

    with fake_judge(answer) as server:
        judge = judge_with(OPTIONS, JudgeEndpoint(server.base_url, max_concurrent=2))
        assert judge([row("a", number) for number in range(6)]) == [1.0] * 6
    assert server.most_running == 2


def test_a_cancelled_training_asks_no_further():
    is_cancelled = threading.Event()

    def answer(*_: object) -> tuple[int, str]:
        # All but the first question are held up until somebody cancels.
        assert len(server.bodies) == 1 or is_cancelled.wait(60)
        return 200, "SCORE: 1"

    def should_stop() -> bool:
        if server.bodies:
            is_cancelled.set()
        return is_cancelled.is_set()

    with fake_judge(answer) as server:
        endpoint = JudgeEndpoint(server.base_url, max_concurrent=1)
        judge = judge_with(OPTIONS, endpoint, should_stop=should_stop)
        with pytest.raises(CancelledError):
            judge([row("a", number) for number in range(500)])
    assert len(server.bodies) < 500


def test_a_training_with_a_judge_that_cannot_be_asked_is_refused():
    require_judge(TrainingOptions(), 10**6, JudgeEndpoint())
    with pytest.raises(InvalidInputError, match="JUDGE_BASE_URL"):
        require_judge(OPTIONS, 1, JudgeEndpoint())
    endpoint = JudgeEndpoint("http://judge/v1", max_rows=10)
    require_judge(OPTIONS, 10, endpoint)
    with pytest.raises(InvalidInputError, match=r"11 validation rows, at most 10.*judge\.max_rows"):
        require_judge(OPTIONS, 11, endpoint)
    for options, message in (
        (dataclasses.replace(OPTIONS, judge_model=""), "'judge_model' must be given"),
        (dataclasses.replace(OPTIONS, judge_template="rag"), "'judge_template' must be one of"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            options.validate(UNLIMITED)


def test_a_training_is_judged_and_the_key_is_written_nowhere(configured, tmp_path, caplog):
    def answer(question: str, _: int) -> tuple[int, str]:
        return (400, "") if "message number 0" in question else (200, "SCORE: 0.5")

    settings = {
        "metrics": ["ai_judge", "loss"],
        "judge_model": "judge-1",
        "max_generated_tokens": 3,
        "save_checkpoint": "best",
    }
    with fake_judge(answer) as server, caplog.at_level(logging.DEBUG):
        configured(JUDGE_BASE_URL=server.base_url, JUDGE_API_KEY=KEY)
        model = LoraTuning.train(
            "tiny-causal",
            ROWS,
            val_stream=ROWS[2:5],
            training_options=settings,
            run_folder=tmp_path / "run",
            **QUICK,
        )
        model.save(tmp_path / "m")
    (file,) = (tmp_path / "run").glob("predictions/*/predictions.parquet")
    scores = [row["ai_judge"] for row in parquet.read_table(file).to_pylist()]
    assert sorted(scores, key=str) == [0.5, 0.5, None]
    assert KEY not in caplog.text
    assert KEY not in "".join(map(_content, _files(tmp_path)))
    model.release()
    luthier.load(tmp_path / "m").release()


def _files(folder: Path) -> list[Path]:
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


def _content(path: Path) -> str:
    return path.read_bytes().decode("latin-1")
