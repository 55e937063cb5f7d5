"""Time to the first token with a soft prompt: its keys and values shared, or computed again.

    python benchmarks/first_token.py --virtual-tokens 100 --prompts 5 10 20 40 80 160 --repeats 7

One request at a time for one token, greedy, with new words every time, so that nothing but the soft
prompt can be shared. Each prompt length goes, in turns, to

- ``shared``: the engine, which has seen the soft prompt before;
- ``recomputed``: an engine that keeps nothing;
- ``peft``: PEFT's ``generate``, which feeds the soft prompt with every request.

The program fails if the first tokens differ. Prints one line of JSON: the medians of the repeats
and their ratios; on a shared machine read the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

sys.path.insert(0, str(Path(__file__).resolve().parent))

from base_models import add_model_options, load_base
from machine import describe_machine
from serving import Timings, measure, soft_prompts

from luthier.adapters.module_tree import own_module_tree
from luthier.adapters.prompts.soft_prompt import SoftPrompt
from luthier.adapters.storage import save_adapter
from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import Engine, GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.resources.base_model import BaseModel

SHARED, RECOMPUTED, PEFT = "shared", "recomputed", "peft"
#: Answers one prompt: its first tokens, of one row.
Side = Callable[[tuple[int, ...]], list[list[int]]]


def engine_side(engine: Engine, adapter: SoftPrompt) -> Side:
    """One request to an engine."""
    sampling = SamplingParams(max_new_tokens=1)

    def answer(ids: tuple[int, ...]) -> list[list[int]]:
        chunks = engine.submit(GenerationRequest(ids, sampling, adapter))
        return [[token.token_id for chunk in chunks for token in chunk.tokens]]

    return answer


def peft_side(base: BaseModel, adapter: SoftPrompt) -> Side:
    """``generate`` of the same adapter, read by PEFT."""
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(adapter, Path(folder) / "adapter", base_model_name=base.name)
        tree = own_module_tree(base.model)
        model: Any = PeftModel.from_pretrained(tree, str(Path(folder) / "adapter")).eval()

    def answer(ids: tuple[int, ...]) -> list[list[int]]:
        row = torch.tensor([ids])
        output = model.generate(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            do_sample=False,
            max_new_tokens=1,
            pad_token_id=base.pad_token_id,
        )
        return [output[0, -1:].tolist()]

    return answer


def main() -> int:
    """Run everything; 1 if first tokens differ."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    base = load_base(arguments.base_model, is_tiny=arguments.tiny)
    (_, adapter) = soft_prompts(base, [arguments.virtual_tokens])
    assert adapter is not None
    engines = {
        SHARED: BatchedEngine(base),
        RECOMPUTED: BatchedEngine(base, EngineOptions(max_prefix_bytes=0)),
    }
    sides = {name: engine_side(engine, adapter) for name, engine in engines.items()}
    sides[PEFT] = peft_side(base, adapter)
    words = random.Random(arguments.seed)
    by_length: dict[str, Any] = {}
    is_same = True
    for length in arguments.prompts:
        timings = {name: Timings() for name in sides}
        for repeat in range(-1, arguments.repeats):  # the first one warms up
            ids = tuple(words.randrange(10, base.vocab_size) for _ in range(length))
            own = timings if repeat >= 0 else {name: Timings() for name in sides}
            answers = [
                measure(lambda s=side, i=ids: s(i), own[name]) for name, side in sides.items()
            ]
            is_same = is_same and all(answer == answers[0] for answer in answers)
        by_length[str(length)] = compared(timings)
    result = {
        "benchmark": "first_token",
        "machine": describe_machine(),
        "command": " ".join(sys.argv),
        "virtual_tokens": arguments.virtual_tokens,
        "same_first_tokens": is_same,
        "by_prompt_tokens": by_length,
    }
    print(json.dumps(result))
    for engine in engines.values():
        engine.close()
    return 0 if is_same else 1


def compared(timings: dict[str, Timings]) -> dict[str, float]:
    """Medians, and the medians of the repeats' ratios: shared over each of the others."""
    result: dict[str, float] = {}
    for clock in ("cpu", "wall"):
        seconds = {name: getattr(each, clock) for name, each in timings.items()}
        for name, values in seconds.items():
            result[f"{name}_{clock}_seconds"] = round(statistics.median(values), 4)
        for name in (RECOMPUTED, PEFT):
            ratios = [s / o for s, o in zip(seconds[SHARED], seconds[name], strict=True)]
            result[f"shared_over_{name}_{clock}"] = round(statistics.median(ratios), 3)
    return result


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser, "--base-model")
    parser.add_argument("--virtual-tokens", type=int, default=100)
    parser.add_argument("--prompts", type=int, nargs="+", default=[5, 10, 20, 40, 80, 160])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
