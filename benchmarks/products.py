"""The linear layers of a step by the number of its tokens: the engine's way and other ways.

    python benchmarks/products.py --tokens 1 4 8 16 20 32 64 128 --repeats 5

All linear layers of a base model, the output layer included, are computed one after the other, as a
step does, so that weights come from memory and not from a cache. By

- ``engine``: what the engine does (``inference/linear/few_tokens.py``);
- ``whole``: one product with each weight as it is;
- ``turned``: one product with a copy of each weight in the order [in, out];
- ``onednn_packed``, ``mkl_packed``: products with copies in the libraries' own orders.

The last three take the weights' bytes again. Sides take turns; each runs once before it is
measured. The program fails if outputs differ by more than rounding. Prints one line of JSON: CPU
milliseconds, and how many times less the others take than the engine.
"""

from __future__ import annotations

import argparse
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

from luthier.adapters.module_tree import own_module_tree
from luthier.inference.linear.few_tokens import quicken_few_tokens
from luthier.resources.base_model import BaseModel

#: Gives a layer's output for its input, without the bias.
Product = Callable[[torch.Tensor], torch.Tensor]
ENGINE = "engine"
#: Tokens that packed weights are meant for; the libraries ask.
_PACKED_FOR = 32
_TOLERANCE = 1e-4


def whole(layer: nn.Linear) -> Product:
    """The weight as it is."""
    return lambda x: nn.functional.linear(x, layer.weight)


def turned(layer: nn.Linear) -> Product:
    """A copy in the order [in, out]."""
    weight = layer.weight.t().contiguous()
    return lambda x: torch.mm(x, weight)


def onednn_packed(layer: nn.Linear) -> Product:
    """A copy in oneDNN's order."""
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight, _PACKED_FOR)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def mkl_packed(layer: nn.Linear) -> Product:
    """A copy in MKL's order."""
    weight = torch.ops.mkl._mkl_reorder_linear_weight(layer.weight, _PACKED_FOR)
    return lambda x: torch.ops.mkl._mkl_linear(x, weight, layer.weight, None, len(x))


OTHERS: dict[str, Callable[[nn.Linear], Product]] = {
    each.__name__: each for each in (whole, turned, onednn_packed, mkl_packed)
}


def make_sides(base: BaseModel, names: list[str]) -> dict[str, list[Product]]:
    """The products of a step, in its order."""
    tree = own_module_tree(base.model)
    quicken_few_tokens(tree)
    layers = [each for each in tree.modules() if isinstance(each, nn.Linear)]
    sides: dict[str, list[Product]] = {ENGINE: [_without_bias(each) for each in layers]}
    return sides | {name: [OTHERS[name](each) for each in layers] for name in names}


def _without_bias(layer: nn.Linear) -> Product:
    layer.bias = None  # type: ignore[assignment]  # of a tree of its own
    return layer


def run(products: list[Product], inputs: list[torch.Tensor]) -> float:
    """CPU seconds of a step's products."""
    started = time.thread_time()
    for product, x in zip(products, inputs, strict=True):
        product(x)
    return time.thread_time() - started


def compare(
    base: BaseModel, sides: dict[str, list[Product]], *, tokens: int, repeats: int
) -> dict[str, object]:
    """All sides on one number of tokens."""
    widths = [e.in_features for e in base.model.modules() if isinstance(e, nn.Linear)]
    by_width = {width: torch.randn(tokens, width) for width in set(widths)}
    inputs = [by_width[width] for width in widths]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, products in sides.items():
            run(products, inputs)
            seconds[name].append(run(products, inputs))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "tokens": tokens,
        "cpu_milliseconds": {name: round(1e3 * value, 1) for name, value in medians.items()},
        "times_less_than_engine": {
            name: round(
                statistics.median(e / o for e, o in zip(seconds[ENGINE], values, strict=True)), 2
            )
            for name, values in seconds.items()
            if name != ENGINE
        },
        "largest_difference": max(
            largest_difference(sides[ENGINE], products, inputs) for products in sides.values()
        ),
    }


def largest_difference(
    some: list[Product], others: list[Product], inputs: list[torch.Tensor]
) -> float:
    """Between two sides, relative to the largest number of a layer's output."""
    found = 0.0
    for one, other, x in zip(some, others, inputs, strict=True):
        expected = one(x)
        found = max(found, float((other(x) - expected).abs().max() / expected.abs().max()))
    return found


def main() -> int:
    """Measure and print the JSON; 1 if outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser, "--base-model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8, 16, 20, 32, 64, 128])
    parser.add_argument("--sides", nargs="+", choices=list(OTHERS), default=list(OTHERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = load_base(arguments.base_model, is_tiny=arguments.tiny)
    with torch.inference_mode():
        sides = make_sides(base, arguments.sides)
        results = [
            compare(base, sides, tokens=tokens, repeats=arguments.repeats)
            for tokens in arguments.tokens
        ]
    is_same = all(float(str(each["largest_difference"])) < _TOLERANCE for each in results)
    report = {
        "benchmark": "products",
        "command": " ".join(["python", *sys.argv]),
        "machine": describe_machine(),
        "same_outputs": is_same,
        "results": results,
    }
    print(json.dumps(report))
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
