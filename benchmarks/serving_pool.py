"""A thousand registered adapters of which a hundred fit: what that costs in speed and memory.

    python benchmarks/serving_pool.py --registered 1000 --hot 100

As many clients as ``--streams`` send one request after another (greedy, lengths fixed beforehand):

- ``one``: all of them to one adapter;
- ``zipf``: to adapters drawn by Zipf's law from all that are registered, anew in each repeat. They
  lie on disk; the engine may hold the bytes of ``--hot`` of them, and holds the most wanted ones
  when the measurement begins. Each other one pushes another out.

The program fails if nothing was pushed out, or if answers of a sample, those to the adapters that
are wanted least, differ from those of an engine that holds only the asked adapter. Prints one line
of JSON; memory is the process's, beside what it had with one adapter.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from base_models import add_model_options, load_base
from machine import describe_machine
from serving import Answers, Timings, make_requests, measure, rates
from serving_adapters import TARGETS, warm_up

from luthier.adapters.lora.building import create_lora
from luthier.adapters.storage import load_adapter, save_adapter
from luthier.adapters.stored_adapter import StoredAdapter
from luthier.data_model.options.lora import LoraConfig
from luthier.inference.base import Engine, GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.resources.base_model import BaseModel


def register(
    base: BaseModel, count: int, folder: Path, *, rank: int, targets: str
) -> list[StoredAdapter]:
    """Random LoRAs, written to disk and known by their folders."""
    config = LoraConfig(rank=rank, target_modules=TARGETS[targets])
    adapter = create_lora(base.model, config, seed=0)
    registered = []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for factors in adapter.factors.values():
                noise = torch.randn(factors.lora_b.shape, generator=generator)
                factors.lora_b.copy_(noise * (0.02 / rank**0.5))
        path = folder / str(index)
        save_adapter(adapter, path, base_model_name=base.name)
        registered.append(StoredAdapter(adapter, path, base_model=base))
    return registered


def draw_by_zipf(count: int, total: int, *, exponent: float, seed: int) -> list[int]:
    """``count`` numbers below ``total``, number n with weight 1 / (n + 1) ** exponent."""
    weights = [(rank + 1) ** -exponent for rank in range(total)]
    return random.Random(seed).choices(range(total), weights, k=count)


def resident_bytes() -> int:
    """Memory of this process that is really there."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def each_to(
    requests: Sequence[GenerationRequest], adapters: Sequence[StoredAdapter]
) -> list[GenerationRequest]:
    """The same requests to these adapters."""
    return [replace(r, adapter=a) for r, a in zip(requests, adapters, strict=True)]


def run_streams(engine: Engine, requests: Sequence[GenerationRequest], num_streams: int) -> Answers:
    """Clients that each send the next request as soon as their last is answered."""
    answers: Answers = [[] for _ in requests]
    waiting = iter(enumerate(requests))
    lock = threading.Lock()

    def ask() -> None:
        while True:
            with lock:
                index, request = next(waiting, (-1, None))
            if request is None:
                return
            for chunk in engine.submit(request):
                answers[index].extend(token.token_id for token in chunk.tokens)

    clients = [threading.Thread(target=ask) for _ in range(num_streams)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return answers


def answers_alone(base: BaseModel, requests: Sequence[GenerationRequest]) -> Answers:
    """Each request by an engine of its own, with the adapter fresh from its folder."""
    answers = []
    for request in requests:
        assert isinstance(request.adapter, StoredAdapter)
        engine = BatchedEngine(base)
        adapter = load_adapter(request.adapter.folder, base_model=base)
        chunks = list(engine.submit(replace(request, adapter=adapter)))
        answers.append([token.token_id for chunk in chunks for token in chunk.tokens])
        engine.close()
    return answers


def main() -> int:
    """Run everything; 1 if tokens differ or nothing was pushed out."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    base = load_base(arguments.base_model, is_tiny=arguments.tiny)
    with tempfile.TemporaryDirectory() as folder:
        registered = register(
            base,
            arguments.registered,
            Path(folder),
            rank=arguments.rank,
            targets=arguments.targets,
        )
        adapter_bytes = sum(t.nbytes for t in registered[0].peft_state().values())
        # What is kept of prompts has a limit of its own and would be counted with the adapters.
        options = EngineOptions(
            max_adapter_bytes=arguments.hot * adapter_bytes,
            max_prefix_bytes=0,
            merge_after_steps=0,  # the one adapter would be merged: other work, not more of it
        )
        engine = BatchedEngine(base, options)

        def run(requests: list[GenerationRequest], timings: Timings) -> Answers:
            return measure(lambda: run_streams(engine, requests, arguments.streams), timings)

        plain = make_requests(base, arguments, [None], turn=-1)
        run(each_to(plain, registered[:1] * len(plain)), Timings())
        before = resident_bytes()
        for first in range(0, arguments.hot, len(plain)):
            hot = registered[first : min(first + len(plain), arguments.hot)]
            warm_up(engine, plain[: len(hot)], hot)
        warm = engine.adapter_status()
        timings = {name: Timings() for name in ("one", "zipf")}
        asked: list[int] = []
        for turn in range(arguments.repeats):
            plain = make_requests(base, arguments, [None], turn=turn)
            drawn = draw_by_zipf(
                len(plain), len(registered), exponent=arguments.exponent, seed=turn
            )
            run(each_to(plain, registered[:1] * len(plain)), timings["one"])
            requests = each_to(plain, [registered[index] for index in drawn])
            answers = run(requests, timings["zipf"])
            asked += drawn
        grown = resident_bytes() - before
        status = engine.adapter_status()
        engine.close()
        rarest = sorted(range(len(drawn)), key=lambda index: -drawn[index])[: arguments.sample]
        alone = answers_alone(base, [requests[index] for index in rarest])
        is_same = [answers[index] for index in rarest] == alone
    num_tokens = sum(request.sampling.max_new_tokens for request in plain)
    num_loads = status.num_loads - warm.num_loads
    num_dropped = num_loads + warm.num_on_device - status.num_on_device
    result = {
        "benchmark": "serving_pool",
        "machine": describe_machine(),
        "command": " ".join(sys.argv),
        "repeats": arguments.repeats,
        "requests": len(plain),
        "generated_tokens": num_tokens,
        "different_adapters_asked": len(set(asked)),
        "loads_while_measured": num_loads,
        "share_of_requests_that_load": round(num_loads / len(asked), 3),
        "adapters_pushed_out": num_dropped,
        "same_greedy_tokens_as_alone": is_same,
        "tokens_per_cpu_second": rates(timings, num_tokens, "cpu"),
        "tokens_per_second": rates(timings, num_tokens, "wall"),
        "zipf_share_of_one_cpu": share(timings, "cpu"),
        "zipf_share_of_one_wall": share(timings, "wall"),
        "adapter_bytes": adapter_bytes,
        "adapters_on_device": status.num_on_device,
        "device_bytes": status.device_bytes,
        "grown_bytes": grown,
        "grown_over_device_bytes": round(grown / status.device_bytes, 2),
    }
    print(json.dumps(result))
    return 0 if is_same and num_dropped > 0 else 1


def share(timings: dict[str, Timings], clock: str) -> float:
    """Throughput of Zipf traffic over that of one adapter: the median of the repeats' ratios."""
    one, zipf = (getattr(timings[name], clock) for name in ("one", "zipf"))
    return round(statistics.median(o / z for o, z in zip(one, zipf, strict=True)), 3)


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser, "--base-model")
    parser.add_argument("--registered", type=int, default=1000)
    parser.add_argument("--hot", type=int, default=100)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--targets", choices=list(TARGETS), default="qv")
    parser.add_argument("--exponent", type=float, default=1.0, help="of Zipf's law")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--streams", type=int, default=48, help="requests at the same time")
    parser.add_argument("--sample", type=int, default=8, help="answers that are compared")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest-answer", type=int, default=128, help="in tokens")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
