"""What another adapter for every request costs: LoRAs and soft prompts in one batch.

    python benchmarks/serving_adapters.py --requests 32 --repeats 3

The same prompts (greedy, lengths fixed beforehand, all there at once) go to

- ``bare``: the engine, without any adapter;
- ``mixed_qv``, ``mixed_all``: the engine, another adapter for each request: LoRAs of ranks 4 to 64
  on q,v or on all linear layers, every fourth a soft prompt of 8 to 100 tokens;
- ``lora_qv``, ``lora_all``: likewise, LoRAs only;
- ``peft_mixed``: PEFT's ``generate`` with ``adapter_names``, padded batches of 8 (``--with-peft``);
- ``peft_switching``: PEFT's ``set_adapter`` before each request (``--with-peft``);
- ``one_qv``, ``one_all``, instead of all these (``--one-adapter``): one LoRA for all requests, of
  rank 8 on q,v and of rank 16 on all linear layers, never merged;
- ``merged_qv``, ``merged_all``: likewise, by an engine that has merged it.

Each repeat runs them in turns. The program fails if the engine's tokens differ from those of PEFT
with one adapter at a time, or merged ones from unmerged ones. Prints one line of JSON; on a shared
machine read the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

sys.path.insert(0, str(Path(__file__).resolve().parent))

from base_models import add_model_options, load_base
from machine import describe_machine
from serving import (
    BATCH_SIZE,
    Answers,
    Timings,
    make_requests,
    measure,
    rates,
    run_engine,
    soft_prompts,
)

from luthier.adapters.base import Adapter
from luthier.adapters.lora.building import create_lora
from luthier.adapters.lora.lora import LoraAdapter
from luthier.adapters.module_tree import own_module_tree
from luthier.adapters.storage import save_adapter
from luthier.data_model.options.lora import LoraConfig
from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import Engine, GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.inference.registry import close_all, engine_for
from luthier.resources.base_model import BaseModel

RANKS = (4, 8, 16, 32, 64)
PROMPT_LENGTHS = (8, 16, 24, 32, 48, 64, 80, 100)
TARGETS = {"qv": ("q_proj", "v_proj"), "all": None}
BARE = "bare"
#: Of the one LoRA for all requests.
ONE_RANK = {"qv": 8, "all": 16}


def make_loras(
    base: BaseModel,
    count: int,
    *,
    targets: str,
    ranks: Sequence[int] = RANKS,
    factors_in: torch.dtype = torch.float32,
) -> list[LoraAdapter]:
    """Random ones, strong enough to change what the model says; numbers of ``factors_in``."""
    made = []
    for index in range(count):
        config = LoraConfig(rank=ranks[index % len(ranks)], target_modules=TARGETS[targets])
        adapter = create_lora(base.model, config, seed=index)
        generator = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for factors in adapter.factors.values():
                noise = torch.randn(factors.lora_b.shape, generator=generator)
                factors.lora_b.copy_(noise * (0.02 / config.rank**0.5))
                for tensor in (factors.lora_a, factors.lora_b):
                    tensor.copy_(tensor.to(factors_in))
        made.append(adapter)
    return made


def with_soft_prompts(base: BaseModel, loras: list[LoraAdapter]) -> list[Adapter]:
    """Every fourth one replaced by a soft prompt."""
    lengths = [PROMPT_LENGTHS[index % len(PROMPT_LENGTHS)] for index in range(len(loras) // 4)]
    prompts = [prompt for prompt in soft_prompts(base, lengths) if prompt is not None]
    mixed: list[Adapter] = list(loras)
    mixed[3::4] = prompts[: len(mixed[3::4])]
    return mixed


def each_to(
    requests: list[GenerationRequest], adapters: list[Any], *, load: str = ""
) -> list[GenerationRequest]:
    """The same requests to these adapters.

    Each load is a tenant of its own: what was computed of a prompt is shared within tenants, and
    two loads have the same prompts for the same adapter. Soft prompts are shared by all.
    """
    pairs = zip(requests, adapters, strict=True)
    return [replace(request, adapter=adapter, tenant=load) for request, adapter in pairs]


def warm_up(engine: Engine, requests: list[GenerationRequest], adapters: list[Any]) -> None:
    """Let adapters be loaded and soft prompts be computed."""
    one = SamplingParams(max_new_tokens=1)
    short = [replace(r, input_ids=r.input_ids[:2], sampling=one) for r in requests]
    for stream in [engine.submit(request) for request in each_to(short, adapters)]:
        list(stream)


def merging_engine(base: BaseModel) -> Engine:
    """One that merges an adapter as soon as it can."""
    options = EngineOptions(merge_after_steps=1, max_merged_bytes=4 << 30)
    return BatchedEngine(base, options)


class PeftSide:
    """PEFT with every adapter loaded beside one base.

    Args:
        base: Its weights are shared, its layers are not.
        adapters: One for each request.
    """

    def __init__(self, base: BaseModel, adapters: list[LoraAdapter]) -> None:
        self._base = base
        self._model: Any = None
        with tempfile.TemporaryDirectory() as folder:
            for index, adapter in enumerate(adapters):
                path = Path(folder) / str(index)
                save_adapter(adapter, path, base_model_name=base.name)
                name = f"a{index}"
                if self._model is None:
                    tree = own_module_tree(base.model)
                    self._model = PeftModel.from_pretrained(tree, str(path), adapter_name=name)
                else:
                    self._model.load_adapter(str(path), adapter_name=name)
        self._model.eval()

    def switching(self, requests: list[GenerationRequest]) -> Answers:
        """One request after another, its adapter switched on before."""
        answers: Answers = []
        for index, request in enumerate(requests):
            self._model.set_adapter(f"a{index}")
            answers += self._generate([request])
        return answers

    def mixed(self, requests: list[GenerationRequest]) -> Answers:
        """Padded batches whose rows have adapters of their own."""
        answers: Answers = []
        for first in range(0, len(requests), BATCH_SIZE):
            batch = requests[first : first + BATCH_SIZE]
            names = [f"a{first + row}" for row in range(len(batch))]
            answers += self._generate(batch, adapter_names=names)
        return answers

    def _generate(self, requests: list[GenerationRequest], **arguments: Any) -> Answers:
        width = max(len(request.input_ids) for request in requests)
        ids = torch.full((len(requests), width), self._base.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, width - len(request.input_ids) :] = torch.tensor(request.input_ids)
            mask[row, width - len(request.input_ids) :] = 1
        num_new = max(request.sampling.max_new_tokens for request in requests)
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            pad_token_id=self._base.pad_token_id,
            **arguments,
        )[:, width:].tolist()
        pairs = zip(output, requests, strict=True)
        return [row[: request.sampling.max_new_tokens] for row, request in pairs]


def main() -> int:
    """Run everything; 1 if tokens differ."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    base = load_base(arguments.base_model, is_tiny=arguments.tiny)
    engine = engine_for(base, options=EngineOptions(max_adapter_bytes=4 << 30, merge_after_steps=0))
    adapters: dict[str, list[Any]] = {BARE: [None] * arguments.requests}
    peft_sides: dict[str, PeftSide] = {}
    engines: dict[str, Engine] = {}
    for targets in arguments.targets:
        if arguments.one_adapter:
            (lora,) = make_loras(base, 1, targets=targets, ranks=[ONE_RANK[targets]])
            for name in (f"one_{targets}", f"merged_{targets}"):
                adapters[name] = [lora] * arguments.requests
            engines[f"merged_{targets}"] = merging_engine(base)
            continue
        factors_in = getattr(torch, arguments.factors)
        loras = make_loras(base, arguments.requests, targets=targets, factors_in=factors_in)
        adapters[f"mixed_{targets}"] = with_soft_prompts(base, loras)
        adapters[f"lora_{targets}"] = list(loras)
        if arguments.with_peft:
            peft_sides[targets] = PeftSide(base, loras)
    timings = {name: Timings() for name in adapters}
    for targets in peft_sides:
        timings |= {f"peft_{way}_{targets}": Timings() for way in ("mixed", "switching")}
    for name, each in adapters.items():
        warm_up(engines.get(name, engine), make_requests(base, arguments, [None], turn=-1), each)
    agreement: dict[str, float] = {}
    for turn in range(arguments.repeats):
        bare = make_requests(base, arguments, [None], turn=turn)
        answers: dict[str, Answers] = {}
        for name, each in adapters.items():
            requests, own = each_to(bare, each, load=name), timings[name]
            runner = engines.get(name, engine)
            answers[name] = measure(lambda e=runner, r=requests, t=own: run_engine(e, r, t), own)
        for name in engines:
            same = [
                a == b
                for a, b in zip(
                    answers[name], answers[f"one_{name.rpartition('_')[2]}"], strict=True
                )
            ]
            agreement[name] = min(agreement.get(name, 1.0), round(sum(same) / len(same), 3))
        for targets, side in peft_sides.items():
            for way, run in (("mixed", side.mixed), ("switching", side.switching)):
                name = f"peft_{way}_{targets}"
                answers[name] = measure(lambda f=run, r=bare: f(r), timings[name])
            reference = answers[f"peft_switching_{targets}"]
            for name in (f"lora_{targets}", f"peft_mixed_{targets}"):
                same = [a == b for a, b in zip(answers[name], reference, strict=True)]
                agreement[name] = min(agreement.get(name, 1.0), round(sum(same) / len(same), 3))
    num_tokens = sum(request.sampling.max_new_tokens for request in bare)
    result = {
        "benchmark": "serving_adapters",
        "machine": describe_machine(),
        "command": " ".join(sys.argv),
        "requests": len(bare),
        "generated_tokens": num_tokens,
        "same_greedy_tokens_as_one_adapter_at_a_time": agreement,
        "tokens_per_cpu_second": rates(timings, num_tokens, "cpu"),
        "tokens_per_second": rates(timings, num_tokens, "wall"),
        "share_of_bare_cpu": shares(timings, "cpu"),
        "share_of_bare_wall": shares(timings, "wall"),
        "times_peft_cpu": times_peft(timings, "cpu"),
        "times_peft_wall": times_peft(timings, "wall"),
    }
    print(json.dumps(result))
    for each_engine in engines.values():
        each_engine.close()
    close_all()
    return 0 if all(agreement[name] == 1.0 for name in agreement if "peft" not in name) else 1


def shares(timings: dict[str, Timings], clock: str) -> dict[str, float]:
    """Throughput of each load over that of the bare base: the median of the repeats' ratios."""
    bare = getattr(timings[BARE], clock)
    return {
        name: round(
            statistics.median(b / o for b, o in zip(bare, getattr(each, clock), strict=True)), 3
        )
        for name, each in timings.items()
        if name.startswith(("mixed", "lora", "one", "merged"))
    }


def times_peft(timings: dict[str, Timings], clock: str) -> dict[str, float]:
    """How many times faster LoRAs only are than the same with PEFT."""
    ratios = {}
    for name, each in timings.items():
        if name.startswith("peft"):
            ours = getattr(timings[f"lora_{name.rpartition('_')[2]}"], clock)
            theirs = getattr(each, clock)
            ratios[name] = round(statistics.median(theirs) / statistics.median(ours), 2)
    return ratios


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser, "--base-model")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--longest-answer", type=int, default=128)
    parser.add_argument(
        "--factors", choices=("float32", "bfloat16", "float16"), default="float32",
        help="what LoRAs were saved in: those of 16 bits are held in as many",
    )  # fmt: skip
    parser.add_argument("--one-adapter", action="store_true", help="for all requests")
    parser.add_argument("--with-peft", action="store_true", help="takes minutes")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
