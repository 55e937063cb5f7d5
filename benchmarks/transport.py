"""What the doors cost: 400 streams at once to a model that does nothing.

    python benchmarks/transport.py --streams 400

A server process serves a module that yields a token every ``--pace`` milliseconds and computes
nothing; a client process opens the streams over ``--ramp`` seconds, all of them then run at the
same time, and stamps every first byte. Prints one line of JSON for SSE and gRPC: time to the first
byte (p50, p99), and the server's CPU time per token, start and end of its streams included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import describe_machine

from luthier.config import load_config
from luthier.data_model.generation import (
    GeneratedTextResult,
    GeneratedTextStreamResult,
    TokenizationResults,
    TokenStreamDetails,
    WireFinishReason,
)
from luthier.modules.service_package import service_packages
from luthier.runtime.server import Runtime

MODEL = "nothing"
SSE_PATH = "/api/v1/task/server-streaming-text-generation"
GRPC_METHOD = "/caikit.runtime.Nlp.NlpService/ServerStreamingTextGenerationTaskPredict"


class Nothing:
    """A served module that yields words and computes nothing."""

    MODULE_ID = "nothing"
    MODULE_NAME = "Nothing"

    def __init__(self, pace: float) -> None:
        self._pace = pace

    async def arun(self, text: str, **sampling: Any) -> GeneratedTextResult:
        """One word."""
        return GeneratedTextResult(generated_text=text)

    async def arun_many(self, text: str, n: int, **sampling: Any) -> list[GeneratedTextResult]:
        """As many words."""
        return [GeneratedTextResult(generated_text=text)] * n

    async def arun_stream_out(
        self, text: str, **sampling: Any
    ) -> AsyncGenerator[GeneratedTextStreamResult]:
        """``max_new_tokens`` words, one every so often."""
        for number in range(sampling["max_new_tokens"]):
            if number:
                await asyncio.sleep(self._pace)
            details = TokenStreamDetails(
                finish_reason=WireFinishReason.NOT_FINISHED, generated_tokens=number + 1
            )
            yield GeneratedTextStreamResult(generated_text="word ", details=details)

    async def arun_tokenizer(self, text: str) -> TokenizationResults:
        """Words."""
        return TokenizationResults(token_count=len(text.split()))

    def release(self) -> None:
        """Nothing is held."""


def serve(connection: Connection, pace: float) -> None:
    """The server's process: tells its addresses, then its CPU seconds each time it is asked."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MODEL).mkdir()
        (Path(folder) / MODEL / "config.yml").write_text("module_id: nothing\n")
        environ = {
            "RUNTIME_LOCAL_MODELS_DIR": folder,
            "RUNTIME_HTTP_PORT": "0",
            "RUNTIME_GRPC_PORT": "0",
            "LOG_LEVEL": "error",
        }
        asyncio.run(_serve(connection, environ, pace))


async def _serve(connection: Connection, environ: dict[str, str], pace: float) -> None:
    runtime = Runtime(load_config(environ), lambda folder: Nothing(pace))
    addresses = await runtime.start()
    connection.send((addresses.http, addresses.grpc))
    while await asyncio.to_thread(connection.recv):
        connection.send(time.process_time())
    await runtime.stop()


async def stream_sse(url: str, num_tokens: int) -> tuple[float, int]:
    """One stream by hand, so that the client costs little: first byte after, and messages."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(
        {"model_id": MODEL, "inputs": "hello", "parameters": {"max_new_tokens": num_tokens}}
    ).encode()
    head = (
        f"POST {SSE_PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode() + body)
    received = b""
    first = 0.0
    while piece := await reader.read(1 << 16):
        received += piece
        if not first and b"data:" in received:
            first = time.perf_counter() - started
    writer.close()
    return first, received.count(b"data:")


def grpc_streamer(address: str) -> Callable[[str, int], Awaitable[tuple[float, int]]]:
    """Streams over a few channels, as many clients would; answers are left as bytes."""
    channels = [
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(8)
    ]
    calls = [channel.unary_stream(GRPC_METHOD, None, None) for channel in channels]
    messages: Any = service_packages().inference.messages

    async def stream(_: str, num_tokens: int) -> tuple[float, int]:
        request = messages.ServerStreamingTextGenerationTaskRequest(
            text="hello", max_new_tokens=num_tokens
        ).SerializeToString()
        started = time.perf_counter()
        call = random.choice(calls)(request, metadata=(("mm-model-id", MODEL),))
        first, count = 0.0, 0
        async for _message in call:
            first = first or time.perf_counter() - started
            count += 1
        return first, count

    return stream


async def load(
    stream: Callable[[str, int], Awaitable[tuple[float, int]]],
    address: str,
    arguments: argparse.Namespace,
) -> list[tuple[float, int]]:
    """All streams, spread evenly over the ramp."""

    async def later(number: int) -> tuple[float, int]:
        await asyncio.sleep(arguments.ramp * number / arguments.streams)
        return await stream(address, arguments.tokens)

    return await asyncio.gather(*(later(number) for number in range(arguments.streams)))


async def measure(
    connection: Connection, addresses: tuple[str, str], arguments: argparse.Namespace
) -> dict[str, object]:
    """Both doors, one after the other, after a small warm-up of each."""

    def server_cpu() -> float:
        connection.send(True)
        seconds: float = connection.recv()
        return seconds

    doors = {"sse": (stream_sse, addresses[0]), "grpc": (grpc_streamer(addresses[1]), addresses[1])}
    results: dict[str, object] = {}
    for name, (stream, address) in doors.items():
        await asyncio.gather(*(stream(address, 2) for _ in range(4)))
        before = server_cpu()
        answers = await load(stream, address, arguments)
        cpu = server_cpu() - before
        if {count for _, count in answers} != {arguments.tokens}:
            raise RuntimeError(f"{name}: some streams are incomplete")
        firsts = sorted(1000 * first for first, _ in answers)
        results[name] = {
            "first_byte_ms_p50": round(statistics.median(firsts), 1),
            "first_byte_ms_p99": round(firsts[int(0.99 * (len(firsts) - 1))], 1),
            "server_cpu_ms_per_token": round(1000 * cpu / (len(answers) * arguments.tokens), 4),
            "streams": len(answers),
        }
    return results


def main() -> None:
    """Start the server, load it, print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=60, help="of each stream")
    parser.add_argument("--pace", type=float, default=100, help="milliseconds between tokens")
    parser.add_argument("--ramp", type=float, default=3, help="seconds over which streams arrive")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, arguments.pace / 1000), daemon=True)
    server.start()
    addresses = connection.recv()
    results = asyncio.run(measure(connection, addresses, arguments))
    connection.send(False)
    server.join()
    report = {
        "benchmark": "transport",
        "command": " ".join(["python", *sys.argv]),
        "machine": describe_machine(),
        **results,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
