"""Many streams for a long time, many of them dropped half-way: does the server stay as it was?

    python benchmarks/soak.py --minutes 10
    python benchmarks/soak.py --tiny --minutes 3

Starts a real ``luthier serve``, trains two soft prompts and two LoRAs on it, then keeps
``--streams`` open over HTTP, of several tenants, with prompts that begin alike or differ: greedy,
sampled, several answers at once, beams. A share of them is dropped after a few tokens, as by a
reader who leaves. Two more models come and go meanwhile: undeployed, deployed again, their folders
replaced on disk while requests run with them. Memory is the server's resident set, read each
second; after the warm-up it must not grow. Prints one line of JSON and fails if there was any error
that no client caused (to ask for a model that was undeployed is the client's error), if the server
logged one, or if memory grew by more than ``--max-growth``.
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
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from base_models import add_model_options
from machine import describe_machine
from tiny_model import make_tiny_base

from luthier.client.async_client import AsyncClient
from luthier.errors import LuthierError, ModelNotFoundError
from luthier.runtime.folders import publish_folder

TENANTS = ("", "red", "blue")
#: What asyncio says of a reader who left while the pieces of a beam search were sent to it.
_LEFT = "socket.send() raised exception."
ROWS = [{"input": f"number {n}", "output": "even" if n % 2 == 0 else "odd"} for n in range(8)]
BEGINNINGS = ("You are a helpful assistant who answers in one sentence. ", "Summarise: ", "")
WORDS = ("violin", "wood", "string", "bow", "varnish", "bridge", "scroll", "peg", "spruce", "tone")


@contextmanager
def running_server(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[int, str]]:
    """``luthier serve`` on a free port.

    Yields:
        Its process id and address.
    """
    (folder / "base_models").mkdir()
    if arguments.tiny:
        base = make_tiny_base()
        for part in (base.model, base.tokenizer):
            part.save_pretrained(folder / "base_models" / "tiny")
    settings = {
        "RUNTIME_GRPC_ENABLED": "false",
        "INFERENCE_MAX_PREFIX_BYTES": str(arguments.prefix_mib * 2**20),
        "OMP_NUM_THREADS": str(arguments.threads),
        "LOG_LEVEL": "error",
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
            yield process.pid, json.loads(line)["http"]
        finally:
            process.terminate()


def resident_mib(pid: int) -> float:
    """What a process holds in memory now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def train_models(client: AsyncClient, base_model: str) -> list[str]:
    """Two soft prompts and two LoRAs, one after the other."""
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
    return names


class Coming:
    """Models that are undeployed, deployed again and replaced while they are asked.

    Args:
        models_dir: The server's.
        contents: Of models that it serves, copied from there; each name gets any of them.
        names: Of the models that come and go.
        seed: Of what is done when.
    """

    def __init__(
        self, models_dir: Path, contents: list[str], *, names: list[str], seed: int
    ) -> None:
        self.names = names
        self.done: Counter[str] = Counter()
        self._models_dir = models_dir
        self._kept = models_dir.parent / "kept"
        self._contents = [self._kept / name for name in contents]
        for name, kept in zip(contents, self._contents, strict=True):
            shutil.copytree(models_dir / name, kept)
        self._rng = random.Random(seed)

    async def go_on_until(self, stop: float, client: AsyncClient) -> None:
        """Deploy all, then change one of them each second or so."""
        for name in self.names:
            await client.deploy(name, self._rng.choice(self._contents))
        while time.monotonic() < stop:
            await asyncio.sleep(self._rng.uniform(0.2, 2))
            name, content = self._rng.choice(self.names), self._rng.choice(self._contents)
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
        models: Whom to ask.
        coming: Who may not be there when asked.
    """

    def __init__(
        self, arguments: argparse.Namespace, models: list[str], *, coming: list[str]
    ) -> None:
        self._arguments = arguments
        self._models = [*models, *coming]
        self._coming = coming
        self._rng = random.Random(arguments.seed)
        self.ended: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.num_chunks = 0
        self.first_seconds: list[float] = []

    async def stream_until(self, stop: float, client: AsyncClient) -> None:
        """One reader: stream after stream."""
        while time.monotonic() < stop:
            try:
                await self._one_stream(client)
            except ModelNotFoundError as error:
                if not any(repr(name) in str(error) for name in self._coming):
                    self.errors[str(error)] += 1
                self.ended["not deployed"] += 1
            except LuthierError as error:
                self.errors[f"{type(error).__name__}: {error}"[:200]] += 1
                await asyncio.sleep(0.1)

    async def _one_stream(self, client: AsyncClient) -> None:
        rng = self._rng
        words = (rng.choice(WORDS) for _ in range(rng.randint(1, 40)))
        text = rng.choice(BEGINNINGS) + " ".join(words)
        leaves_after = rng.randint(1, 20) if rng.random() < self._arguments.cancelled else None
        sampling: dict[str, Any] = {"max_new_tokens": rng.randint(8, self._arguments.longest)}
        model, way = rng.choice(self._models), rng.random()
        if way < 0.1:
            sampling |= {"num_beams": rng.randint(2, 4)}
        elif way < 0.5:
            sampling |= {"decoding_method": "SAMPLING", "top_p": 0.9}
        if 0.1 <= way < 0.15:
            await client.generate_many(model, text, 3, **sampling)
            self.ended["several"] += 1
            return
        started, num_seen = time.monotonic(), 0
        async with aclosing(client.stream(model, text, **sampling)) as chunks:
            async for _ in chunks:
                num_seen += 1
                if num_seen == 1:
                    self.first_seconds.append(time.monotonic() - started)
                if num_seen == leaves_after:
                    break
        self.num_chunks += num_seen
        self.ended["left early" if num_seen == leaves_after else "complete"] += 1


async def measure(
    pid: int, url: str, models_dir: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Load the server and watch it."""
    base_model = "tiny" if arguments.tiny else arguments.base_model
    samples: list[tuple[float, float]] = []
    async with AsyncClient(url) as client:
        models = await train_models(client, base_model)
    coming = Coming(models_dir, models, names=["coming-1", "coming-2"], seed=arguments.seed)
    soak = Soak(arguments, models, coming=coming.names)
    started = time.monotonic()
    stop = started + 60 * arguments.minutes
    # A reader here never gives up by itself, however busy the machine is.
    patience = 60 * arguments.minutes
    clients = [AsyncClient(url, tenant=name, timeout_seconds=patience) for name in TENANTS]
    readers = [
        asyncio.create_task(soak.stream_until(stop, clients[number % len(clients)]))
        for number in range(arguments.streams)
    ]
    readers.append(asyncio.create_task(coming.go_on_until(stop, clients[0])))
    while time.monotonic() < stop:
        await asyncio.sleep(1)
        samples.append((time.monotonic() - started, resident_mib(pid)))
    await asyncio.gather(*readers)
    health = await clients[0].health()
    for client in clients:
        await client.close()
    return {
        "minutes": arguments.minutes,
        "streams": arguments.streams,
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
        running_server(Path(folder), arguments) as (pid, url),
    ):
        result = asyncio.run(measure(pid, url, Path(folder) / "models", arguments))
        lines = (Path(folder) / "server.log").read_text().splitlines()
        logged = [line for line in lines if not line.endswith(_LEFT)]
        result["logged"] = {"lines": len(logged), "last": logged[-1:]}
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
    parser.add_argument("--prefix-mib", type=int, default=64, help="inference.max_prefix_bytes")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
