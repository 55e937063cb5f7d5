"""Tune in stages: a LoRA, the same LoRA on other rows, then a prompt before the merged model.

python examples/stages/main.py    a tiny random model: shows the steps in seconds
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import luthier

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_model import make_tiny_model

EARLY = [
    {"input": "My package never arrived.", "output": "delivery"},
    {"input": "I was charged twice.", "output": "payment"},
]
LATE = [
    {"input": "The screen stays black.", "output": "repair"},
    {"input": "I forgot my password.", "output": "account"},
]
LOOP = {"num_epochs": 4, "batch_size": 2, "accumulate_steps": 1}


def main() -> None:
    """The stages, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BASE_MODELS_DIR"] = folder
        make_tiny_model(Path(folder) / "tiny")
        tune_in_stages("tiny", Path(folder))


def tune_in_stages(base: str, folder: Path) -> None:
    """Each stage leaves a model that can be used by itself.

    Args:
        base: The base model's name.
        folder: Gets a folder per stage.
    """
    print("1. a LoRA")
    first = luthier.LoraTuning.train(base, EARLY, rank=4, **LOOP)
    tell(first)
    first.save(folder / "first")

    print("2. the same LoRA goes on with other rows and a new optimizer")
    second = luthier.LoraTuning.train(base, LATE, rank=4, start_from=folder / "first", **LOOP)
    tell(second)

    print("3. it is merged into the base model, which is whole again")
    second.save_merged(folder / "merged")

    print("4. a prompt is tuned before the merged model")
    third = luthier.PeftPromptTuning.train(
        folder / "merged",
        EARLY + LATE,
        {"num_virtual_tokens": 8},
        tuning_type="P_TUNING",
        **LOOP,
    )
    tell(third)
    print("   answer:", repr(third.run("The screen stays black.", max_new_tokens=4).generated_text))


def tell(model: luthier.LoraTuning | luthier.PeftPromptTuning) -> None:
    """The first and the last loss of a stage."""
    losses = [line["data"]["value"] for line in model.training_logs]
    print(f"   loss {losses[0]:.2f} -> {losses[-1]:.2f}, base model {model.base_model.name}")


if __name__ == "__main__":
    main()
