"""The tree of errors: every class can be told apart, shipped between processes and looked up."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from pathlib import Path

import pytest

from luthier import errors
from luthier.errors import CapacityError, EngineDownError, LuthierError, did_you_mean


def classes_below(root: type[LuthierError]) -> list[type[LuthierError]]:
    found = [root]
    for child in root.__subclasses__():
        found += [each for each in classes_below(child) if each not in found]
    return [each for each in found if each.__module__ == errors.__name__]


ALL = classes_below(LuthierError)


def test_each_class_has_a_code_of_its_own():
    assert all("code" in vars(kind) for kind in ALL)
    counts = Counter(kind.code for kind in ALL)
    assert [code for code, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("kind", ALL)
def test_codes_are_words(kind):
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)


@pytest.mark.parametrize("kind", ALL)
def test_each_class_is_documented(kind):
    assert vars(kind)["__doc__"]


@pytest.mark.parametrize("kind", ALL)
def test_errors_survive_the_way_out_of_a_child_process(kind):
    copy = pickle.loads(pickle.dumps(kind("what happened")))
    assert type(copy) is kind
    assert str(copy) == "what happened"


@pytest.mark.parametrize("kind", [CapacityError, EngineDownError])
def test_the_time_to_wait_survives_too(kind):
    copy = pickle.loads(pickle.dumps(kind("full", retry_after_seconds=7)))
    assert copy.retry_after_seconds == 7


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not LuthierError])
def test_each_class_is_a_built_in_error_too(kind):
    foreign = [base for base in kind.__mro__ if base.__module__ == "builtins"]
    assert set(foreign) - {Exception, BaseException, object}, kind


def test_the_drawing_at_the_top_shows_every_class():
    drawing = re.sub(r"\(\w+\)", "", errors.__doc__ or "")
    assert set(re.findall(r"\b[A-Z]\w+Error\b", drawing)) == {kind.__name__ for kind in ALL}


def test_no_error_class_is_defined_elsewhere_below_the_tree():
    source = Path(errors.__file__).parent
    others = []
    for path in source.rglob("*.py"):
        if path.name == "errors.py" and path.parent == source:
            continue
        for match in re.finditer(r"^class (\w+)\((\w*Error)\b", path.read_text(), re.MULTILINE):
            if match[2] in {kind.__name__ for kind in ALL}:
                others.append(f"{path.name}: {match[1]}")
    assert others == []


def test_a_suggestion_is_the_nearest_name_or_nothing():
    assert did_you_mean("http_prot", ["http_port", "grpc_port"]) == ", did you mean 'http_port'?"
    assert did_you_mean("zzz", ["http_port"]) == ""
    assert did_you_mean("a", []) == ""
