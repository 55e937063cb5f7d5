"""Several small trainings over one base model: together, one after the other, and with PEFT.

    python benchmarks/fused.py --methods lora_qv --data ../shared/data/sms_spam_train.csv

Eight trainings that differ in rank or number of virtual tokens, in learning rate and in rows make
a few updates. ``fused`` is ``tune_many``, ``alone`` is ``tune`` for one after the other, ``peft``
is a plain loop with PEFT, transformers and AdamW over rows padded to the longest of a batch. The
sides take turns in one process (A B C A B C); if any loss of a training differs, the program fails.
Timed are updates alone: models are loaded and wrapped and rows are tokenized before. Ratios are of
the CPU seconds of the process. ``--sweep`` tells what a token costs in passes of different sizes,
from which the threshold in the config was taken. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from base_models import add_model_options, load_base
from machine import describe_machine
from peft_models import peft_lora, peft_prompt, random_prompt
from torch import nn
from training_rows import add_data_option, read_rows, verbalizer_for

from luthier.adapters.base import Adapter
from luthier.adapters.lora.building import create_lora
from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.data_model.records import GenerationTrainRecord
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.base import StartEvent, TrainingCallback
from luthier.training.data.bucketing import plan_epoch
from luthier.training.data.collation import TokenBatch, collate
from luthier.training.fusion.fused import MAX_PASS_TOKENS, tune_many
from luthier.training.job import TuningJob
from luthier.training.loop import tune
from luthier.training.preparation import read_data
from luthier.training.results import TrainingResult

METHODS = ("lora_qv", "lora_all", "prompt_tuning")
MAX_LOSS_DIFFERENCE = 1e-3
#: Rows of each of four jobs in the passes that ``--sweep`` tries.
SWEPT_ROWS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Case:
    """One training of the comparison.

    Args:
        method: One of ``METHODS``.
        number: From 0; decides size, start and learning rate.
        records: Rows to learn from, once.
        options: Of the training.
    """

    method: str
    number: int
    records: tuple[GenerationTrainRecord, ...]
    options: TrainingOptions

    @property
    def rank(self) -> int:
        """Of a LoRA."""
        return (4, 8, 16)[self.number % 3]

    @property
    def num_virtual_tokens(self) -> int:
        """Of a soft prompt."""
        return (8, 12, 20)[self.number % 3]


class _Stopwatch(TrainingCallback):
    """CPU and wall seconds between the start of a training's updates and their end."""

    def __init__(self) -> None:
        self.started = self.ended = (0.0, 0.0)

    def on_start(self, event: StartEvent) -> None:
        self.started = _clocks()

    def on_finish(self, result: TrainingResult) -> None:
        self.ended = _clocks()


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 0 if all sides computed the same thing."""
    args = _parse(arguments)
    torch.set_num_threads(args.threads)
    base = load_base(args.model, is_tiny=args.tiny)
    report = {
        "benchmark": "fused",
        "command": " ".join(["python", *sys.argv]),
        "machine": describe_machine(),
        "model": "tiny" if args.tiny else args.model,
        "data": [path.name for path in args.data] or "made up",
        "jobs": args.jobs,
        "steps": args.steps,
        "repeats": args.repeats,
        "max_pass_tokens": args.max_pass_tokens,
    }
    if args.sweep:
        report["sweep"] = _sweep(base, args)
        results = []
    else:
        results = [
            _compare(base, method, num_rows, args)
            for method in args.methods
            for num_rows in args.rows
        ]
        report["results"] = results
    print(json.dumps(report))
    return 0 if all(result["is_same"] for result in results) else 1


def _compare(
    base: BaseModel, method: str, num_rows: int, args: argparse.Namespace
) -> dict[str, Any]:
    """All sides in turns."""
    cases = _cases(method, num_rows, args)
    sides: dict[str, Callable[[], tuple[list[list[float]], tuple[float, float]]]] = {
        "fused": lambda: _fused(base, cases, args.max_pass_tokens),
        "alone": lambda: _alone(base, cases),
        "peft": lambda: _peft(base, cases),
    }
    losses: dict[str, list[list[float]]] = {}
    seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(args.repeats):
        for side, train in sides.items():
            losses[side], spent = train()
            seconds[side].append(spent)
    difference = max(
        abs(one - other)
        for side in ("alone", "peft")
        for ours, theirs in zip(losses["fused"], losses[side], strict=True)
        for one, other in zip(ours, theirs, strict=True)
    )
    cpu = {side: statistics.median(each[0] for each in spent) for side, spent in seconds.items()}
    return {
        "method": method,
        "rows_per_job_and_step": num_rows,
        "real_tokens": sum(len(e.input_ids) for case in cases for e in _examples(base, case)),
        "cpu_seconds": {
            side: [round(each[0], 3) for each in spent] for side, spent in seconds.items()
        },
        "wall_seconds": {
            side: [round(each[1], 3) for each in spent] for side, spent in seconds.items()
        },
        "share_of_alone": round(cpu["fused"] / cpu["alone"], 3),
        "share_of_peft": round(cpu["fused"] / cpu["peft"], 3),
        "losses_of_first_job": {
            side: [round(loss, 5) for loss in of_side[0]] for side, of_side in losses.items()
        },
        "largest_loss_difference": float(f"{difference:.2e}"),
        "is_same": difference <= MAX_LOSS_DIFFERENCE,
    }


def _cases(method: str, num_rows: int, args: argparse.Namespace) -> list[Case]:
    per_job = num_rows * args.steps
    records = read_rows(args.data, per_job * args.jobs)
    return [
        Case(
            method,
            number,
            tuple(records[number * per_job : (number + 1) * per_job]),
            TrainingOptions(
                num_epochs=1,
                learning_rate=(2e-4 if method != "prompt_tuning" else 0.01) * (1 + number % 4),
                schedule="constant",
                batch_size=num_rows,
                accumulate_steps=1,
                verbalizer=verbalizer_for(args.data),
                seed=number,
                group_by_length=not args.random_order,
            ),
        )
        for number in range(args.jobs)
    ]


def _job(base: BaseModel, case: Case, watch: _Stopwatch) -> TuningJob:
    return TuningJob(_adapter(base, case), case.records, case.options, callbacks=(watch,))


def _fused(
    base: BaseModel, cases: Sequence[Case], max_pass_tokens: int
) -> tuple[list[list[float]], tuple[float, float]]:
    watches = [_Stopwatch() for _ in cases]
    jobs = [_job(base, case, watch) for case, watch in zip(cases, watches, strict=True)]
    outcomes = tune_many(base, jobs, max_pass_tokens=max_pass_tokens)
    losses = []
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
        losses.append([point.value for point in outcome.losses])
    # From when the last one has joined: what is before are tries of the network, data, and so on.
    started = max(watch.started for watch in watches)
    ended = max(watch.ended for watch in watches)
    return losses, (ended[0] - started[0], ended[1] - started[1])


def _alone(base: BaseModel, cases: Sequence[Case]) -> tuple[list[list[float]], tuple[float, float]]:
    losses, cpu, wall = [], 0.0, 0.0
    for case in cases:
        watch = _Stopwatch()
        job = _job(base, case, watch)
        result = tune(base, job.adapter, job.train, options=job.options, callbacks=job.callbacks)
        losses.append([point.value for point in result.losses])
        cpu += watch.ended[0] - watch.started[0]
        wall += watch.ended[1] - watch.started[1]
    return losses, (cpu, wall)


def _peft(base: BaseModel, cases: Sequence[Case]) -> tuple[list[list[float]], tuple[float, float]]:
    losses, cpu, wall = [], 0.0, 0.0
    for case in cases:
        model, batches = _peft_model(base, case), _batches(base, case)
        started = _clocks()
        losses.append(_train_peft(model, batches, case.options))
        ended = _clocks()
        cpu, wall = cpu + ended[0] - started[0], wall + ended[1] - started[1]
    return losses, (cpu, wall)


def _train_peft(
    model: nn.Module, batches: Sequence[TokenBatch], options: TrainingOptions
) -> list[float]:
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        learned, lr=options.learning_rate, weight_decay=options.weight_decay
    )
    losses = []
    for batch in batches:
        loss = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


def _examples(base: BaseModel, case: Case) -> list[Any]:
    adapter = _adapter(base, case)
    data, _ = read_data(
        base, adapter, case.records, None, options=case.options, should_stop=lambda: False
    )
    return list(data.examples)


def _batches(base: BaseModel, case: Case) -> list[TokenBatch]:
    """The batches that our loop makes of the records, in its order."""
    examples = _examples(base, case)
    windows = plan_epoch(
        [len(example.input_ids) for example in examples],
        batch_size=case.options.batch_size,
        accumulate_steps=1,
        seed=case.options.seed,
        epoch=0,
        group_by_length=case.options.group_by_length,
    )
    return [
        collate(
            [examples[row] for row in rows],
            pad_token_id=base.pad_token_id,
            is_seq2seq=False,
            device=base.device,
        )
        for window in windows
        for rows in window
    ]


def _adapter(base: BaseModel, case: Case) -> Adapter:
    if case.method == "prompt_tuning":
        prompt = random_prompt(base, case.num_virtual_tokens, seed=case.number)
        return SoftPrompt(prompt, kind="causal", places=("decoder",))
    names = ("q_proj", "v_proj") if case.method == "lora_qv" else None
    config = LoraConfig(rank=case.rank, alpha=16, target_modules=names)
    return create_lora(base.model, config, seed=case.number)


def _peft_model(base: BaseModel, case: Case) -> nn.Module:
    """What ``_adapter`` is, as PEFT makes it, with the same numbers."""
    if case.method == "prompt_tuning":
        prompt = random_prompt(base, case.num_virtual_tokens, seed=case.number)
        return peft_prompt(base, prompt)
    return peft_lora(base, method=case.method, rank=case.rank, alpha=16, seed=case.number)


def _sweep(base: BaseModel, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Cost of a token in passes of different sizes: one update of four LoRAs together."""
    args.jobs, args.steps = 4, 1
    found = []
    for num_rows in SWEPT_ROWS:
        cases = _cases("lora_qv", num_rows, args)
        num_tokens = sum(len(e.input_ids) for case in cases for e in _examples(base, case))
        seconds = [_fused(base, cases, 10**9)[1][0] for _ in range(args.repeats)]
        cost = round(1000 * min(seconds) / num_tokens, 3)
        found.append({"tokens": num_tokens, "cpu_ms_per_token": cost})
    return found


def _clocks() -> tuple[float, float]:
    """CPU and wall seconds."""
    return time.process_time(), time.perf_counter()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser, "--model")
    add_data_option(parser)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4], help="per job and step")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-pass-tokens", type=int, default=MAX_PASS_TOKENS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["lora_qv"])
    parser.add_argument(
        "--random-order", action="store_true", help="batches of unlike lengths: PEFT pads more"
    )
    parser.add_argument("--sweep", action="store_true", help="cost of a token by size of a pass")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
