"""Learn a source prompt from two tasks, then start a third task from it.

    python examples/multitask_source_prompts/main.py

A source prompt holds what several tasks share (`prompt_embeddings`) and, per task, a rank-one
matrix that is multiplied onto it (`prefix_task_cols` times `prefix_task_rows`). A new task starts
from it with `AVERAGE_SOURCE`: the shared prompt times the mean of the tasks' matrices.
Wang et al. 2023, https://arxiv.org/abs/2303.02861
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import luthier

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_model import make_tiny_model

NUM_VIRTUAL_TOKENS = 8
INTENTS = ["delivery", "payment", "repair", "account"]
TRAINING = {
    "tuning_type": "MULTITASK_PROMPT_TUNING",
    "learning_rate": 0.05,
    "batch_size": 4,
    "accumulate_steps": 1,
}


def rows(question: str) -> list[dict[str, str]]:
    """Sixteen records of a task: the same four answers, asked for in the task's own words.

    Args:
        question: With a place for the intent.

    Returns:
        Records.
    """
    return [
        {"input": f"{number}. {question.format(intent)}", "output": intent}
        for number in range(4)
        for intent in INTENTS
    ]


SOURCE_TASKS = [rows("The customer writes about {}."), rows("Subject: {}, please help")]
TARGET_TASK = rows("A question on {} came in.")


def main() -> None:
    """Two source tasks, one source prompt, one target task started in two ways."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sources = root / "source_prompts"
        sources.mkdir()
        os.environ["BASE_MODELS_DIR"] = folder
        os.environ["SOURCE_PROMPT_BASE"] = str(sources)
        make_tiny_model(root / "tiny")
        save_file(learn_source_prompt(root), sources / "intents.safetensors")
        print("source prompt:", {n: list(t.shape) for n, t in load_source(sources).items()})

        from_nothing = first_loss({"prompt_tuning_init_method": "RANDOM"})
        from_source = first_loss(
            {
                "prompt_tuning_init_method": "AVERAGE_SOURCE",
                "prompt_tuning_init_source_model": "intents.safetensors",
            }
        )
    print(f"first loss of the new task: {from_nothing:.2f} from nothing, {from_source:.2f} from it")
    if from_source >= from_nothing:
        sys.exit("the source prompt did not help")


def learn_source_prompt(root: Path) -> dict[str, torch.Tensor]:
    """Tune the source tasks one after another, each from the shared prompt of the one before.

    Args:
        root: For what is saved on the way.

    Returns:
        What a source prompt file holds: the shared prompt, and one matrix per task.
    """
    states: list[dict[str, torch.Tensor]] = []
    start: dict[str, object] = {"prompt_tuning_init_method": "RANDOM"}
    for number, records in enumerate(SOURCE_TASKS):
        model = luthier.PeftPromptTuning.train(
            "tiny",
            records,
            {"num_virtual_tokens": NUM_VIRTUAL_TOKENS, **start},
            num_epochs=20,
            **TRAINING,
        )
        target = root / f"source-{number}"
        model.save(target)
        states.append(load_file(target / "adapter" / "adapter_model.safetensors"))
        save_file(states[-1], root / "source_prompts" / f"task-{number}.safetensors")
        start = {
            "prompt_tuning_init_method": "AVERAGE_SOURCE",
            "prompt_tuning_init_source_model": f"task-{number}.safetensors",
        }
    return {
        "prompt_embeddings": states[-1]["prompt_embeddings"],
        "prefix_task_cols": torch.cat([state["prefix_task_cols"] for state in states]),
        "prefix_task_rows": torch.cat([state["prefix_task_rows"] for state in states]),
    }


def load_source(folder: Path) -> dict[str, torch.Tensor]:
    """The source prompt as it lies on the disk.

    Args:
        folder: Of source prompts.

    Returns:
        Its tensors.
    """
    return load_file(folder / "intents.safetensors")


def first_loss(start: dict[str, object]) -> float:
    """The loss of the target task before anything was learned from it.

    Args:
        start: Where its virtual tokens start.

    Returns:
        Cross-entropy of the first update, in nats.
    """
    model = luthier.PeftPromptTuning.train(
        "tiny",
        TARGET_TASK,
        {"num_virtual_tokens": NUM_VIRTUAL_TOKENS, **start},
        num_epochs=1,
        **(TRAINING | {"batch_size": len(TARGET_TASK)}),
    )
    value = model.training_logs[0]["data"]["value"]
    assert isinstance(value, float)
    return value


if __name__ == "__main__":
    main()
