"""Real tokens per second of training, and memory: Luthier against what one would use instead.

    python benchmarks/training.py --methods lora_qv --data ../shared/data/gsm8k_train.jsonl

The other sides are a caikit-nlp-style loop, transformers' Trainer with PEFT, and TRL's SFTTrainer
with and without packing (where TRL is installed: ``make bench-peers``). Each side is a process of
its own with its own base model, so that its memory can be told; they train one after the other, in
turns (A B C A B C), so that a busy machine hurts all. All get the same rows in the same batches,
but for TRL's packing, which makes its own; if the losses of any step differ, the program fails.
Prints one line of JSON. Real tokens are those of rows, neither padding nor virtual tokens. CPU
seconds are of a side's process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from base_models import add_model_options
from machine import describe_machine
from training_rows import add_data_option, read_rows, verbalizer_for
from training_sides import CAIKIT, METHODS, OTHERS, OURS, TRAINER, TRL_PACKING, Task, serve_side

from luthier.data_model.options.training_options import TrainingOptions

MAX_SOURCE_LENGTH, MAX_TARGET_LENGTH = 256, 128
ROW_LENGTH = MAX_SOURCE_LENGTH + MAX_TARGET_LENGTH + 1
LEARNING_RATES = {
    "prompt_tuning": 0.02,
    "lora_qv": 2e-4,
    "lora_all": 2e-4,
    "full_fine_tuning": 2e-5,
}
MAX_LOSS_DIFFERENCE = 1e-3


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 0 if all sides computed the same thing."""
    args = _parse(arguments)
    torch.set_num_threads(args.threads)
    results = [_compare(make_task(method, args), args) for method in args.methods]
    report = {
        "benchmark": "training",
        "command": " ".join(["python", *sys.argv]),
        "machine": describe_machine(),
        "model": "tiny" if args.tiny else args.model,
        "data": [path.name for path in args.data] or "made up",
        "rows": args.rows,
        "batch_size": args.batch_size,
        "num_virtual_tokens": args.virtual_tokens,
        "padded_row_length_of_caikit_nlp_style": ROW_LENGTH,
        "repeats": args.repeats,
        "results": results,
    }
    print(json.dumps(report))
    return 0 if all(result["is_same"] for result in results) else 1


def make_task(method: str, args: argparse.Namespace) -> Task:
    """What one method trains, by the program's arguments."""
    return Task(
        method=method,
        model="" if args.tiny else args.model,
        records=tuple(read_rows(args.data, args.rows)),
        options=TrainingOptions(
            num_epochs=1,
            learning_rate=LEARNING_RATES[method],
            batch_size=args.batch_size,
            accumulate_steps=1,
            max_source_length=MAX_SOURCE_LENGTH,
            max_target_length=MAX_TARGET_LENGTH,
            verbalizer=verbalizer_for(args.data),
            group_by_length=False,
        ),
        num_virtual_tokens=args.virtual_tokens,
        row_length=ROW_LENGTH,
        threads=args.threads,
    )


def _compare(task: Task, args: argparse.Namespace) -> dict[str, object]:
    """All sides in turns; a process each, alive until the last turn."""
    context = multiprocessing.get_context("spawn")
    connections = {}
    for side in args.sides:
        connections[side], theirs = context.Pipe()
        context.Process(target=serve_side, args=(theirs, side, task), daemon=True).start()
        theirs.close()
    num_tokens = {side: connection.recv()["num_tokens"] for side, connection in connections.items()}
    assert len(set(num_tokens.values())) == 1
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in args.sides}
    for _ in range(args.repeats):
        for side, connection in connections.items():
            connection.send("train")
            turns[side].append(connection.recv())
    for connection in connections.values():
        connection.send(None)
    return _summary(task.method, num_tokens[OURS], turns)


def _summary(
    method: str, num_tokens: int, turns: dict[str, list[dict[str, Any]]]
) -> dict[str, object]:
    losses = {side: of_side[0]["losses"] for side, of_side in turns.items()}
    difference = max(
        abs(ours - theirs)
        for side, of_side in losses.items()
        if side != TRL_PACKING
        for ours, theirs in zip(losses[OURS], of_side, strict=True)
    )
    sides = {side: _measurements(num_tokens, of_side) for side, of_side in turns.items()}
    others = [side for side in turns if side != OURS]
    return {
        "method": method,
        "real_tokens": num_tokens,
        **sides,
        "times_less_cpu": {side: _ratio(turns, side, "cpu") for side in others},
        "times_less_wall": {side: _ratio(turns, side, "wall") for side in others},
        "share_of_extra_memory": {
            side: round(turns[OURS][0]["extra_mib"] / turns[side][0]["extra_mib"], 3)
            for side in others
        },
        "losses": {side: [round(loss, 5) for loss in values] for side, values in losses.items()},
        "largest_loss_difference": float(f"{difference:.2e}"),
        "is_same": difference <= MAX_LOSS_DIFFERENCE,
    }


def _measurements(num_tokens: int, turns: list[dict[str, Any]]) -> dict[str, object]:
    """Medians as tokens per second, the memory of the first turn, and every measurement."""
    cpu, wall = ([turn[clock] for turn in turns] for clock in ("cpu", "wall"))
    return {
        "tokens_per_cpu_second": round(num_tokens / statistics.median(cpu), 2),
        "tokens_per_wall_second": round(num_tokens / statistics.median(wall), 2),
        "extra_mib": round(turns[0]["extra_mib"]),
        "cpu_seconds": [round(seconds, 3) for seconds in cpu],
        "wall_seconds": [round(seconds, 3) for seconds in wall],
    }


def _ratio(turns: dict[str, list[dict[str, Any]]], side: str, clock: str) -> float:
    theirs, ours = (statistics.median(turn[clock] for turn in turns[of]) for of in (side, OURS))
    return round(float(theirs / ours), 2)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser, "--model")
    add_data_option(parser)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--virtual-tokens", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sides", nargs="+", choices=OTHERS, default=[CAIKIT, TRAINER])
    args = parser.parse_args(arguments)
    args.sides = [OURS, *args.sides]
    return args


if __name__ == "__main__":
    sys.exit(main())
