import inspect
import json

import pytest

from luthier.client.call import Call, encode, method_like
from luthier.errors import InvalidInputError


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named(value: float) -> None:
    with pytest.raises(InvalidInputError, match=f"'learning_rate' must be finite, got {value}"):
        encode({"learning_rate": value})
    body = {"parameters": {"rates": [0.1, float("inf")]}}
    with pytest.raises(InvalidInputError, match=r"'parameters.rates\[1\]' must be finite, got inf"):
        encode(body)


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="cannot be written as JSON"):
        encode({"learning_rate": object()})


def test_text_goes_out_as_utf8() -> None:
    assert json.loads(encode({"inputs": "größe ☕"})) == {"inputs": "größe ☕"}


def test_a_method_looks_like_the_call_that_it_sends() -> None:
    def health(wait: bool = False, **others: int) -> "Call[str]":
        """How the server is."""
        return Call("GET", "/health", str)

    class Api:
        state = method_like(health, lambda self, *args, **kwargs: health(*args, **kwargs))

    assert Api().state(True).path == "/health"
    assert Api.state.__doc__ == "How the server is."
    parameters = "wait: bool = False, **others: int"
    assert str(inspect.signature(Api.state)) == f"(self, /, {parameters}) -> 'str'"
    assert str(inspect.signature(Api().state)) == f"({parameters}) -> 'str'"
