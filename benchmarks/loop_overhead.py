"""What the training loop costs beside forward, backward and optimizer.

    python benchmarks/loop_overhead.py --methods lora_all --data ../shared/data/gsm8k_train.jsonl

One training as ``tune`` runs it, with ``metrics.jsonl``. The CPU time of its process, from the
first update after the warm-up to the last, is split: what the micro-batches and the optimizer take
is the work, all else is the loop's. Both are of the same updates, so a busy machine hurts both.
Prints one line of JSON; fails if the loop takes 5 % of the work or logging 1 %. The parts need no
model of their own to be compared with: they add up to the whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

sys.path.insert(0, str(Path(__file__).resolve().parent))

from base_models import add_model_options, load_base
from machine import describe_machine
from training_rows import read_rows, verbalizer_for

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.adapters.lora.building import create_lora
from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.options.training_options import TrainingOptions
from luthier.resources.base_model import BaseModel
from luthier.training.callbacks.base import StepEvent
from luthier.training.callbacks.metrics_file import MetricsFile
from luthier.training.data.row_share import RowShare
from luthier.training.job import TuningJob
from luthier.training.loop import open_run
from luthier.training.optimization.updater import Updater

METHODS = ("prompt_tuning", "lora_qv", "lora_all", "full_fine_tuning")
MAX_LOOP_SHARE, MAX_LOGGING_SHARE = 0.05, 0.01
WARM_UP_STEPS = 2


class Clock:
    """CPU seconds of this process, by part. A part inside another one counts as itself."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[tuple[str, float]] = []

    def start(self, part: str) -> None:
        """From now on the time is that part's."""
        self._running.append((part, time.process_time()))

    def stop(self) -> None:
        """The part that began last ends."""
        part, started = self._running.pop()
        taken = time.process_time() - started
        self.seconds[part] = self.seconds.get(part, 0.0) + taken
        if self._running:
            outer, since = self._running[-1]
            self._running[-1] = (outer, since + taken)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """The time of the body is that part's."""
        self.start(part)
        try:
            yield
        finally:
            self.stop()

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, on the clock."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timed(part):
                return function(*args, **kwargs)

        return timed


class TimedMetrics(MetricsFile):
    """The file of metrics, on the clock; forgets what the warm-up took."""

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(path)
        self._clock = clock

    def on_step(self, event: StepEvent) -> None:
        """Write, and start to count after the warm-up."""
        with self._clock.timed("logging"):
            super().on_step(event)
        if event.step == WARM_UP_STEPS:
            self._clock.seconds.clear()
            self._clock.stop()
            self._clock.seconds.clear()
            self._clock.start("rest of the loop")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 0 if the loop stays below its shares."""
    args = _parse(arguments)
    torch.set_num_threads(args.threads)
    base_model = load_base(args.model, is_tiny=args.tiny)
    results = [_measure(base_model, method, args) for method in args.methods]
    report = {
        "benchmark": "loop_overhead",
        "command": " ".join(["python", *sys.argv]),
        "machine": describe_machine(),
        "model": "tiny" if args.tiny else args.model,
        "data": [path.name for path in args.data] or "made up",
        "batch_size": args.batch_size,
        "steps": args.steps,
        "max_loop_share": MAX_LOOP_SHARE,
        "max_logging_share": MAX_LOGGING_SHARE,
        "results": results,
    }
    print(json.dumps(report))
    is_checked = not args.tiny  # A tiny model's work is nothing to compare with.
    return 0 if not is_checked or all(result["is_small"] for result in results) else 1


def _measure(base_model: BaseModel, method: str, args: argparse.Namespace) -> dict[str, object]:
    records = read_rows(args.data, (args.steps + WARM_UP_STEPS) * args.batch_size)
    options = TrainingOptions(
        num_epochs=1,
        learning_rate=1e-4,
        batch_size=args.batch_size,
        accumulate_steps=1,
        max_grad_norm=1.0,
        verbalizer=verbalizer_for(args.data),
    )
    clock = Clock()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _put_on_the_clock(stack, clock)
        metrics = TimedMetrics(folder / "metrics.jsonl", clock)
        adapter = _adapter(method, base_model)
        job = TuningJob(adapter=adapter, train=records, options=options, callbacks=(metrics,))
        run = stack.enter_context(open_run(base_model, job))
        steps = stack.enter_context(contextlib.closing(run.steps()))
        clock.start("rest of the loop")
        micro_batch = next(steps)
        while True:
            with clock.timed("forward and backward"):
                loss_sum = micro_batch.backward()
            try:
                micro_batch = steps.send(loss_sum)
            except StopIteration:
                break
        clock.stop()
    return _summary(method, clock.seconds)


def _put_on_the_clock(stack: contextlib.ExitStack, clock: Clock) -> None:
    hooks = (
        register_optimizer_step_pre_hook(lambda *_: clock.start("optimizer")),
        register_optimizer_step_post_hook(lambda *_: clock.stop()),
    )
    for hook in hooks:
        stack.callback(hook.remove)
    for owner, name, part in (
        (RowShare, "batch", "collation"),
        (Updater, "gradient_norm", "gradient norm"),
        (Updater, "clear", "clearing gradients"),
    ):
        before = getattr(owner, name)
        stack.callback(setattr, owner, name, before)
        setattr(owner, name, clock.around(part, before))


def _summary(method: str, seconds: dict[str, float]) -> dict[str, object]:
    work = seconds["forward and backward"] + seconds["optimizer"]
    loop = sum(seconds.values()) - work
    shares = {part: round(taken / work, 5) for part, taken in sorted(seconds.items())}
    logging = seconds["logging"] / work
    return {
        "method": method,
        "cpu_seconds": {part: round(taken, 4) for part, taken in sorted(seconds.items())},
        "shares_of_the_work": shares,
        "loop_share": round(loop / work, 5),
        "logging_share": round(logging, 5),
        "is_small": loop / work < MAX_LOOP_SHARE and logging < MAX_LOGGING_SHARE,
    }


def _adapter(method: str, base: BaseModel) -> Adapter:
    if method == "full_fine_tuning":
        return FullWeights(base.model)
    if method == "prompt_tuning":
        start = torch.randn(20, base.hidden_size, generator=torch.Generator().manual_seed(1))
        return SoftPrompt(start, kind=base.kind, places=("decoder",))
    config = LoraConfig(rank=8, alpha=16)
    if method == "lora_qv":
        config = replace(config, target_modules=("q_proj", "v_proj"))
    return create_lora(base.model, config, seed=1)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser, "--model")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="CSV or JSONL files")
    parser.add_argument("--steps", type=int, default=10, help="updates after the warm-up")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
