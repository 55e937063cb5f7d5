"""Tokens per second of serving: Luthier's engine against what one would use instead.

    python benchmarks/serving.py --requests 24 --repeats 2

The same requests (greedy, lengths fixed beforehand, all there at once) are answered by

- ``sequential_generate``: transformers' ``generate``, one after another;
- ``static_batches``: ``generate`` on padded batches of 8, each as slow as its longest row;
- ``continuous_batching``: transformers' own, unless ``--without-continuous-batching``;
- ``luthier``: the engine, all submitted at once;
- ``luthier_mixed``: the engine, each request with another of 8 soft prompts or none.

Each repeat runs them in turns, so that a busy machine hurts all. The program fails if greedy tokens
differ (``static_batches`` may, by padding: its agreement is reported). Prints one line of JSON. CPU
seconds are of the whole process; on a shared machine read ``cpu``. Also measured: the time to the
first token of a request with a soft prompt of 100 tokens, computed and shared.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import GenerationConfig

sys.path.insert(0, str(Path(__file__).resolve().parent))

import itertools

from base_models import add_model_options, load_base
from machine import describe_machine

from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import Engine, GenerationRequest
from luthier.inference.registry import close_all, engine_for
from luthier.resources.base_model import BaseModel

BATCH_SIZE = 8
OURS, MIXED = "luthier", "luthier_mixed"
Answers = list[list[int]]


@dataclass
class Timings:
    """Seconds of each repeat, and what the streams of the last one felt like."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    streams: dict[str, float] = field(default_factory=dict)


def make_requests(
    base: BaseModel, arguments: argparse.Namespace, adapters: list[SoftPrompt | None], *, turn: int
) -> list[GenerationRequest]:
    """Random prompts with lengths as in chat traffic; end-of-sequence cannot come early.

    The same lengths in each turn, but other tokens, so that nothing computed before is of use.
    """
    rng, words = random.Random(arguments.seed), random.Random(f"{arguments.seed} {turn}")
    longest_prompt = 40 if arguments.tiny else 200
    longest_answer = 16 if arguments.tiny else arguments.longest_answer
    requests = []
    for index in range(arguments.requests):
        ids = tuple(
            words.randrange(10, base.vocab_size) for _ in range(rng.randint(20, longest_prompt))
        )
        num_new = rng.randint(min(16, longest_answer), longest_answer)
        sampling = SamplingParams(max_new_tokens=num_new, min_new_tokens=num_new)
        requests.append(GenerationRequest(ids, sampling, adapters[index % len(adapters)]))
    return requests


def soft_prompts(base: BaseModel, lengths: list[int]) -> list[SoftPrompt | None]:
    """None, then random prompts the size of the model's own embeddings."""
    generator = torch.Generator().manual_seed(1)
    scale = base.embedding_weight.std()
    rows = (torch.randn(n, base.hidden_size, generator=generator) * scale for n in lengths)
    return [None, *(SoftPrompt(each, kind="causal", places=("decoder",)) for each in rows)]


def run_sequential(base: BaseModel, requests: list[GenerationRequest]) -> Answers:
    """``generate`` on one row after another."""
    return [_generate(base, [request])[0] for request in requests]


def run_static(base: BaseModel, requests: list[GenerationRequest]) -> Answers:
    """``generate`` on batches padded on the left."""
    answers: Answers = []
    for first in range(0, len(requests), BATCH_SIZE):
        answers += _generate(base, requests[first : first + BATCH_SIZE])
    return answers


def _generate(base: BaseModel, requests: list[GenerationRequest]) -> Answers:
    width = max(len(request.input_ids) for request in requests)
    ids = torch.full((len(requests), width), base.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(requests):
        ids[row, width - len(request.input_ids) :] = torch.tensor(request.input_ids)
        mask[row, width - len(request.input_ids) :] = 1
    num_new = max(request.sampling.max_new_tokens for request in requests)
    output = base.model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=num_new,
        min_new_tokens=num_new,
        pad_token_id=base.pad_token_id,
    )[:, width:].tolist()
    return [
        row[: request.sampling.max_new_tokens]
        for row, request in zip(output, requests, strict=True)
    ]


def run_continuous(base: BaseModel, requests: list[GenerationRequest]) -> Answers:
    """transformers' continuous batching; every row may end at its own length."""
    config = GenerationConfig(do_sample=False, max_new_tokens=128, eos_token_id=-1)
    results: dict[str, list[int]] = {}
    attention = base.model.config._attn_implementation
    with base.model.continuous_batching_context_manager(generation_config=config) as manager:
        names = [
            manager.add_request(
                list(request.input_ids), max_new_tokens=request.sampling.max_new_tokens
            )
            for request in requests
        ]
        while len(results) < len(requests):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                results[result.request_id] = result.generated_tokens
    base.model.config._attn_implementation = attention  # it leaves its own behind
    return [results[name] for name in names]


def run_engine(engine: Engine, requests: list[GenerationRequest], timings: Timings) -> Answers:
    """Everything submitted at once; one reader per stream notes when its tokens come."""
    answers: Answers = [[] for _ in requests]
    moments: list[list[float]] = [[] for _ in requests]
    started = time.perf_counter()

    def read(index: int) -> None:
        for chunk in streams[index]:
            moments[index].append(time.perf_counter())
            answers[index].extend(token.token_id for token in chunk.tokens)

    streams = [engine.submit(request) for request in requests]
    readers = [threading.Thread(target=read, args=(index,)) for index in range(len(requests))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    firsts = [each[0] - started for each in moments]
    gaps = [b - a for each in moments for a, b in itertools.pairwise(each)]
    for name, values in (("first_token", firsts), ("between_tokens", gaps)):
        quantiles = statistics.quantiles(values, n=100)
        timings.streams[f"{name}_p50_seconds"] = round(quantiles[49], 4)
        timings.streams[f"{name}_p99_seconds"] = round(quantiles[98], 4)
    return answers


def first_token_seconds(base: BaseModel, engine: Engine, *, repeats: int) -> dict[str, float]:
    """Seconds to the first token with a soft prompt of 100: new to the engine, and known to it."""
    sampling = SamplingParams(max_new_tokens=1)
    new: list[float] = []
    known: list[float] = []
    words = random.Random(0)
    for repeat in range(repeats):
        (_, adapter) = soft_prompts(base, [100])
        assert adapter is not None
        with torch.no_grad():
            adapter.prompt_embeddings.mul_(1 + 0.01 * repeat)
        for found in (new, known):  # the prompt's own tokens are always new
            ids = tuple(words.randrange(10, base.vocab_size) for _ in range(20))
            request = GenerationRequest(ids, sampling, adapter)
            started = time.perf_counter()
            list(engine.submit(request))
            found.append(time.perf_counter() - started)
    return {
        "computed": round(min(new), 4),
        "shared": round(min(known), 4),
        "ratio": round(min(known) / min(new), 3),
    }


def measure(run: Callable[[], Answers], timings: Timings) -> Answers:
    """Run once and note the seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    answers = run()
    timings.cpu.append(time.process_time() - cpu)
    timings.wall.append(time.perf_counter() - wall)
    return answers


def main() -> int:
    """Run everything; 1 if tokens differ."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    base = load_base(arguments.base_model, is_tiny=arguments.tiny)
    engine = engine_for(base)
    adapters = soft_prompts(base, [8, 16, 24, 32, 48, 64, 80, 100])
    bare = make_requests(base, arguments, [None], turn=0)
    mixed = make_requests(base, arguments, adapters, turn=0)
    runs: dict[str, Callable[[], Answers]] = {
        "sequential_generate": lambda: run_sequential(base, bare),
        "static_batches": lambda: run_static(base, bare),
        OURS: lambda: run_engine(engine, bare, timings[OURS]),
        MIXED: lambda: run_engine(engine, mixed, timings[MIXED]),
    }
    if not arguments.without_continuous_batching:
        runs["continuous_batching"] = lambda: run_continuous(base, bare)
    timings = {name: Timings() for name in runs}
    agreement = {name: 1.0 for name in runs}
    for turn in range(arguments.repeats):
        bare = make_requests(base, arguments, [None], turn=turn)
        mixed = make_requests(base, arguments, adapters, turn=turn)
        answers = {name: measure(run, timings[name]) for name, run in runs.items()}
        for name in agreement:
            if name != MIXED:
                pairs = zip(answers[name], answers["sequential_generate"], strict=True)
                share = sum(a == b for a, b in pairs) / len(bare)
                agreement[name] = min(agreement[name], share)
    num_tokens = sum(request.sampling.max_new_tokens for request in bare)
    result = {
        "benchmark": "serving",
        "machine": describe_machine(),
        "command": " ".join(sys.argv),
        "requests": len(bare),
        "prompt_tokens": sum(len(request.input_ids) for request in bare),
        "generated_tokens": num_tokens,
        "same_greedy_tokens": agreement,
        "tokens_per_cpu_second": rates(timings, num_tokens, "cpu"),
        "tokens_per_second": rates(timings, num_tokens, "wall"),
        "ratio_cpu": ratios(timings, "cpu"),
        "ratio_wall": ratios(timings, "wall"),
        "streams": {name: each.streams for name, each in timings.items() if each.streams},
        "soft_prompt_100_first_token_seconds": first_token_seconds(base, engine, repeats=3),
    }
    print(json.dumps(result))
    close_all()
    return 0 if agreement[OURS] == 1.0 else 1


def rates(timings: dict[str, Timings], num_tokens: int, clock: str) -> dict[str, float]:
    """Generated tokens per second of the median repeat."""
    return {
        name: round(num_tokens / statistics.median(getattr(each, clock)), 1)
        for name, each in timings.items()
    }


def ratios(timings: dict[str, Timings], clock: str) -> dict[str, float]:
    """How many times faster the engine is than each, median against median."""
    ours = statistics.median(getattr(timings[OURS], clock))
    return {
        name: round(statistics.median(getattr(each, clock)) / ours, 2)
        for name, each in timings.items()
        if name != OURS
    }


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser, "--base-model")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest-answer", type=int, default=128, help="in tokens")
    parser.add_argument("--without-continuous-batching", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
