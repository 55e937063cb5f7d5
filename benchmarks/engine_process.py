"""What it costs that an engine runs in a process of its own: CPU time per token of both ways.

    python benchmarks/engine_process.py --tiny --streams 32 200

The same requests, read as streams on one event loop, go to an engine in a thread of this process
and to one in a process (``inference.process.enabled``), in turns. Counted is the CPU time of this
process and, for the second way, of the engine's; what is read must be the same. With a tiny model
nearly all of it is what the two ways cost beside the model. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from base_models import add_model_options, load_base
from machine import describe_machine

from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import Engine, GenerationRequest
from luthier.inference.engine_process.process_engine import ProcessEngine
from luthier.inference.options import EngineOptions, ProcessOptions
from luthier.inference.registry import make_engine

Answers = list[list[int]]


def make_requests(num_streams: int, num_tokens: int) -> list[GenerationRequest]:
    """Short prompts, so that decoding is what is measured."""
    sampling = SamplingParams(max_new_tokens=num_tokens, min_new_tokens=num_tokens)
    return [GenerationRequest((10 + n % 200, 11, 12), sampling) for n in range(num_streams)]


async def read_all(engine: Engine, requests: list[GenerationRequest]) -> Answers:
    """Every stream on this loop."""

    async def read(request: GenerationRequest) -> list[int]:
        stream = engine.submit(request)
        return [token.token_id async for chunk in stream for token in chunk.tokens]

    return list(await asyncio.gather(*(read(request) for request in requests)))


def cpu_seconds_of(pid: int) -> float:
    """User and system time of another process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(engine: Engine, requests: list[GenerationRequest]) -> tuple[Answers, float, float]:
    """What was read, and CPU seconds of this process and of the engine's."""
    pid = engine.pid if isinstance(engine, ProcessEngine) else None
    theirs = cpu_seconds_of(pid) if pid else 0.0
    ours = time.process_time()
    answers = asyncio.run(read_all(engine, requests))
    ours = time.process_time() - ours
    return answers, ours, (cpu_seconds_of(pid) - theirs) if pid else 0.0


def compare(engines: dict[str, Engine], requests: list[GenerationRequest], repeats: int) -> object:
    """Milliseconds of CPU per token, and the ratio; None if the two gave something else."""
    num_tokens = sum(request.sampling.max_new_tokens for request in requests)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(repeats):
        answers = {}
        for name, engine in engines.items():
            answers[name], ours, theirs = measure(engine, requests)
            seconds[name].append((ours, theirs))
        if answers["thread"] != answers["process"]:
            return None

    def per_token(name: str, *, num_processes: int = 2) -> float:
        totals = (sum(each[:num_processes]) for each in seconds[name])
        return statistics.median(1000 * total / num_tokens for total in totals)

    thread, process = per_token("thread"), per_token("process")
    return {
        "streams": len(requests),
        "cpu_ms_per_token": {
            "thread": round(thread, 4),
            "process": round(process, 4),
            "process_of_the_server": round(per_token("process", num_processes=1), 4),
        },
        "times_the_cpu_of_a_thread": round(process / thread, 3),
    }


def main() -> int:
    """Run everything; 1 if tokens differ."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    base = load_base(arguments.base_model, is_tiny=arguments.tiny, shares_memory=True)
    most = max(arguments.streams)
    options = {"max_running": most, "max_waiting": most, "max_kv_bytes": arguments.max_kv_bytes}
    engines = {
        "thread": make_engine(base, EngineOptions(**options)),
        "process": make_engine(base, EngineOptions(**options, process=ProcessOptions())),
    }
    for engine in engines.values():
        asyncio.run(read_all(engine, make_requests(2, 4)))
    results = [
        compare(engines, make_requests(streams, arguments.tokens), arguments.repeats)
        for streams in arguments.streams
    ]
    for engine in engines.values():
        engine.close()
    result = {
        "benchmark": "engine_process",
        "machine": describe_machine(),
        "command": " ".join(sys.argv),
        "tokens": arguments.tokens,
        "results": results,
    }
    print(json.dumps(result))
    return 1 if None in results else 0


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser, "--base-model")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 200])
    parser.add_argument("--tokens", type=int, default=64, help="of each stream")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-kv-bytes", type=int, default=2**30)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
