import httpx
import pytest

from luthier.client import calls
from luthier.client.sse import ServerSentEvent
from luthier.client.transport import chunk_of, named_errors, read_answer, request_of
from luthier.errors import (
    CapacityError,
    LuthierError,
    ServerUnreachableError,
)


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (httpx.ConnectError("refused"), "no server answers at http://x"),
        (httpx.ReadTimeout("slow"), "http://x did not answer in time"),
        (httpx.RemoteProtocolError("cut"), "connection to http://x broke: cut"),
    ],
)
def test_what_the_network_does_is_named(raised: Exception, words: str) -> None:
    with pytest.raises(ServerUnreachableError, match=words), named_errors("http://x"):
        raise raised


def test_plain_text_is_read_as_it_is() -> None:
    assert read_answer(calls.health(), httpx.Response(200, text="OK\n")) == "OK"


def test_answer_that_is_no_json_is_an_error() -> None:
    with pytest.raises(LuthierError, match="/info/models answered something that is no JSON"):
        read_answer(calls.models(), httpx.Response(200, text="<html>"))


def test_empty_answer_is_an_empty_object() -> None:
    assert read_answer(calls.version(), httpx.Response(200)) == {}


@pytest.mark.parametrize("kind", ["message", "error"])
def test_error_in_a_stream_raises_the_servers_class(kind: str) -> None:
    data = '{"details": "full", "code": 429, "error": "capacity"}'
    with pytest.raises(CapacityError, match="full"):
        chunk_of(ServerSentEvent(data, kind))


def test_details_of_a_result_are_no_error() -> None:
    data = '{"generated_text": "a", "details": {"finish_reason": "EOS_TOKEN"}}'
    assert chunk_of(ServerSentEvent(data)).finish_reason == "EOS_TOKEN"


def test_event_that_is_no_json_is_an_error() -> None:
    with pytest.raises(LuthierError, match="no JSON"):
        chunk_of(ServerSentEvent("[DONE"))


def test_json_body_is_sent_as_json() -> None:
    request = request_of(calls.generate("m", "x"))
    assert request["headers"] == {"Content-Type": "application/json"}
