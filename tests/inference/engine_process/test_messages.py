from __future__ import annotations

from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest
import torch

from luthier import errors
from luthier.data_model.sampling import SAMPLING, SamplingParams
from luthier.errors import CapacityError, EngineDownError, LuthierError, error_class
from luthier.inference.base import (
    ClassificationRequest,
    FinishReason,
    GenerationChunk,
    GenerationRequest,
    Token,
)
from luthier.inference.engine_process.messages import (
    Message,
    decode_chunk,
    decode_error,
    decode_request,
    encode_chunk,
    encode_error,
    encode_request,
    pack_tensors,
    receive_message,
    send_message,
    unpack_tensors,
)

SAMPLED = SamplingParams(
    max_new_tokens=7,
    min_new_tokens=2,
    truncate_input_tokens=3,
    decoding_method=SAMPLING,
    top_k=5,
    top_p=0.1,
    typical_p=0.3,
    temperature=1e-3,
    repetition_penalty=1.7,
    max_time=0.25,
    exponential_decay_length_penalty=(4, 1.1),
    stop_sequences=("a\n", "日本", "\udc80"),
    seed=2**64 - 1,
    preserve_input_text=False,
    input_tokens=True,
    generated_tokens=True,
    token_logprobs=True,
    token_ranks=True,
    include_stop_sequence=False,
    min_p=0.01,
    num_beams=3,
    length_penalty=-1.5,
    early_stopping=True,
    no_repeat_ngram_size=2,
)


def over_the_wire(message: Message) -> Message:
    ours, theirs = Pipe()
    assert isinstance(ours, Connection)
    assert isinstance(theirs, Connection)
    with ours, theirs:
        send_message(ours, message)
        return receive_message(theirs)


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED], ids=["default", "all"])
def test_a_request_comes_over_as_it_was(sampling: SamplingParams) -> None:
    adapter = object()
    request = GenerationRequest((5, 6), sampling, request_id="r", tenant="acme", priority=-3)
    values = encode_request(request, adapter_key="key")
    ((came,), _) = over_the_wire(Message([values]))
    assert decode_request(came, {"key": adapter}) == replace(request, adapter=adapter)  # type: ignore[arg-type]
    bare = encode_request(request, adapter_key="")
    assert decode_request(bare, {}) == request


def test_a_classification_comes_over_with_its_head() -> None:
    head = torch.randn(3, 8).to(torch.bfloat16)
    request = ClassificationRequest((5, 6), head, tenant="acme", priority=2)
    values = encode_request(request, adapter_key="", head_key="head 1")
    ((came,), (blob,)) = over_the_wire(Message([values], [pack_tensors({"head": head})]))
    got = decode_request(came, {"head 1": unpack_tensors(blob)["head"]})
    assert isinstance(got, ClassificationRequest)
    assert torch.equal(got.head, head)
    assert (got.input_ids, got.adapter, got.tenant, got.priority) == ((5, 6), None, "acme", 2)


CHUNKS = {
    "one token": GenerationChunk(
        text=" word", tokens=(Token(7, "Ġword"),), generated_token_count=3, input_token_count=2
    ),
    "measured": GenerationChunk(
        text='half "\ud83d',
        tokens=(Token(7, "x", -0.1234567890123456789, 1), Token(8, "y", float("-inf"), 400)),
        input_tokens=(Token(1, "a"), Token(2, "b", -3.25, 2)),
        seed=2**63,
    ),
    "last": GenerationChunk(text="", finish_reason=FinishReason.STOP_SEQUENCE),
    "scores": GenerationChunk(
        text="", finish_reason=FinishReason.MAX_TOKENS, scores=(0.1, -2e-30, 3.0)
    ),
}


@pytest.mark.parametrize("sort", CHUNKS)
def test_a_chunk_comes_over_as_it_was(sort: str) -> None:
    ((came,), _) = over_the_wire(Message([encode_chunk(12, CHUNKS[sort])]))
    assert decode_chunk(came) == (12, CHUNKS[sort])


KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LuthierError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_over_with_its_class(kind: type[LuthierError]) -> None:
    ((came,), _) = over_the_wire(Message([encode_error(kind("what 'happened'"))]))
    got = decode_error(came)
    assert type(got) is kind is error_class(kind.code)
    assert str(got) == "what 'happened'"


@pytest.mark.parametrize("kind", [CapacityError, EngineDownError])
def test_an_error_that_passes_keeps_its_time(kind: type[CapacityError]) -> None:
    got = decode_error(encode_error(kind("full", retry_after_seconds=42)))
    assert isinstance(got, kind)
    assert got.retry_after_seconds == 42


def test_blobs_come_in_order_and_whole() -> None:
    message = Message([["a", 0], ["b", 1]], [b"", b"x" * 50_000, b"\x00\xff"])
    assert over_the_wire(message) == message


def test_nobody_at_the_other_end_is_an_error() -> None:
    ours, theirs = Pipe()
    assert isinstance(ours, Connection)
    theirs.close()
    with pytest.raises(EOFError):
        receive_message(ours)
    with pytest.raises(OSError, match="Broken pipe"):
        send_message(ours, Message([["hello"]]))
