from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.client.sse import EventDecoder, ServerSentEvent


def decode(*pieces: bytes) -> list[ServerSentEvent]:
    decoder = EventDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def test_data_only_message_is_a_message() -> None:
    assert decode(b'data: {"a": 1}\n\n') == [ServerSentEvent('{"a": 1}', "message")]


def test_event_line_names_the_kind_and_the_next_message_is_plain_again() -> None:
    events = decode(b"event: error\ndata: x\n\ndata: y\n\n")
    assert [event.event for event in events] == ["error", "message"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_ending_of_the_standard_is_understood(end: bytes) -> None:
    # A lone CR at the very end may be half of a CR LF, so something follows.
    assert decode(b"data: x" + end + end + b": ping" + end + b"data") == [ServerSentEvent("x")]


def test_several_data_lines_are_joined() -> None:
    assert decode(b"data: a\ndata: b\n\n") == [ServerSentEvent("a\nb")]


def test_comments_and_messages_without_data_give_nothing() -> None:
    assert decode(b": keep alive\n\nevent: ping\n\nid: 3\n\n") == []


def test_unicode_line_separators_inside_json_end_no_line() -> None:
    text = 'data: "a\u2028b\u0085c\x0bd"\n\n'.encode()
    assert decode(text) == [ServerSentEvent('"a\u2028b\u0085c\x0bd"')]


def test_unfinished_message_is_not_given() -> None:
    assert decode(b"data: x\n") == []


@given(st.lists(st.integers(0, 60), max_size=8))
def test_cutting_the_bytes_anywhere_changes_nothing(cuts: list[int]) -> None:
    stream = "data: größe ☕\r\n\r\nevent: error\r\ndata: b\n\ndata: c\r\n\r\n".encode()
    places = sorted({min(cut, len(stream)) for cut in cuts})
    bounds = [0, *places, len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(bounds)]
    assert decode(*pieces) == decode(stream)
    assert [event.data for event in decode(stream)] == ["größe ☕", "b", "c"]
