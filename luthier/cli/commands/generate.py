"""``luthier generate``: text from a model, as it is made."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.asked_model import asked_model
from luthier.cli.options import DEFAULT_URL, STDIN, AsJson, BaseModelsDir, Url

if TYPE_CHECKING:
    from luthier.client import Client


def generate(
    model: Annotated[
        str, typer.Argument(help="Id of a served model; with --local a saved model's folder.")
    ],
    text: Annotated[str, typer.Argument(help="What the model reads; - reads standard input.")],
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens at most.")] = None,
    min_new_tokens: Annotated[int | None, typer.Option(help="Tokens at least.")] = None,
    is_sampling: Annotated[bool, typer.Option("--sample", help="Draw tokens at random.")] = False,
    temperature: Annotated[float | None, typer.Option(help="With --sample.")] = None,
    top_k: Annotated[int | None, typer.Option(help="With --sample.")] = None,
    top_p: Annotated[float | None, typer.Option(help="With --sample.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="With --sample: least share of the likeliest's chance.")
    ] = None,
    typical_p: Annotated[float | None, typer.Option(help="With --sample.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --sample: makes it repeatable.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="1.0 is none.")] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option(help="No sequence of so many tokens comes twice; 0 is no rule.")
    ] = None,
    num_beams: Annotated[int | None, typer.Option(help="Texts followed side by side.")] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="With --num-beams: above 0 favours long texts.")
    ] = None,
    early_stopping: Annotated[
        bool | None, typer.Option(help="With --num-beams: end when that many are complete.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Answers; more than one with --sample.")] = 1,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends generation; may be repeated.")
    ] = None,
    max_time: Annotated[float | None, typer.Option(help="Seconds at most.")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Load the model on this machine, without a server.")
    ] = False,
    base_models_dir: BaseModelsDir = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Generate text and show it token by token; --json prints the whole result at the end."""
    parameters: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "decoding_method": "SAMPLING" if is_sampling else None,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "typical_p": typical_p,
        "seed": seed,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "early_stopping": early_stopping,
        "stop_sequences": stop or None,
        "max_time": max_time,
    }
    prompt = sys.stdin.read() if text == STDIN else text
    with asked_model(model, url, local=local, base_models_dir=base_models_dir) as (
        client,
        model_id,
    ):
        if n != 1:
            _print_many(client, model_id, prompt, n, parameters, as_json=as_json)
        elif as_json:
            result = client.generate(model_id, prompt, preserve_input_text=False, **parameters)
            print(json.dumps(dataclasses.asdict(result), ensure_ascii=False))
        else:
            _print_stream(client, model_id, prompt, parameters)


def _print_many(
    client: Client, model_id: str, prompt: str, n: int, parameters: dict[str, Any], *, as_json: bool
) -> None:
    """Several answers: one JSON object a line, or texts with a line between them."""
    results = client.generate_many(model_id, prompt, n, preserve_input_text=False, **parameters)
    for number, result in enumerate(results, start=1):
        if as_json:
            print(json.dumps(dataclasses.asdict(result), ensure_ascii=False))
        else:
            print(f"--- {number} of {n}, seed {result.seed}\n{result.text}")


def _print_stream(client: Client, model_id: str, prompt: str, parameters: dict[str, Any]) -> None:
    for chunk in client.stream(model_id, prompt, preserve_input_text=False, **parameters):
        sys.stdout.write(chunk.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
