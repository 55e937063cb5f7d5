import httpx
import pytest

from luthier import errors
from luthier.client.error_mapping import error_from_body, error_from_response
from luthier.errors import CapacityError, InvalidInputError, LuthierError, NotFoundError


def every_class() -> list[type[LuthierError]]:
    found, waiting = [], [LuthierError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", every_class(), ids=lambda kind: kind.__name__)
def test_every_code_word_comes_back_as_its_class(kind: type[LuthierError]) -> None:
    body = {"details": "what happened", "code": 400, "id": "1", "error": kind.code}
    error = error_from_body(body, status=400)
    assert type(error) is kind
    assert str(error) == "what happened"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidInputError), (422, InvalidInputError), (404, NotFoundError), (500, LuthierError)],
)
def test_error_without_a_word_is_known_by_its_status(status: int, kind: type) -> None:
    response = httpx.Response(status, json={"details": "d", "code": status, "id": "1"})
    assert type(error_from_response(response)) is kind


def test_unknown_word_falls_back_to_the_status() -> None:
    assert type(error_from_body({"error": "brand_new"}, status=404)) is NotFoundError


def test_capacity_error_says_when_to_try_again() -> None:
    response = httpx.Response(429, json={"error": "capacity"}, headers={"Retry-After": "60"})
    error = error_from_response(response)
    assert isinstance(error, CapacityError)
    assert error.retry_after_seconds == 60


def test_body_that_is_no_json_is_quoted() -> None:
    error = error_from_response(httpx.Response(502, text="<h1>Bad gateway</h1>"))
    assert str(error) == "502: <h1>Bad gateway</h1>"


def test_error_without_a_body_names_its_status() -> None:
    assert str(error_from_response(httpx.Response(503))) == "the server answered 503"
