"""The tasks of ``quality.py``: real rows, and how a model is asked."""

from __future__ import annotations

import csv
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

NUM_INTENTS = 10
Row = dict[str, str]


@dataclass(frozen=True)
class Task:
    """Rows with ``input`` and ``output``, and how the model is asked.

    Args:
        name: Of the task.
        question: What an untuned model must be told: the labels, and what to do.
        train: Rows to learn.
        held_out: Training rows that nobody learns; they choose the learning rate.
        test: Rows of the test file.
    """

    name: str
    question: str
    train: list[Row]
    held_out: list[Row]
    test: list[Row]

    @property
    def most_frequent(self) -> float:
        """Accuracy of always answering the commonest label of the training rows."""
        label = Counter(row["output"] for row in self.train).most_common(1)[0][0]
        return sum(row["output"] == label for row in self.test) / len(self.test)


@dataclass(frozen=True)
class Budget:
    """How much data is used.

    Args:
        rows: Training rows.
        held_out: Further training rows, to choose with.
        test_rows: First rows of the test file; all if None.
        seed: Of the choice.
    """

    rows: int
    held_out: int
    test_rows: int | None
    seed: int


def sms_spam(folder: Path, budget: Budget) -> Task:
    """Is a text message spam?"""
    train, test = (
        _read(folder / f"sms_spam_{part}.csv", "text", "label") for part in ("train", "test")
    )
    question = "Is this text message spam or ham? Answer with one word.\n"
    return _task("sms_spam", question, train, test, budget)


def banking77(folder: Path, budget: Budget, *, first: int = 0) -> Task:
    """Ten intents of the 77, by name from the ``first``."""
    train, test = (
        _read(folder / f"banking77_{part}.csv", "text", "category") for part in ("train", "test")
    )
    intents = sorted({row["output"] for row in train})[first : first + NUM_INTENTS]
    question = f"Which of these is the message about: {', '.join(intents)}?\n"
    train, test = ([row for row in rows if row["output"] in intents] for rows in (train, test))
    name = f"banking77_{first}" if first else "banking77"
    return _task(name, question, train, test, budget)


def _read(path: Path, text: str, label: str) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{"input": row[text].strip(), "output": row[label]} for row in csv.DictReader(file)]


def _task(name: str, question: str, train: list[Row], test: list[Row], budget: Budget) -> Task:
    mixed = random.Random(budget.seed).sample(train, len(train))
    held_out, learned = mixed[: budget.held_out], mixed[budget.held_out :]
    shown = test if budget.test_rows is None else test[: budget.test_rows]
    return Task(name, question, learned[: budget.rows], held_out, shown)
