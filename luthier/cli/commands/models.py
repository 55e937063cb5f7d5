"""``luthier models``: what a server serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.options import DEFAULT_URL, AsJson, Url
from luthier.cli.table import print_found

app = typer.Typer(help="Look at the served models, add and remove them.", no_args_is_help=True)


@app.command("list")
def list_models(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show the models that the server has."""
    from luthier.client import Client

    with Client(url) as client:
        found = client.models()
    print_found(
        found,
        as_json=as_json,
        empty="no models; 'luthier train' makes one",
        header=("model", "loaded", "MB", "module"),
        cells=lambda model: (
            model.name,
            "yes" if model.is_loaded else "no",
            "" if model.size_bytes is None else f"{model.size_bytes / 1e6:.1f}",
            model.module_id,
        ),
    )


@app.command("deploy")
def deploy(
    model_id: Annotated[str, typer.Argument(help="Id that the model gets.")],
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model on this machine.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Send a saved model to the server."""
    from luthier.client import Client

    with Client(url) as client:
        client.deploy(model_id, folder)
    print(f"deployed {model_id}")


@app.command("undeploy")
def undeploy(
    model_id: Annotated[str, typer.Argument(help="Id of a served model.")],
    url: Url = DEFAULT_URL,
    is_confirmed: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Stop serving a model and delete its folder on the server."""
    from luthier.client import Client

    if not is_confirmed:
        typer.confirm(f"Delete model '{model_id}' and its files on {url}?", abort=True, err=True)
    with Client(url) as client:
        client.undeploy(model_id)
    print(f"undeployed {model_id}")
