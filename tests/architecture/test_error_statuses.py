"""Every error class has a place on both wires and in the documentation."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from luthier import errors
from luthier.errors import (
    CapacityError,
    ConflictError,
    EngineDownError,
    InvalidInputError,
    LuthierError,
    NotFoundError,
)
from luthier.runtime.errors import STATUS, status_of

CLASSES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LuthierError)
]
DOCUMENT = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", CLASSES)
def test_each_class_has_a_status_of_its_nearest_ancestor(kind):
    status = status_of(kind)
    nearest = next(ancestor for ancestor in kind.__mro__ if ancestor in STATUS)
    assert status == STATUS[nearest]
    assert issubclass(nearest, LuthierError)
    assert isinstance(status.grpc, grpc.StatusCode)
    assert 400 <= status.http < 600


@pytest.mark.parametrize("kind", CLASSES)
def test_each_class_and_code_is_documented(kind):
    assert f"`{kind.__name__}` | `{kind.code}`" in DOCUMENT


@pytest.mark.parametrize(
    ("kind", "grpc_status", "http_status"),
    [
        (InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT, 400),
        (NotFoundError, grpc.StatusCode.NOT_FOUND, 404),
        (ConflictError, grpc.StatusCode.FAILED_PRECONDITION, 409),
        (CapacityError, grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
        (EngineDownError, grpc.StatusCode.UNAVAILABLE, 503),
        (KeyError, grpc.StatusCode.INTERNAL, 500),
    ],
)
def test_statuses_are_those_that_clients_react_to(kind, grpc_status, http_status):
    assert (status_of(kind).grpc, status_of(kind).http) == (grpc_status, http_status)
