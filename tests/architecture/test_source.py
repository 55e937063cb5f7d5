"""Rules that hold for every line of the package, read from its syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "luthier"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"


def calls(path: Path, *names: str) -> list[str]:
    """The places where a function of one of these (dotted) names is called."""
    return [
        where(path, node)
        for node in nodes(path)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
    ]


def is_note_for_the_type_checker(node: ast.Assert) -> bool:
    """``assert x is not None`` or ``assert isinstance(x, T)``, without a message."""
    text = ast.unparse(node.test)
    narrows = text.endswith(" is not None") or text.startswith("isinstance(")
    return narrows and not isinstance(node.test, ast.BoolOp) and node.msg is None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_check_vanishes_under_python_o(path):
    """``python -O`` drops assert statements; what must hold is checked with ``raise``.

    Allowed is what only tells mypy a type that our own code has made sure of.
    """
    checks = [
        where(path, node)
        for node in nodes(path)
        if (isinstance(node, ast.Assert) and not is_note_for_the_type_checker(node))
        or (isinstance(node, ast.Name) and node.id == "__debug__")
    ]
    assert checks == []


def test_only_the_cli_prints():
    outside = [path for path in SOURCES if "cli" not in path.relative_to(PACKAGE).parts]
    assert [place for path in outside for place in calls(path, "print")] == []


def test_nothing_is_unpickled_or_evaluated():
    banned = ("pickle.load", "pickle.loads", "torch.load", "eval", "exec", "yaml.unsafe_load")
    found = [place for path in SOURCES for place in calls(path, *banned)]
    assert found == []


def test_no_module_is_called_utils():
    vague = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert [str(path) for path in SOURCES if path.stem in vague] == []


def test_loggers_are_alog_channels_named_after_their_file():
    wrong = []
    for path in SOURCES:
        for node in nodes(path):
            if not isinstance(node, ast.Call):
                continue
            text = ast.unparse(node)
            is_channel = text.startswith("alog.use_channel(")
            if text == "logging.getLogger(__name__)" or (is_channel and "(__name__)" not in text):
                wrong.append(where(path, node))
    assert wrong == []


#: Where an error of any kind is turned into a result, and which of the four places it is.
BROAD_HANDLERS = {
    "runtime/http_server/problems.py": "request handler",
    "runtime/http_server/sse.py": "request handler",
    "runtime/grpc_server/calls.py": "request handler",
    "runtime/jobs/worker.py": "job process",
    "runtime/jobs/executor.py": "background task",
    "runtime/registry/registry.py": "background task",
    "resources/cleanup.py": "background task",
    "training/callbacks/tracker_feed.py": "background task",
    "training/fusion/live_job.py": "job process",
    "inference/plain_engine.py": "engine step",
    "inference/batched_engine.py": "engine step",
    "inference/sampling/step_answers.py": "engine step",
    "inference/scheduling/scheduler.py": "engine step",
    "inference/deltas/pool/adapter_pool.py": "background task",
    "inference/deltas/pool/adapter_readers.py": "background task",
    "inference/engine_process/child.py": "engine step",
    "inference/engine_process/child_process.py": "background task",
    "inference/engine_process/host.py": "request handler",
    "inference/engine_process/logs.py": "background task",
    "inference/engine_process/supervisor.py": "background task",
}


def swallows_anything(handler: ast.ExceptHandler) -> bool:
    """True for ``except Exception`` and wider ones that do not raise the same error again."""
    kind = ast.unparse(handler.type) if handler.type else "BaseException"
    raises_again = any(isinstance(node, ast.Raise) for node in ast.walk(handler))
    return kind in ("Exception", "BaseException") and not raises_again


def test_broad_handlers_stand_in_four_kinds_of_places_only():
    found = {
        str(path.relative_to(PACKAGE))
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.ExceptHandler) and swallows_anything(node)
    }
    assert found - set(BROAD_HANDLERS) == set()
