"""``luthier classify`` at the wire seam: what it asks, what it prints."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

CLASSIFY = "POST /api/v1/task/text-classification"


def _answer(request: httpx.Request) -> httpx.Response:
    """What has "win" in it is spam."""
    score = 0.9 if "win" in json.loads(request.content)["inputs"] else 0.25
    scores = {"spam": score, "ham": 1 - score}
    ranked = sorted(scores.items(), key=lambda pair: -pair[1])
    results = [{"label": label, "score": score} for label, score in ranked]
    return httpx.Response(200, json={"results": results})


def _asked(api: Any) -> list[str]:
    return sorted(json.loads(request.content)["inputs"] for request in api.requests)


def test_every_class_of_one_text_is_shown(run, serve) -> None:
    url, api = serve({CLASSIFY: _answer})
    result = run("classify", "spam", "win a prize", "--url", url)
    assert (result.code, result.out) == (
        0,
        "label  probability\nspam   0.9000\nham    0.1000\n",
    )
    assert api.last_body == {"model_id": "spam", "inputs": "win a prize"}


def test_the_likeliest_class_of_each_text_is_shown_in_the_order_of_the_texts(run, serve) -> None:
    url, api = serve({CLASSIFY: _answer})
    texts = [f"see you\nat {hour}" for hour in range(20)] + ["you win " + "!" * 99]
    result = run("classify", "spam", *texts, "--url", url)
    lines = result.out.splitlines()
    assert lines[0].split() == ["label", "probability", "text"]
    assert lines[1:-1] == [f"ham    0.7500       see you at {hour}" for hour in range(20)]
    assert lines[-1] == f"spam   0.9000       you win {'!' * 51}…"
    assert _asked(api) == sorted(texts)


def test_json_is_a_line_for_each_text(run, serve) -> None:
    url, _ = serve({CLASSIFY: _answer})
    result = run("classify", "spam", "größe", "win", "--json", "--url", url)
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["text"] for line in lines] == ["größe", "win"]
    assert lines[1]["results"] == [
        {"label": "spam", "score": pytest.approx(0.9)},
        {"label": "ham", "score": pytest.approx(0.1)},
    ]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("texts.txt", "win one\n\nsee two\n", ()),
        ("texts", "win one\nsee two", ()),
        ("rows.csv", "id,text\n1,win one\n2,see two\n", ()),
        ("rows.jsonl", '{"sms": "win one"}\n{"sms": "see two"}\n', ("--column", "sms")),
        ("rows.json", '[{"text": "win one"}, {"text": "see two"}]', ()),
    ],
)
def test_texts_come_from_a_file(
    run, serve, tmp_path: Path, name: str, content: str, options: tuple[str, ...]
) -> None:
    url, api = serve({CLASSIFY: _answer})
    (tmp_path / name).write_text(content, "utf-8")
    result = run("classify", "spam", "--file", tmp_path / name, *options, "--url", url)
    assert result.code == 0, result.err
    assert _asked(api) == ["see two", "win one"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"txt": "b"}\n', "rows.jsonl row 2 has no text in column 'text'"),
        ('{"text": 3}\n', "rows.jsonl row 1 has no text in column 'text'"),
    ],
)
def test_a_row_without_text_is_named(run, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content, "utf-8")
    result = run("classify", "spam", "--file", tmp_path / "rows.jsonl")
    assert (result.code, result.err) == (2, f"luthier: {message}\n")


def test_dash_reads_standard_input(run, serve, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    url, api = serve({CLASSIFY: _answer})
    run("classify", "spam", "-", "--url", url)
    assert api.last_body["inputs"] == "from a pipe"


def test_nothing_to_classify_is_refused(run) -> None:
    result = run("classify", "spam")
    assert result.code == 2
    assert "there is nothing to classify" in result.err


def test_an_error_of_the_server_ends_it_with_its_exit_code(run, serve) -> None:
    error = {"details": "the text has 9000 tokens", "code": 400, "error": "invalid_input"}
    url, _ = serve({CLASSIFY: httpx.Response(400, json=error)})
    result = run("classify", "spam", *["a"] * 30, "--url", url)
    assert (result.code, result.out, result.err) == (2, "", "luthier: the text has 9000 tokens\n")


def test_local_wants_a_saved_model(run, tmp_path: Path) -> None:
    result = run("classify", tmp_path, "x", "--local")
    assert result.code == 2
    assert "is no saved model: it holds no config.yml" in result.err
