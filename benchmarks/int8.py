"""What int8 weights give and cost: CPU time, memory, and what the model says.

    python benchmarks/int8.py --repeats 2

Two engines on one base model, one with its own weights and one with ``weights="int8"``, decode the
same random prompts in turns; and read the same texts, whose tokens' log-probabilities are compared
(teacher-forced: each token is predicted from the text's own tokens before it). Prints one line of
JSON. On a shared machine the ratios of CPU seconds are what to read.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from base_models import add_model_options, load_base
from machine import describe_machine

from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.linear.int8_weights import use_int8_weights
from luthier.inference.options import EngineOptions
from luthier.inference.runners.packed_attention import with_packed_attention
from luthier.resources.base_model import BaseModel

ROOT = Path(__file__).resolve().parents[1]
TEXTS = (
    "README.md",
    "docs/architecture.md",
    "CONTRIBUTING.md",
    "luthier/inference/memory/kv_cache.py",
)
SIDES = ("float", "int8")


def resident_bytes() -> int:
    """Memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell what memory a process has")


def decode(
    engine: BatchedEngine, prompts: list[tuple[int, ...]], num_new: int
) -> tuple[float, list[list[int]]]:
    """CPU seconds of greedy answers, and their tokens."""
    sampling = SamplingParams(max_new_tokens=num_new, min_new_tokens=num_new)
    before = time.process_time()
    streams = [engine.submit(GenerationRequest(prompt, sampling)) for prompt in prompts]
    answers = [[token.token_id for chunk in each for token in chunk.tokens] for each in streams]
    return time.process_time() - before, answers


def compare_speed(
    base: BaseModel, engines: dict[str, BatchedEngine], num_rows: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Prompts, and steps of one token for each row, on both sides in turns."""
    rng = random.Random(num_rows)
    prompt_seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    step_seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(arguments.repeats + 1):
        prompts = [
            tuple(rng.randrange(10, base.vocab_size) for _ in range(arguments.prompt))
            for _ in range(num_rows)
        ]
        for side, engine in engines.items():
            reading, _ = decode(engine, prompts, 1)
            short, _ = decode(engine, prompts, 2)  # the prompts' beginnings are known by now
            long, _ = decode(engine, prompts, 2 + arguments.steps)
            if turn:  # the first turn warms up
                prompt_seconds[side].append(reading)
                step_seconds[side].append((long - short) / arguments.steps)
    medians = {side: statistics.median(step_seconds[side]) for side in SIDES}
    reading_medians = {side: statistics.median(prompt_seconds[side]) for side in SIDES}
    return {
        "rows": num_rows,
        "step_cpu_ms": {side: [round(s * 1e3, 1) for s in step_seconds[side]] for side in SIDES},
        "prompts_cpu_ms": {side: [round(s * 1e3) for s in prompt_seconds[side]] for side in SIDES},
        "steps_times_faster": round(medians["float"] / medians["int8"], 2),
        "prompts_times_faster": round(reading_medians["float"] / reading_medians["int8"], 2),
    }


def compare_quality(base: BaseModel, num_tokens: int) -> dict[str, Any]:
    """What both sides give each token of a few texts."""
    rounded = with_packed_attention(base.model)
    for module in rounded.modules():
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = "sdpa"
    use_int8_weights(rounded)
    own: list[torch.Tensor] = []
    other: list[torch.Tensor] = []
    nlls: dict[str, list[torch.Tensor]] = {side: [] for side in SIDES}
    for name in TEXTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        ids = base.tokenizer(text, return_tensors="pt")["input_ids"][:, :num_tokens]
        with torch.inference_mode():
            for side, model, kept in (("float", base.model, own), ("int8", rounded, other)):
                logprobs = model(input_ids=ids).logits[0].float().log_softmax(-1)
                kept.append(logprobs)
                nlls[side].append(-logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0])
    a, b = torch.cat(own), torch.cat(other)
    best = a.argmax(-1, keepdim=True)
    moved = (a.gather(1, best) - b.gather(1, best)).abs()
    return {
        "tokens": len(a),
        "nll": {side: round(torch.cat(nlls[side]).mean().item(), 4) for side in SIDES},
        "same_best_token": round((a.argmax(-1) == b.argmax(-1)).float().mean().item(), 4),
        "kl": round((a.exp() * (a - b)).sum(-1).mean().item(), 4),
        "best_tokens_logprob_moved": {
            "mean": round(moved.mean().item(), 3),
            "p99": round(moved.quantile(0.99).item(), 3),
            "max": round(moved.max().item(), 3),
        },
    }


def measure(base: BaseModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything about one base model."""
    engines = {"float": BatchedEngine(base)}
    gc.collect()
    before = resident_bytes()
    engines["int8"] = BatchedEngine(base, EngineOptions(weights="int8"))
    gc.collect()
    added = resident_bytes() - before
    try:
        quality = compare_quality(base, arguments.tokens)
        speed = [compare_speed(base, engines, rows, arguments) for rows in arguments.rows]
    finally:
        for engine in engines.values():
            engine.close()
    parameters = {id(each): each.nbytes for each in base.model.parameters()}
    return {
        "model_megabytes": round(sum(parameters.values()) / 1e6),
        "added_megabytes": round(added / 1e6),
        "quality": quality,
        "speed": speed,
    }


def main() -> None:
    """Measure and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser, "--base-model")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=12, help="measured steps")
    parser.add_argument("--tokens", type=int, default=256, help="of each text, at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = measure(load_base(arguments.base_model, is_tiny=arguments.tiny), arguments)
    report = {
        "benchmark": "int8",
        "command": " ".join(["python", *sys.argv]),
        "machine": describe_machine(),
        **results,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
