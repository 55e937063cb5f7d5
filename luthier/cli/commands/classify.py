"""``luthier classify``: the classes of texts, by a model with a classification head."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.asked_model import asked_model
from luthier.cli.options import DEFAULT_URL, STDIN, AsJson, BaseModelsDir, Url
from luthier.cli.table import print_table
from luthier.errors import InvalidInputError

if TYPE_CHECKING:
    from luthier.client import LabelScore

#: Texts on their way to the server at once, so that they share its batches.
MAX_AT_ONCE = 8
#: Of a text, what a table shows.
MAX_SHOWN_CHARS = 60


def classify(
    model: Annotated[
        str, typer.Argument(help="Id of a served model; with --local a saved model's folder.")
    ],
    texts: Annotated[
        list[str] | None, typer.Argument(help="What to classify; - reads standard input.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", help="Texts to classify: .csv, .json, .jsonl, .parquet, or a line each."
        ),
    ] = None,
    column: Annotated[str, typer.Option(help="With --file of rows: the texts' column.")] = "text",
    local: Annotated[
        bool, typer.Option("--local", help="Load the model on this machine, without a server.")
    ] = False,
    base_models_dir: BaseModelsDir = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show every class of a text with its probability; of several texts, the likeliest of each.

    --json prints an object a line: the text and all its classes, the likeliest first.
    """
    wanted = [sys.stdin.read() if text == STDIN else text for text in texts or ()]
    if file is not None:
        wanted += _texts_of(file, column)
    if not wanted:
        raise InvalidInputError("there is nothing to classify: give a text, or a file with --file")
    with (
        asked_model(model, url, local=local, base_models_dir=base_models_dir) as (client, model_id),
        ThreadPoolExecutor(MAX_AT_ONCE) as pool,
    ):
        answers = pool.map(lambda text: client.classify(model_id, text), wanted)
        try:
            _print(wanted, answers, as_json=as_json)
        finally:
            pool.shutdown(cancel_futures=True)


def _print(
    texts: Sequence[str], answers: Iterator[tuple[LabelScore, ...]], *, as_json: bool
) -> None:
    if as_json:
        for text, scores in zip(texts, answers, strict=True):
            results = [dataclasses.asdict(each) for each in scores]
            print(json.dumps({"text": text, "results": results}, ensure_ascii=False))
    elif len(texts) == 1:
        rows = [(each.label, f"{each.score:.4f}") for each in next(answers)]
        print_table(("label", "probability"), rows)
    else:
        best = [
            (scores[0].label, f"{scores[0].score:.4f}", _shown(text))
            for text, scores in zip(texts, answers, strict=True)
        ]
        print_table(("label", "probability", "text"), best)


def _shown(text: str) -> str:
    """A text on one line, cut to what a table has room for."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN_CHARS else f"{line[: MAX_SHOWN_CHARS - 1]}…"


def _texts_of(file: Path, column: str) -> list[str]:
    from luthier.data_model.formats.files import TABLE_EXTENSIONS, read_file_rows
    from luthier.data_model.formats.opening import StreamLimits, extension_of

    if extension_of(file.name) not in TABLE_EXTENSIONS:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        return [line for line in lines if line.strip()]
    found = []
    for row in read_file_rows(str(file), StreamLimits(), required_columns=(column,)):
        text = row.value.get(column) if isinstance(row.value, dict) else None
        if not isinstance(text, str):
            raise InvalidInputError(f"{row.place} has no text in column {column[:80]!r}")
        found.append(text)
    return found
