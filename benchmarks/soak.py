"""Many streams for a long time, many of them dropped half-way: does the server stay as it was?

    python benchmarks/soak.py --minutes 10
    python benchmarks/soak.py --tiny --minutes 3

Starts a real ``luthier serve``, trains two soft prompts, two LoRAs and two classification heads on
it (one over a LoRA), then keeps ``--streams`` open over HTTP and gRPC, of several tenants, with
prompts that begin alike or differ: greedy, sampled, several answers at once, beams, classes. A
share of them is dropped after a few tokens, as by a reader who leaves. More models come and go
meanwhile, heads too: undeployed, deployed again, their folders replaced on disk while requests run
with them. Memory is the server's resident set, read each second; after the warm-up it must not
grow. Prints one line of JSON and fails if there was any error that no client caused (to ask for a
model that was undeployed is the client's error), if the server logged a warning that is not
explained below, or if memory grew by more than ``--max-growth``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parent))

from base_models import add_model_options
from machine import describe_machine
from tiny_model import make_tiny_base

from luthier.client.async_client import AsyncClient
from luthier.errors import LuthierError, ModelNotFoundError, error_class
from luthier.modules.service_package import service_packages
from luthier.runtime.callers import TENANT_KEY
from luthier.runtime.folders import publish_folder
from luthier.runtime.grpc_server.calls import ERROR_CODE_KEY, MODEL_ID_KEY

TENANTS = ("", "red", "blue")
#: Ends of lines that readers cause: what asyncio says when the pieces of a beam search are sent to
#: one who left.
EXPLAINED = ("socket.send() raised exception.",)
ROWS = [{"input": f"number {n}", "output": "even" if n % 2 == 0 else "odd"} for n in range(8)]
CLASSES = [{"text": f"number {n}", "labels": ["odd" if n % 2 else "even"]} for n in range(8)]
BEGINNINGS = ("You are a helpful assistant who answers in one sentence. ", "Summarise: ", "")
WORDS = ("violin", "wood", "string", "bow", "varnish", "bridge", "scroll", "peg", "spruce", "tone")


@contextmanager
def running_server(
    folder: Path, arguments: argparse.Namespace
) -> Iterator[tuple[int, dict[str, str]]]:
    """``luthier serve`` on a free port.

    Yields:
        Its process id and addresses.
    """
    (folder / "base_models").mkdir()
    if arguments.tiny:
        base = make_tiny_base()
        for part in (base.model, base.tokenizer):
            part.save_pretrained(folder / "base_models" / "tiny")
    settings = {
        "RUNTIME_GRPC_PORT": "0",
        "INFERENCE_MAX_PREFIX_BYTES": str(arguments.prefix_mib * 2**20),
        "OMP_NUM_THREADS": str(arguments.threads),
        "LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", "luthier.cli", "serve", "--http-port", "0"]
    command += ["--models-dir", str(folder / "models")]
    command += ["--base-models-dir", str(folder / "base_models")]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=subprocess.PIPE, stderr=log, text=True
        )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"no server: {(folder / 'server.log').read_text()[-3000:]}")
            yield process.pid, json.loads(line)
        finally:
            process.terminate()


def resident_mib(pid: int) -> float:
    """What a process holds in memory now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class GrpcDoor:
    """The way over gRPC.

    Args:
        address: The server's.
        tenant: On whose behalf.
    """

    def __init__(self, address: str, *, tenant: str) -> None:
        self._channel = grpc.aio.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        package = service_packages().inference
        self._stub: Any = package.stub_class(self._channel)
        self._messages: Any = package.messages
        self._tenant = tenant

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close(None)

    async def stream(self, model_id: str, text: str, /, **parameters: Any) -> AsyncGenerator[Any]:
        """Generate, piece by piece; closing it drops the row."""
        request = self._messages.ServerStreamingTextGenerationTaskRequest(text=text, **parameters)
        rpc = self._stub.ServerStreamingTextGenerationTaskPredict
        call = rpc(request, metadata=self._metadata(model_id))
        try:
            async for piece in call:
                yield piece
        except grpc.aio.AioRpcError as error:
            raise _error_of(error) from error
        finally:
            call.cancel()

    async def classify(self, model_id: str, text: str, /) -> Any:
        """Tell the class of a text."""
        request = self._messages.TextClassificationTaskRequest(text=text)
        rpc = self._stub.TextClassificationTaskPredict
        try:
            return await rpc(request, metadata=self._metadata(model_id))
        except grpc.aio.AioRpcError as error:
            raise _error_of(error) from error

    def _metadata(self, model_id: str) -> tuple[tuple[str, str], ...]:
        return ((MODEL_ID_KEY, model_id), (TENANT_KEY, self._tenant))


#: A way to ask the server; raises the errors that it raised.
Door = AsyncClient | GrpcDoor


def _error_of(error: grpc.aio.AioRpcError) -> LuthierError:
    trailing: Any = error.trailing_metadata() or ()
    code = dict(trailing).get(ERROR_CODE_KEY, "")
    return error_class(code)(f"{error.code().name}: {error.details()}")


async def train_models(client: AsyncClient, base_model: str) -> tuple[list[str], list[str]]:
    """Two soft prompts, two LoRAs and two heads, one after the other; writers and heads."""
    shared: dict[str, Any] = {"base_model": base_model, "train_data": ROWS, "num_epochs": 1}
    names = []
    for size in (8, 24):
        job = await client.train_prompt(
            f"prompt-{size}", tuning_config={"num_virtual_tokens": size}, **shared
        )
        names.append(f"prompt-{size}")
        await client.wait(job.training_id)
    for rank in (4, 16):
        job = await client.train_lora(f"lora-{rank}", rank=rank, **shared)
        names.append(f"lora-{rank}")
        await client.wait(job.training_id)
    heads = []
    shared["train_data"] = CLASSES
    for name, has_lora in (("head", False), ("head-over-lora", True)):
        job = await client.train_head(name, use_lora=has_lora, **shared)
        heads.append(name)
        await client.wait(job.training_id)
    return names, heads


class Coming:
    """Models that are undeployed, deployed again and replaced while they are asked.

    Args:
        models_dir: The server's.
        contents: By the name of each model that comes and goes, the models that it serves of which
            it gets any; copied from there.
        seed: Of what is done when.
    """

    def __init__(self, models_dir: Path, contents: dict[str, list[str]], *, seed: int) -> None:
        self.names = list(contents)
        self.done: Counter[str] = Counter()
        self._models_dir = models_dir
        self._kept = models_dir.parent / "kept"
        self._contents = {
            name: [self._kept / each for each in models] for name, models in contents.items()
        }
        for each in {each for models in contents.values() for each in models}:
            shutil.copytree(models_dir / each, self._kept / each)
        self._rng = random.Random(seed)

    async def go_on_until(self, stop: float, client: AsyncClient) -> None:
        """Deploy all, then change one of them each second or so."""
        for name in self.names:
            await client.deploy(name, self._rng.choice(self._contents[name]))
        while time.monotonic() < stop:
            await asyncio.sleep(self._rng.uniform(0.2, 2))
            name = self._rng.choice(self.names)
            content = self._rng.choice(self._contents[name])
            if self._rng.random() < 0.5:
                await client.undeploy(name)
                await asyncio.sleep(self._rng.choice([0, 0, 0.5]))
                await client.deploy(name, content)
                self.done["deployed"] += 1
            else:
                staged = self._kept / "staged"
                await asyncio.to_thread(shutil.copytree, content, staged)
                await asyncio.to_thread(publish_folder, staged, self._models_dir / name)
                self.done["replaced on disk"] += 1


class Soak:
    """The load and what came of it.

    Args:
        arguments: Of the command line.
        writers: Whom to ask for texts.
        heads: Whom to ask for classes.
        coming: Who of them may not be there when asked.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        writers: list[str],
        heads: list[str],
        *,
        coming: list[str],
    ) -> None:
        self._arguments = arguments
        self._writers, self._heads = writers, heads
        self._coming = coming
        self._rng = random.Random(arguments.seed)
        self.asked: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.num_chunks = 0
        self.first_seconds: list[float] = []

    async def ask_until(self, stop: float, door: Door) -> None:
        """One reader: request after request."""
        while time.monotonic() < stop:
            self.asked["http" if isinstance(door, AsyncClient) else "grpc"] += 1
            try:
                await self._ask(door)
            except ModelNotFoundError as error:
                if not any(f"'{name}'" in str(error) for name in self._coming):
                    self.errors[str(error)] += 1
                self.ended["not deployed"] += 1
            except LuthierError as error:
                self.errors[f"{type(error).__name__}: {error}"[:200]] += 1
                await asyncio.sleep(0.1)

    async def _ask(self, door: Door) -> None:
        rng = self._rng
        words = (rng.choice(WORDS) for _ in range(rng.randint(1, 40)))
        text = rng.choice(BEGINNINGS) + " ".join(words)
        way = rng.random()
        if way < 0.15:
            self.asked["classes"] += 1
            await door.classify(rng.choice(self._heads), text)
            self.ended["classified"] += 1
            return
        sampling: dict[str, Any] = {"max_new_tokens": rng.randint(8, self._arguments.longest)}
        model = rng.choice(self._writers)
        if way < 0.25:
            self.asked["beams"] += 1
            sampling |= {"num_beams": rng.randint(2, 4)}
        elif way < 0.6:
            sampling |= {"decoding_method": "SAMPLING", "top_p": 0.9}
        if 0.25 <= way < 0.32 and isinstance(door, AsyncClient):  # gRPC has one answer to a text
            self.asked["several"] += 1
            await door.generate_many(model, text, 3, **sampling)
            self.ended["several"] += 1
            return
        await self._read(door, model, text, sampling)

    async def _read(self, door: Door, model: str, text: str, sampling: dict[str, Any]) -> None:
        """A stream, which is left early or not."""
        rng = self._rng
        leaves_after = rng.randint(1, 20) if rng.random() < self._arguments.cancelled else None
        started, num_seen = time.monotonic(), 0
        pieces: Any = door.stream(model, text, **sampling)
        async with aclosing(pieces) as chunks:
            async for _ in chunks:
                num_seen += 1
                if num_seen == 1:
                    self.first_seconds.append(time.monotonic() - started)
                if num_seen == leaves_after:
                    break
        self.num_chunks += num_seen
        self.ended["left early" if num_seen == leaves_after else "complete"] += 1


async def measure(
    pid: int, addresses: dict[str, str], models_dir: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Load the server and watch it."""
    base_model = "tiny" if arguments.tiny else arguments.base_model
    samples: list[tuple[float, float]] = []
    async with AsyncClient(addresses["http"]) as client:
        writers, heads = await train_models(client, base_model)
    contents = {"coming-1": writers, "coming-2": writers, "coming-head": heads}
    coming = Coming(models_dir, contents, seed=arguments.seed)
    soak = Soak(
        arguments,
        [*writers, "coming-1", "coming-2"],
        [*heads, "coming-head"],
        coming=coming.names,
    )
    started = time.monotonic()
    stop = started + 60 * arguments.minutes
    # A reader here never gives up by itself, however busy the machine is.
    patience = 60 * max(10, arguments.minutes)
    clients = [
        AsyncClient(addresses["http"], tenant=name, timeout_seconds=patience) for name in TENANTS
    ]
    over_grpc = [GrpcDoor(addresses["grpc"], tenant=name) for name in TENANTS]
    doors: list[Door] = [*clients, *over_grpc]
    readers = [
        asyncio.create_task(soak.ask_until(stop, doors[number % len(doors)]))
        for number in range(arguments.streams)
    ]
    readers.append(asyncio.create_task(coming.go_on_until(stop, clients[0])))
    while time.monotonic() < stop:
        await asyncio.sleep(1)
        samples.append((time.monotonic() - started, resident_mib(pid)))
    await asyncio.gather(*readers)
    health = await clients[0].health()
    for door in doors:
        await door.close()
    return {
        "minutes": arguments.minutes,
        "streams": arguments.streams,
        "asked": dict(soak.asked),
        "ended": dict(soak.ended),
        "models": dict(coming.done),
        "errors": dict(soak.errors),
        "chunks": soak.num_chunks,
        "chunks_per_second": round(soak.num_chunks / (60 * arguments.minutes), 1),
        "first_chunk_seconds": {
            "p50": round(statistics.median(soak.first_seconds), 3),
            "max": round(max(soak.first_seconds), 3),
        },
        "health": health,
        "memory": memory_report(samples, warm_up=60 * arguments.minutes * arguments.warm_up),
    }


def memory_report(samples: list[tuple[float, float]], *, warm_up: float) -> dict[str, float]:
    """How much there was, and how it grew after the warm-up.

    Args:
        samples: (seconds, MiB).
        warm_up: Seconds that do not count.

    Returns:
        Medians of the first and last quarter after the warm-up, the growth between them, and the
        slope of the straight line through all of that time.
    """
    counted = [sample for sample in samples if sample[0] >= warm_up]
    quarter = max(1, len(counted) // 4)
    before = statistics.median(mib for _, mib in counted[:quarter])
    after = statistics.median(mib for _, mib in counted[-quarter:])
    slope = statistics.linear_regression(*zip(*counted, strict=True)).slope
    return {
        "start_mib": round(samples[0][1], 1),
        "after_warm_up_mib": round(before, 1),
        "end_mib": round(after, 1),
        "peak_mib": round(max(mib for _, mib in samples), 1),
        "growth": round(after / before - 1, 4),
        "mib_per_minute": round(60 * slope, 2),
    }


def main() -> int:
    """Run it; 1 if the server did not stay as it was."""
    arguments = parse_arguments()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder), arguments) as (pid, addresses),
    ):
        result = asyncio.run(measure(pid, addresses, Path(folder) / "models", arguments))
        lines = (Path(folder) / "server.log").read_text().splitlines()
        logged = [line for line in lines if not line.endswith(EXPLAINED)]
        result["logged"] = {
            "explained": len(lines) - len(logged),
            "others": len(logged),
            "last": logged[-5:],
        }
    described = {
        "benchmark": "soak",
        "machine": describe_machine(),
        "command": " ".join(sys.argv),
        "prefix_mib": arguments.prefix_mib,
    }
    print(json.dumps(described | result))
    is_flat = result["memory"]["growth"] <= arguments.max_growth
    is_clean = not result["errors"] and not logged and result["health"] == "OK"
    return 0 if is_flat and is_clean else 1


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser, "--base-model")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--longest", type=int, default=64, help="largest max_new_tokens")
    parser.add_argument("--cancelled", type=float, default=0.3, help="share of streams dropped")
    parser.add_argument("--warm-up", type=float, default=0.33, help="share of the time")
    parser.add_argument("--max-growth", type=float, default=0.05, help="of memory after warm-up")
    parser.add_argument(
        "--prefix-mib", type=int, help="inference.max_prefix_bytes; 64, or 1 with --tiny"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.prefix_mib is None:
        # So little that it is full, and memory flat, once the warm-up is over.
        arguments.prefix_mib = 1 if arguments.tiny else 64
    return arguments


if __name__ == "__main__":
    sys.exit(main())
