"""From errors to statuses, bodies and messages that leak nothing."""

from __future__ import annotations

import grpc
import pytest

from luthier.errors import (
    CancelledError,
    CapacityError,
    InvalidInputError,
    ModelNotFoundError,
    NotSupportedError,
    UnsafeWeightsError,
)
from luthier.runtime.errors import MAX_DETAIL_CHARS, problem_of, shorten, status_of


@pytest.mark.parametrize(
    ("kind", "code", "http"),
    [
        (UnsafeWeightsError, grpc.StatusCode.INVALID_ARGUMENT, 400),
        (ModelNotFoundError, grpc.StatusCode.NOT_FOUND, 404),
        (CancelledError, grpc.StatusCode.CANCELLED, 499),
        (NotSupportedError, grpc.StatusCode.UNIMPLEMENTED, 501),
        (ValueError, grpc.StatusCode.INTERNAL, 500),
    ],
)
def test_the_nearest_ancestor_gives_the_status(kind, code, http):
    assert (status_of(kind).grpc, status_of(kind).http) == (code, http)


def test_an_error_of_ours_keeps_its_message_and_its_word():
    problem = problem_of(ModelNotFoundError("Model 'x' not loaded"))
    assert problem.as_body() == {
        "details": "Model 'x' not loaded",
        "code": 404,
        "id": problem.error_id,
        "error": "model_not_found",
    }


def test_a_foreign_error_keeps_its_message_inside():
    problem = problem_of(RuntimeError("password is hunter2"))
    assert problem.word == "internal"
    assert "hunter2" not in problem.details
    assert problem.error_id in problem.details


def test_a_full_queue_says_when_to_come_back():
    assert problem_of(CapacityError("full", retry_after_seconds=7)).retry_after_seconds == 7
    assert problem_of(InvalidInputError("no")).retry_after_seconds is None


def test_a_long_message_is_cut_to_what_a_header_holds():
    assert len(shorten("x" * 10_000)) == MAX_DETAIL_CHARS


def test_a_lone_surrogate_does_not_break_the_message():
    assert shorten("a\ud800b") == "a?b"
