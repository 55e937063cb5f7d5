"""The attention of a step in all layers: the engine's one call a layer and PyTorch's call a row.

    python benchmarks/attention.py --rows 1 8 32 --tokens 1 --context 100 --repeats 9

Each row has ``--tokens`` new tokens behind ``--context`` others, give or take a quarter, so that no
two rows are alike. Keys and values of all layers lie in an arena, which is larger than a core's
cache. By

- ``engine``: ``inference/runners/row_attention.py``, which stores what is new on the way;
- ``rows``: what is new is stored, then PyTorch's attention is called for each row.

Sides take turns; each runs once before it is measured. The program fails if outputs differ by more
than rounding. Prints one line of JSON: CPU milliseconds of a step, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).resolve().parent))

from base_models import add_model_options, load_base
from machine import describe_machine

from luthier.inference.memory.kv_cache import KvArena, KvShape, whole_blocks
from luthier.inference.runners.row_attention import attend_rows, has_row_attention
from luthier.inference.runners.score_attention import ScoreOptions
from luthier.resources.base_model import BaseModel

_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Step:
    """What attention is given: (first token, count, first slot, slot behind the last) of rows."""

    arena: KvArena
    rows: list[tuple[int, int, int, int]]
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


Side = Callable[[Step, int], torch.Tensor]


def make_step(base: BaseModel, *, num_rows: int, tokens: int, context: int) -> Step:
    """Random numbers of the model's shape."""
    config = base.model.config
    num_heads, num_kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    rows, num_slots = [], 0
    for index in range(num_rows):
        past = context * 3 // 4 + index * 7 % (context // 2 + 1)
        rows.append((index * tokens, tokens, num_slots, num_slots + past + tokens))
        num_slots += whole_blocks(past + tokens + 64)
    shape = KvShape(config.num_hidden_layers, num_kv_heads, head_dim)
    arena = KvArena(shape, num_slots, dtype=torch.float32, device=torch.device("cpu"))
    for layer in range(shape.num_layers):
        for stored in arena.read(layer):
            stored.normal_()
    # As a layer's products give them: heads within tokens.
    query = torch.randn(num_rows * tokens, num_heads, head_dim).transpose(0, 1)
    key, value = torch.randn(2, num_rows * tokens, num_kv_heads, head_dim).transpose(1, 2)
    return Step(arena, rows, query, key, value)


def engine(step: Step, layer: int) -> torch.Tensor:
    """All rows at once."""
    rows = torch.tensor(step.rows)
    stored = step.arena.read(layer)
    return attend_rows(step.query, (step.key, step.value), stored, rows, options=ScoreOptions())


def row_by_row(step: Step, layer: int) -> torch.Tensor:
    """One row after the other."""
    slots = [slot for _, count, _, end in step.rows for slot in range(end - count, end)]
    keys, values = step.arena.write(layer, torch.tensor(slots), step.key, step.value)
    outputs = []
    for first, count, start, end in step.rows:
        mask = torch.ones(count, end - start, dtype=torch.bool).tril(end - start - count)
        mixed = scaled_dot_product_attention(
            step.query[None, :, first : first + count],
            keys[None, :, start:end],
            values[None, :, start:end],
            attn_mask=None if count == 1 else mask,
            enable_gqa=True,
        )
        outputs.append(mixed[0].transpose(0, 1))
    return torch.cat(outputs)


SIDES: dict[str, Side] = {"engine": engine, "rows": row_by_row}


def compare(step: Step, *, repeats: int) -> dict[str, object]:
    """Both sides on one step."""
    num_layers = step.arena.shape.num_layers
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for repeat in range(repeats + 1):
        for name, attend in SIDES.items():
            started = time.thread_time()
            for layer in range(num_layers):
                attend(step, layer)
            if repeat:
                seconds[name].append(time.thread_time() - started)
    ratios = [e / r for e, r in zip(seconds["engine"], seconds["rows"], strict=True)]
    difference = (engine(step, 0) - row_by_row(step, 0)).abs().max()
    return {
        "rows": len(step.rows),
        "cpu_milliseconds": {
            name: round(1e3 * statistics.median(values), 1) for name, values in seconds.items()
        },
        "ratio": round(statistics.median(ratios), 2),
        "largest_difference": float(difference),
    }


def main() -> int:
    """Measure and print the JSON; 1 if outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser, "--base-model")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=1, help="new ones of each row")
    parser.add_argument("--context", type=int, default=100, help="tokens before them, about")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not has_row_attention(torch.zeros(1)):
        print("there are no kernels for this machine", file=sys.stderr)
        return 1
    base = load_base(arguments.base_model, is_tiny=arguments.tiny)
    results = []
    with torch.inference_mode():
        for num_rows in arguments.rows:
            step = make_step(
                base, num_rows=num_rows, tokens=arguments.tokens, context=arguments.context
            )
            results.append(compare(step, repeats=arguments.repeats))
    is_same = all(float(str(each["largest_difference"])) < _TOLERANCE for each in results)
    report = {
        "benchmark": "attention",
        "command": " ".join(["python", *sys.argv]),
        "machine": describe_machine(),
        "same_outputs": is_same,
        "results": results,
    }
    print(json.dumps(report))
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
