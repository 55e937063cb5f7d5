"""How much of what this processor can do a training step does, in GFLOP/s of useful products.

    python benchmarks/training_peak.py --methods lora_qv --data ../shared/data/gsm8k_train.jsonl

Useful are the products with the base model's weights that the tokens of rows need, forward and
backward, and with the output layer those of labels; attention and the adapter's own products take
time and do not count. The peak is that of the best of some products of fp32 matrices. Beside it
stands what the step's own products give alone, one after the other, as if nothing stood between
them. All are measured in turns, in CPU seconds of this process. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from base_models import add_model_options, load_base
from machine import describe_machine
from training import make_task
from training_sides import METHODS, Task, make_adapter, make_batches

from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import TokenBatch, collate
from luthier.training.data.packing import pack_rows
from luthier.training.learner import Learner, MicroBatch
from luthier.training.optimization.updater import Updater
from luthier.training.processes.memory_reuse import memory_kept

#: Rows, inner size and columns of the products that are tried for the peak.
_PEAK_SHAPES = ((1024, 576, 1536), (1024, 1536, 576), (2048, 2048, 2048))


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    args = _parse(arguments)
    torch.set_num_threads(args.threads)
    base_model = load_base(args.model, is_tiny=args.tiny)
    results = [_measure(base_model, make_task(method, args), args) for method in args.methods]
    report = {
        "benchmark": "training_peak",
        "command": " ".join(["python", *sys.argv]),
        "machine": describe_machine(),
        "model": "tiny" if args.tiny else args.model,
        "data": [path.name for path in args.data] or "made up",
        "batch_size": args.batch_size,
        "repeats": args.repeats,
        "results": results,
    }
    print(json.dumps(report))
    return 0


def _measure(base_model: BaseModel, task: Task, args: argparse.Namespace) -> dict[str, object]:
    adapter = make_adapter(task, base_model)
    learner = Learner(base_model, adapter, task.options)
    updater = Updater(adapter, task.options)
    (examples, *_) = make_batches(task, base_model)
    batch = collate(
        examples,
        pad_token_id=base_model.pad_token_id,
        is_seq2seq=False,
        device=torch.device("cpu"),
    )
    micro_batch = MicroBatch(learner, batch, batch.num_label_tokens, 0)

    def step() -> None:
        micro_batch.backward()
        updater.update(task.options.learning_rate, updater.gradient_norm())

    num_virtual_tokens = args.virtual_tokens if task.method == "prompt_tuning" else 0
    products, flops = _products(base_model, batch, num_virtual_tokens, task.method)
    with updater.requiring_gradients(), memory_kept():
        step()
        seconds = [(_peak(), _seconds(products), _seconds(step)) for _ in range(args.repeats)]
    peak = max(best for best, _, _ in seconds)
    alone = flops / statistics.median(each for _, each, _ in seconds) / 1e9
    rate = flops / statistics.median(each for _, _, each in seconds) / 1e9
    return {
        "method": task.method,
        "useful_gflop_per_step": round(flops / 1e9, 1),
        "peak_gflop_per_second": round(peak, 1),
        "products_alone_gflop_per_second": round(alone, 1),
        "step_gflop_per_second": round(rate, 1),
        "share_of_peak": round(rate / peak, 3),
        "share_of_products_alone": round(rate / alone, 3),
        "step_cpu_seconds": [round(each, 3) for _, _, each in seconds],
    }


def _products(
    base_model: BaseModel, batch: TokenBatch, num_virtual_tokens: int, method: str
) -> tuple[Callable[[], None], float]:
    """A step's products with the base model's weights, and their floating point operations."""
    packed = pack_rows(batch, num_virtual_tokens=num_virtual_tokens)
    assert packed is not None
    head = base_model.model.get_output_embeddings()
    layers = [each for each in base_model.model.modules() if isinstance(each, nn.Linear)]
    weights = [each.weight.detach() for each in layers if each is not head]
    num_tokens, num_labels = packed.position_ids.shape[1], len(packed.labels)
    sides = [(weight, num_tokens) for weight in weights]
    sides.append((head.weight.detach(), num_labels))
    learns_weights = method == "full_fine_tuning"
    flops = sum(
        2.0 * rows * weight.numel() * (3 if learns_weights else 2) for weight, rows in sides
    )
    sizes = {(rows, size) for weight, rows in sides for size in weight.shape}
    read = {size: torch.randn(size) for size in sizes}
    written = {size: torch.empty(size) for size in sizes}

    def products() -> None:
        for weight, rows in sides:
            inputs, grads = (rows, weight.shape[1]), (rows, weight.shape[0])
            torch.mm(read[inputs], weight.T, out=written[grads])
            torch.mm(read[grads], weight, out=written[inputs])
            if learns_weights:
                torch.mm(read[grads].T, read[inputs])

    products()
    return products, flops


def _peak() -> float:
    """GFLOP/s of the best product."""
    best = 0.0
    for rows, inner, columns in _PEAK_SHAPES:
        left, right = torch.randn(rows, inner), torch.randn(columns, inner)
        out = torch.empty(rows, columns)
        for _ in range(8):
            took = _seconds(functools.partial(torch.mm, left, right.T, out=out))
            best = max(best, 2.0 * rows * inner * columns / took / 1e9)
    return best


def _seconds(what: Callable[[], object]) -> float:
    start = time.process_time()
    what()
    return time.process_time() - start


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser, "--model")
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="as in training.py")
    parser.add_argument("--batch-size", type=int, default=8, help="rows of the step")
    parser.add_argument("--virtual-tokens", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["lora_qv"])
    args = parser.parse_args(arguments)
    args.rows = args.batch_size
    return args


if __name__ == "__main__":
    sys.exit(main())
