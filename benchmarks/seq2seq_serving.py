"""Tokens per second of serving an encoder-decoder model: Luthier's engine against ``generate``.

    python benchmarks/seq2seq_serving.py --requests 24 --repeats 2

The model is a random T5 of t5-small's size (d_model 512, 6 + 6 layers, vocabulary of 32,128; with
``--tiny`` a very small one). The same requests (greedy, lengths fixed beforehand, all there at
once) are answered by

- ``sequential_generate``: transformers' ``generate``, one after another;
- ``static_batches``: ``generate`` on padded batches of 8, each as slow as its longest row;
- ``luthier``: the engine, all submitted at once.

Each repeat runs them in turns. The program fails if the engine's tokens differ from those of
``generate``. Prints one line of JSON; CPU seconds are of the whole process.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import T5Config, T5ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import describe_machine
from serving import BATCH_SIZE, OURS, Answers, Timings, measure, rates, ratios, run_engine
from tiny_model import make_tiny_base

from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import GenerationRequest
from luthier.inference.registry import close_all, engine_for
from luthier.resources.base_model import BaseModel

#: So that a random model looks at its input and does not say one token for ever; more of ``q``, and
#: rounding alone decides which token wins.
_GAINS = {"EncDecAttention.o": 3.0, ".q": 1.0, "DenseReluDense": 1.5}


def make_base(*, is_tiny: bool) -> BaseModel:
    """A random T5, its matrices scaled so that answers depend on prompts."""
    sizes = {} if is_tiny else {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_heads": 8}
    tiny = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4} if is_tiny else {}
    config = T5Config(
        vocab_size=400 if is_tiny else 32128,
        num_layers=2 if is_tiny else 6,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        **sizes,
        **tiny,
    )
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config)
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Embedding):
            torch.nn.init.normal_(layer.weight)
        elif isinstance(layer, torch.nn.Linear):
            gain = next((gain for part, gain in _GAINS.items() if part in name), 1.5)
            torch.nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5)
    return BaseModel.from_memory(model, make_tiny_base().tokenizer, name="random-t5")


def make_requests(base: BaseModel, arguments: argparse.Namespace) -> list[GenerationRequest]:
    """Random prompts of 20 to 200 tokens, answers of 16 to 128; none ends early."""
    rng = random.Random(arguments.seed)
    longest_prompt, longest_answer = (40, 16) if arguments.tiny else (200, 128)
    requests = []
    for _ in range(arguments.requests):
        ids = (rng.randrange(10, base.vocab_size) for _ in range(rng.randint(20, longest_prompt)))
        num_new = rng.randint(min(16, longest_answer), longest_answer)
        sampling = SamplingParams(max_new_tokens=num_new, min_new_tokens=num_new)
        requests.append(GenerationRequest(tuple(ids), sampling))
    return requests


def run_generate(base: BaseModel, requests: list[GenerationRequest], *, size: int) -> Answers:
    """``generate`` on batches of ``size`` rows padded on the right."""
    answers: Answers = []
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]
        width = max(len(request.input_ids) for request in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            ids[row, : len(request.input_ids)] = torch.tensor(request.input_ids)
            mask[row, : len(request.input_ids)] = 1
        num_new = max(request.sampling.max_new_tokens for request in batch)
        output = base.model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            num_beams=1,
            max_new_tokens=num_new,
            min_new_tokens=num_new,
        )[:, 1:].tolist()
        pairs = zip(output, batch, strict=True)
        answers += [row[: request.sampling.max_new_tokens] for row, request in pairs]
    return answers


def main() -> int:
    """Run everything; 1 if tokens differ."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    base = make_base(is_tiny=arguments.tiny)
    engine = engine_for(base)
    requests = make_requests(base, arguments)
    timings = {name: Timings() for name in ("sequential_generate", "static_batches", OURS)}
    runs: dict[str, Callable[[], Answers]] = {
        "sequential_generate": lambda: run_generate(base, requests, size=1),
        "static_batches": lambda: run_generate(base, requests, size=BATCH_SIZE),
        OURS: lambda: run_engine(engine, requests, timings[OURS]),
    }
    agreement: dict[str, float] = {}
    for _ in range(arguments.repeats):
        answers = {name: measure(run, timings[name]) for name, run in runs.items()}
        for name, given in answers.items():
            pairs = zip(given, answers["sequential_generate"], strict=True)
            agreement[name] = sum(a == b for a, b in pairs) / len(requests)
    num_tokens = sum(request.sampling.max_new_tokens for request in requests)
    result = {
        "benchmark": "seq2seq_serving",
        "machine": describe_machine(),
        "command": " ".join(sys.argv),
        "parameters": sum(parameter.numel() for parameter in base.model.parameters()),
        "engine": type(engine).__name__,
        "requests": len(requests),
        "prompt_tokens": sum(len(request.input_ids) for request in requests),
        "generated_tokens": num_tokens,
        "different_answers": len({tuple(answer) for answer in answers[OURS]}),
        "same_greedy_tokens": agreement,
        "tokens_per_cpu_second": rates(timings, num_tokens, "cpu"),
        "tokens_per_second": rates(timings, num_tokens, "wall"),
        "ratio_cpu": ratios(timings, "cpu"),
        "ratio_wall": ratios(timings, "wall"),
        "streams": timings[OURS].streams,
    }
    print(json.dumps(result))
    close_all()
    return 0 if agreement[OURS] == 1.0 else 1


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a very small model: a smoke run")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
