"""What guessing tokens gives (``inference.prompt_lookup_tokens``): CPU seconds with and without it.

    python benchmarks/guessing.py --rows 1 4 8 --tokens 12 --repeats 3
    python benchmarks/guessing.py --prompts prompts.jsonl      # lines of {"kind": ..., "text": ...}

Two engines on one base model answer the same prompts in turns, as many at a time as there are rows:
texts to copy, to correct and to summarise, and questions whose answers copy nothing; greedily and
drawn with seeds. Both must give the same tokens. Prints one line of JSON: by rows and kind, how
many times less CPU time guessing takes. On a shared machine these ratios are what to read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from base_models import add_model_options, load_base
from machine import describe_machine

from luthier.data_model.sampling import SAMPLING, SamplingParams
from luthier.inference.base import GenerationRequest
from luthier.inference.batched_engine import BatchedEngine
from luthier.inference.options import EngineOptions
from luthier.resources.base_model import BaseModel

ROOT = Path(__file__).resolve().parents[1]
TASKS = {
    "copy": "Repeat this text word for word:\n\n",
    "correct": "Correct the grammar of this text, change nothing else:\n\n",
    "summarise": "Summarize this text in two sentences:\n\n",
}
QUESTIONS = (
    "Write a short story about the sea.",
    "How do I find the card that I lost?",
    "A train goes 60 miles in an hour and a half. How far does it go in four hours?",
    "What should I think of before I buy a dog?",
    "Explain how bread is made.",
    "Why is the sky blue?",
    "Give me a plan for a weekend in Rome.",
    "Write a poem about two friends.",
)
SIDES = ("plain", "guessing")


def prompts_by_kind(path: str | None, num_each: int) -> dict[str, list[str]]:
    """The texts of a file, or the project's own."""
    found: dict[str, list[str]] = {}
    if path is not None:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            found.setdefault(entry["kind"], []).append(entry["text"])
        return {kind: texts[:num_each] for kind, texts in found.items()}
    document = (ROOT / "docs/generation.md").read_text(encoding="utf-8")
    texts = [each for each in document.split("\n\n") if 300 < len(each) < 900 and "|" not in each]
    found = {kind: [task + text for text in texts[:num_each]] for kind, task in TASKS.items()}
    return {**found, "question": list(QUESTIONS[:num_each])}


def encode(base: BaseModel, text: str) -> tuple[int, ...]:
    """A prompt as a conversation, where the model knows such."""
    if base.tokenizer.chat_template is None:
        return tuple(base.tokenizer(text)["input_ids"])
    messages = [{"role": "user", "content": text}]
    encoded = base.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True
    )
    return tuple(encoded["input_ids"])


def answer(engine: BatchedEngine, requests: list[GenerationRequest]) -> list[list[int]]:
    """The tokens of requests that run side by side."""
    streams = [engine.submit(request) for request in requests]
    return [[token.token_id for chunk in each for token in chunk.tokens] for each in streams]


def compare(
    engines: dict[str, BatchedEngine], requests: list[GenerationRequest], rows: int, repeats: int
) -> dict[str, Any]:
    """One kind of prompts, so many at a time, on both sides in turns."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    num_tokens = 0
    for turn in range(repeats + 1):
        told = {}
        for side, engine in engines.items():
            before = time.process_time()
            told[side] = [
                tokens
                for first in range(0, len(requests), rows)
                for tokens in answer(engine, requests[first : first + rows])
            ]
            if turn:  # the first turn warms up, and the prompts are known afterwards
                seconds[side].append(time.process_time() - before)
        if told["plain"] != told["guessing"]:
            raise SystemExit("guessing changed the tokens")
        num_tokens = sum(map(len, told["plain"]))
    medians = {side: statistics.median(seconds[side]) for side in SIDES}
    return {
        "tokens": num_tokens,
        "cpu_ms_per_token": {side: round(1e3 * medians[side] / num_tokens, 2) for side in SIDES},
        "times_less": round(medians["plain"] / medians["guessing"], 2),
    }


def measure(base: BaseModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """All numbers of rows, kinds of prompts and ways to choose tokens."""
    options = {
        "plain": EngineOptions(prompt_lookup_tokens=0),
        "guessing": EngineOptions(
            prompt_lookup_tokens=arguments.tokens, prompt_lookup_max_rows=max(arguments.rows)
        ),
    }
    ways = {
        "greedy": SamplingParams(max_new_tokens=arguments.new),
        "drawn": SamplingParams(
            max_new_tokens=arguments.new,
            decoding_method=SAMPLING,
            seed=7,
            temperature=0.7,
            top_p=0.9,
        ),
    }
    prompts = {
        kind: [encode(base, text) for text in texts]
        for kind, texts in prompts_by_kind(arguments.prompts, arguments.each).items()
    }
    engines = {side: BatchedEngine(base, options[side]) for side in SIDES}
    try:
        return {
            way: {
                rows: {
                    kind: compare(
                        engines,
                        [GenerationRequest(each, ways[way]) for each in ids],
                        rows,
                        arguments.repeats,
                    )
                    for kind, ids in prompts.items()
                }
                for rows in arguments.rows
            }
            for way in arguments.ways
        }
    finally:
        for engine in engines.values():
            engine.close()


def main() -> None:
    """Measure and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser, "--base-model")
    parser.add_argument("--prompts", help="file of prompts; the project's own texts if absent")
    parser.add_argument("--each", type=int, default=8, help="prompts of each kind, at most")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--ways", nargs="+", default=["greedy", "drawn"])
    parser.add_argument("--tokens", type=int, default=12, help="guesses of a row and step, at most")
    parser.add_argument("--new", type=int, default=96, help="tokens of each answer, at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = measure(load_base(arguments.base_model, is_tiny=arguments.tiny), arguments)
    report = {
        "benchmark": "guessing",
        "command": " ".join(["python", *sys.argv]),
        "machine": describe_machine(),
        **results,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
