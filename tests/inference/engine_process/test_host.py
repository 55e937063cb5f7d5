"""The process's side in this process: a thread serves an engine over a pipe."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from luthier.adapters.base import Adapter
from luthier.data_model.sampling import SamplingParams
from luthier.errors import ArtifactError, CapacityError, EngineError, InvalidInputError
from luthier.inference.base import ClassificationRequest, FinishReason, GenerationRequest, Request
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.engine_process.host import EngineHost
from luthier.inference.engine_process.messages import (
    Message,
    Operation,
    decode_chunk,
    decode_error,
    encode_error,
    encode_request,
    pack_tensors,
    receive_message,
    send_message,
)
from luthier.inference.options import EngineOptions
from luthier.inference.runners.model_runner import PackedRunner
from luthier.resources.base_model import BaseModel

ENDLESS = SamplingParams(max_new_tokens=10**5, min_new_tokens=10**5)


class Owner:
    """The other end of the pipe."""

    def __init__(self, base_model: BaseModel, **options: int) -> None:
        ours, theirs = Pipe()
        assert isinstance(ours, Connection)
        assert isinstance(theirs, Connection)
        self.connection = ours
        self.engine = BatchedEngine(base_model, EngineOptions(**options))  # type: ignore[arg-type]
        host = EngineHost(theirs, self.engine, base_model, owner_pid=os.getppid())
        self.was_asked: list[bool] = []
        self.thread = threading.Thread(target=lambda: self.was_asked.append(host.serve()))
        self.thread.start()
        self.steps: list[list[Any]] = []

    def say(self, *operations: Operation, blobs: tuple[bytes, ...] = ()) -> None:
        send_message(self.connection, Message(list(operations), blobs))

    def submit(self, number: int, request: Request, *, adapter: str = "", head: str = "") -> None:
        self.say(["submit", number, encode_request(request, adapter_key=adapter, head_key=head)])

    def hear(self, name: str) -> list[Any]:
        """The next operation of this name; steps on the way are kept."""
        while True:
            for operation in receive_message(self.connection).operations:
                if operation[0] == "step":
                    self.steps.append(operation[1:])
                if operation[0] == name:
                    return list(operation[1:])

    def answer(self, number: int) -> list[Any]:
        """All chunks of a row; or its error."""
        chunks: list[Any] = []
        while True:
            _, new, errors = self.hear("step")
            for error_number, *values in errors:
                if error_number == number:
                    return [decode_error(values)]
            chunks += [chunk for n, chunk in map(decode_chunk, new) if n == number]
            if chunks and chunks[-1].is_last:
                return chunks


@pytest.fixture
def owner(causal_base: BaseModel) -> Iterator[Owner]:
    made = Owner(replace(causal_base, max_positions=None), max_running=8, max_waiting=20)
    yield made
    made.connection.close()
    made.thread.join(60)
    made.engine.close()
    assert not made.thread.is_alive()


def test_a_row_is_answered_as_the_engine_answers(owner: Owner) -> None:
    request = GenerationRequest((5, 6, 7), SamplingParams(max_new_tokens=6, token_logprobs=True))
    owner.submit(3, request)
    assert owner.answer(3) == list(owner.engine.submit(request))


def test_a_step_of_many_rows_is_one_message(owner: Owner) -> None:
    requests = [
        ["submit", n, encode_request(GenerationRequest((5 + n, 6), ENDLESS), adapter_key="")]
        for n in range(8)
    ]
    owner.say(*requests)
    while not any(len(chunks) == 8 for _, chunks, _ in owner.steps):
        owner.hear("step")
    (num_seen, num_waiting), chunks, errors = owner.steps[-1]
    assert (num_seen, num_waiting, errors) == (8, 0, [])
    assert sorted(decode_chunk(values)[0] for values in chunks) == list(range(8))


def test_cancelling_ends_a_row_and_an_unknown_one_is_no_matter(owner: Owner) -> None:
    owner.say(["cancel", 99])
    owner.submit(1, GenerationRequest((5, 6), ENDLESS))
    owner.hear("step")
    owner.say(["cancel", 1])
    assert owner.answer(1)[-1].finish_reason is FinishReason.CANCELLED
    owner.say(["cancel", 1])


def test_refusals_come_with_their_class(owner: Owner) -> None:
    owner.submit(1, GenerationRequest((5, 4000), SamplingParams()))
    (error,) = owner.answer(1)
    assert isinstance(error, InvalidInputError)
    assert "input_ids[1]" in str(error)
    owner.say(
        *(
            ["submit", n, encode_request(GenerationRequest((5, 6), ENDLESS), adapter_key="")]
            for n in range(100, 140)
        )
    )
    # Any of them: rows that start meanwhile leave room for later ones.
    refused: list[Any] = []
    while not refused:
        _, _, refused = owner.hear("step")
    error = decode_error(refused[0][1:])
    assert isinstance(error, CapacityError)
    assert error.retry_after_seconds == 1


def test_what_is_no_request_is_answered_too(owner: Owner) -> None:
    owner.say(["submit", 1, [[5], "", "", "", 0, {"no such parameter": 1}]])
    (error,) = owner.answer(1)
    assert isinstance(error, EngineError)
    assert "TypeError" in str(error)


def test_adapters_and_heads_are_held_until_they_are_forgotten(
    owner: Owner, causal_base: BaseModel, make_prompt: Any
) -> None:
    prompt: Adapter = make_prompt(causal_base, seed=1)
    rows = prompt.soft_prompt().decoder
    assert rows is not None
    owner.say(["adapter", "one", {"hash": "one"}], blobs=(pack_tensors({"decoder": rows}),))
    head = torch.randn(3, 32)
    owner.say(["head", "head 1"], blobs=(pack_tensors({"head": head}),))
    generation = GenerationRequest((5, 6), SamplingParams(max_new_tokens=5), prompt)
    owner.submit(1, generation, adapter="one")
    assert owner.answer(1) == list(owner.engine.submit(generation))
    classification = ClassificationRequest((5, 6), head, prompt)
    owner.submit(2, classification, adapter="one", head="head 1")
    assert owner.answer(2) == list(owner.engine.submit(classification))
    owner.say(["forget", "one"])
    owner.submit(3, generation, adapter="one")
    (error,) = owner.answer(3)
    assert isinstance(error, EngineError)


def test_an_adapter_that_could_not_be_had_fails_its_requests_with_the_reason(
    owner: Owner,
) -> None:
    owner.say(["broken", "one", *encode_error(ArtifactError("unreadable"))])
    owner.say(["adapter", "two", {"saved": "/nowhere/at/all"}])
    for number, key, reason in ((1, "one", "unreadable"), (2, "two", "all")):
        owner.submit(number, GenerationRequest((5, 6), SamplingParams()), adapter=key)
        (error,) = owner.answer(number)
        assert isinstance(error, ArtifactError)
        assert reason in str(error)


@pytest.mark.parametrize(
    ("key", "operation"),
    [
        ("one", ["adapter", "one", {"folder": "/nowhere"}]),
        ("one", ["adapter", "one", {"hash": "one"}]),
        ("head 1", ["head", "head 1"]),
    ],
)
def test_what_cannot_be_received_fails_its_requests_alone_and_is_asked_for_anew(
    owner: Owner, key: str, operation: Operation
) -> None:
    owner.submit(1, GenerationRequest((5, 6), ENDLESS))
    owner.hear("step")
    owner.say(operation)
    assert owner.hear("lost") == [key]
    request: Request = GenerationRequest((5, 6), SamplingParams())
    if key != "one":
        request = ClassificationRequest((5, 6), torch.randn(3, 32))
        owner.submit(2, request, head=key)
    else:
        owner.submit(2, request, adapter=key)
    (error,) = owner.answer(2)
    assert isinstance(error, EngineError)
    assert f"{operation[0]!r} failed with" in str(error)
    owner.say(["cancel", 1])
    assert owner.answer(1)[-1].finish_reason is FinishReason.CANCELLED


def test_requests_and_questions_that_make_no_sense_fail_alone(owner: Owner) -> None:
    owner.say(["submit", 1], ["keeps", 2, 3, 4])
    (error,) = owner.answer(1)
    assert isinstance(error, EngineError)
    number, is_kept, *values = owner.hear("answer")
    assert (number, is_kept) == (2, None)
    assert "'keeps' failed with TypeError" in str(decode_error(values))
    owner.submit(3, GenerationRequest((5, 6), SamplingParams(max_new_tokens=2)))
    assert owner.answer(3)[-1].is_last


@pytest.mark.parametrize("said", [b"no json", b'[[["sing", 1]],0]', b"[[[]],0]"])
def test_a_message_about_everybody_that_cannot_be_followed_is_told(
    owner: Owner, said: bytes
) -> None:
    owner.connection.send_bytes(said)
    (reason,) = owner.hear("dead")
    assert reason.startswith("it cannot follow a message: ")
    owner.thread.join(60)
    assert owner.was_asked == [False]


def test_it_tells_which_deltas_the_engine_keeps(owner: Owner) -> None:
    known, unknown = "model.layers.0.self_attn.q_proj", "model.layers.9.self_attn.q_proj"
    asked: list[tuple[list[str], list[str], bool]] = [
        ([known], [], True),
        ([known, unknown], [], False),
        ([known], ["model.norm"], True),
        ([known], ["model.no_such_layer"], False),
    ]
    for number, (deltas, whole, expected) in enumerate(asked):
        owner.say(["keeps", number, deltas, whole])
        assert owner.hear("answer") == [number, expected]


def test_asked_to_close_it_ends_every_row_and_then_itself(owner: Owner) -> None:
    for number in range(12):
        owner.submit(number, GenerationRequest((5, 6), ENDLESS))
    owner.hear("step")
    owner.say(["close"])
    ended: dict[int, FinishReason] = {}
    while len(ended) < 12:
        _, chunks, errors = owner.hear("step")
        assert errors == []
        ended |= {n: c.finish_reason for n, c in map(decode_chunk, chunks) if c.is_last}
    assert set(ended.values()) == {FinishReason.CANCELLED}
    owner.thread.join(60)
    assert owner.was_asked == [True]


def test_it_says_that_it_lives_while_there_is_nothing_else_to_say(owner: Owner) -> None:
    assert owner.hear("alive") == []


def test_an_engine_that_hangs_is_told_and_so_are_its_rows(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_end, run = threading.Event(), threading.Event(), PackedRunner.run

    def slow(*arguments: Any) -> Any:
        has_begun.set()
        assert may_end.wait(60)
        return run(*arguments)

    monkeypatch.setattr(PackedRunner, "run", slow)
    owner.submit(1, GenerationRequest((5, 6), ENDLESS))
    try:
        assert has_begun.wait(60)
        now, watch = time.monotonic() + 1000, owner.engine._watch
        watch._clock = lambda: now
        watch.look()
        (error,) = owner.answer(1)
        assert isinstance(error, EngineError)
        assert "does not answer" in str(error)
        (reason,) = owner.hear("dead")
        assert "at most 300 s are allowed" in reason
    finally:
        may_end.set()


def test_without_its_owner_it_ends(owner: Owner) -> None:
    owner.submit(1, GenerationRequest((5, 6), ENDLESS))
    owner.hear("step")
    owner.connection.close()
    owner.thread.join(60)
    assert owner.was_asked == [False]
