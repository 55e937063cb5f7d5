"""The tree of commands. Nothing heavy is imported here, so that ``--help`` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

import luthier
from luthier.cli.commands.classify import classify
from luthier.cli.commands.doctor import doctor
from luthier.cli.commands.generate import generate
from luthier.cli.commands.jobs import app as jobs
from luthier.cli.commands.models import app as models
from luthier.cli.commands.serve import serve
from luthier.cli.commands.train import train

app = typer.Typer(
    name="luthier",
    help="Tunes and serves language models: many small adapters over one frozen base.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"luthier {luthier.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass  # options of the program do their work in callbacks of their own


app.command("serve")(serve)
app.command("train")(train)
app.command("generate")(generate)
app.command("classify")(classify)
app.add_typer(models, name="models")
app.add_typer(jobs, name="jobs")
app.command("doctor")(doctor)
