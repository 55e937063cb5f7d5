"""Rows to train on: messages of a CSV file (``text,label``), questions of a JSONL file, made up."""

from __future__ import annotations

import argparse
import csv
import json
import random
from pathlib import Path

from luthier.data_model.records import GenerationTrainRecord

_MESSAGE, _QUESTION = "Message: {{input}} Label : ", "{{input}}\n"

_OPENINGS = ["Hi", "Hello there", "Sorry", "URGENT!", "Hey, are you up?", "Dear customer", "Ok"]
_MIDDLES = [
    "I'll be home at {n} tonight",
    "you have won a £{n} prize, call 0800{n}{n} now to claim",
    "can you pick me up from the station at {n}",
    "your account {n} will be closed unless you reply YES to {n}",
    "the meeting has moved to room {n}, bring the papers",
    "free entry in our weekly draw, text WIN to {n}",
]
_ENDINGS = ["see you", "thanks a lot", "T&Cs apply, 18+", "love you", "reply STOP to end", ""]


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Let the command line say which files."""
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        help="CSV with text,label or JSONL with question, answer, in turns; made up if not given",
    )


def verbalizer_for(paths: list[Path]) -> str:
    """What a record of those files is shown as."""
    return _QUESTION if any(path.suffix == ".jsonl" for path in paths) else _MESSAGE


def read_rows(paths: list[Path], num_rows: int) -> list[GenerationTrainRecord]:
    """The first records of the files in turns, or as many made-up ones of like length."""
    if not paths:
        return [_made_up(random.Random(number)) for number in range(num_rows)]
    by_turns = zip(*(_read_file(path, num_rows) for path in paths), strict=False)
    return [record for turn in by_turns for record in turn][:num_rows]


def _read_file(path: Path, num_rows: int) -> list[GenerationTrainRecord]:
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()[:num_rows]
        found = [json.loads(line) for line in lines]
        return [GenerationTrainRecord(input=row["question"], output=row["answer"]) for row in found]
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(num_rows), strict=False)]
    return [GenerationTrainRecord(input=row["text"], output=row["label"]) for row in rows]


def _made_up(generator: random.Random) -> GenerationTrainRecord:
    middles = generator.sample(_MIDDLES, generator.randint(1, 3))
    text = ", ".join([generator.choice(_OPENINGS), *middles, generator.choice(_ENDINGS)])
    spam = any(word in text for word in ("won", "closed", "free"))
    text = text.replace("{n}", str(generator.randint(1, 9999)))
    return GenerationTrainRecord(input=text, output="spam" if spam else "ham")
