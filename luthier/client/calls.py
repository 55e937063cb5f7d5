"""Every call of the API beside those of trainings: what to send, and how to read the answer.

Both clients have these and ``training_calls`` as their methods and differ only in how they wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.client import answers
from luthier.client.call import ROUTE_PREFIX, Call
from luthier.client.results import GeneratedText, LabelScore, ModelInfo, Tokenization
from luthier.errors import InvalidInputError, UnknownKeyError, did_you_mean


def generate(model_id: str, text: str, **parameters: Any) -> Call[GeneratedText]:
    """Text from a model, whole.

    Args:
        model_id: Which model.
        text: What it reads.
        **parameters: Fields of ``luthier.data_model.sampling.SamplingParams``.
    """
    body = _inference_body(model_id, text, parameters)
    return Call("POST", f"{ROUTE_PREFIX}/task/text-generation", answers.generated_text, body=body)


def generate_many(model_id: str, text: str, n: int, **parameters: Any) -> Call[list[GeneratedText]]:
    """Several answers to one text, each with the seed that gives it again.

    Args:
        model_id: Which model.
        text: What it reads.
        n: How many; more than one only with ``decoding_method="SAMPLING"``.
        **parameters: As for ``generate``.
    """
    body = {**_inference_body(model_id, text, parameters), "n": n}
    return Call("POST", f"{ROUTE_PREFIX}/task/text-generations", answers.generated_texts, body=body)


def stream(model_id: str, text: str, **parameters: Any) -> Call[None]:
    """Text from a model, message by message; ``answers.generated_chunk`` reads each."""
    body = _inference_body(model_id, text, parameters)
    path = f"{ROUTE_PREFIX}/task/server-streaming-text-generation"
    return Call("POST", path, answers.nothing, body=body)


def classify(model_id: str, text: str) -> Call[tuple[LabelScore, ...]]:
    """The classes of a text with their probabilities, the most probable first."""
    body = _inference_body(model_id, text, {})
    return Call("POST", f"{ROUTE_PREFIX}/task/text-classification", answers.label_scores, body=body)


def tokenize(model_id: str, text: str) -> Call[Tokenization]:
    """Count (and where offered, show) the tokens of a text as a model sees it."""
    body = _inference_body(model_id, text, {})
    return Call("POST", f"{ROUTE_PREFIX}/task/tokenization", answers.tokenization, body=body)


def models() -> Call[list[ModelInfo]]:
    """Every model that the server has."""
    return Call("GET", "/info/models", answers.model_list)


def deploy(model_id: str, folder: Path) -> Call[ModelInfo]:
    """Send a saved model's folder to the server, which serves it as ``model_id``.

    Raises:
        InvalidInputError: If ``folder`` holds no ``config.yml``.
    """
    if not (folder / "config.yml").is_file():
        raise InvalidInputError(f"'{folder}' is no saved model: it holds no config.yml")
    files = tuple(
        ("model_files", (path.relative_to(folder).as_posix(), path.read_bytes()))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    fields = {"model_id": model_id}
    return Call("POST", "/management/models", answers.model_info, files=files, fields=fields)


def undeploy(model_id: str) -> Call[None]:
    """Stop serving a model and delete its folder on the server."""
    query = {"model_id": model_id}
    return Call("DELETE", "/management/models", answers.nothing, query=query)


def version() -> Call[dict[str, Any]]:
    """Versions of the server's packages."""
    return Call("GET", "/info/version", answers.mapping)


def health() -> Call[str]:
    """``OK`` while the server can serve."""
    return Call("GET", "/health", str.strip, is_text=True)


def _inference_body(model_id: str, text: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in parameters.items() if value not in (None, ())}
    unknown = sorted(given.keys() - set(answers.SAMPLING_FIELDS))
    if unknown:
        name = unknown[0]
        raise UnknownKeyError(
            f"unknown generation parameter {name!r}{did_you_mean(name, answers.SAMPLING_FIELDS)}"
        )
    penalty = given.get("exponential_decay_length_penalty")
    if isinstance(penalty, Sequence):
        start_index, decay_factor = penalty
        given["exponential_decay_length_penalty"] = {
            "start_index": start_index,
            "decay_factor": decay_factor,
        }
    body: dict[str, Any] = {"model_id": model_id, "inputs": text}
    if given:
        body["parameters"] = given
    return body
