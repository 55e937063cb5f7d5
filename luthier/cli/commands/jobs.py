"""``luthier jobs``: the trainings of a server."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from luthier.cli.options import DEFAULT_URL, AsJson, Url
from luthier.cli.table import print_found

app = typer.Typer(help="Look at trainings, follow and cancel them.", no_args_is_help=True)

TrainingId = Annotated[str, typer.Argument(help="Id that 'luthier train' printed.")]


@app.command("list")
def list_jobs(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show the trainings that the server knows."""
    from luthier.client import Client

    with Client(url) as client:
        found = client.trainings()
    print_found(
        found,
        as_json=as_json,
        empty="no trainings",
        header=("training", "state", "model", "submitted"),
        cells=lambda job: (job.training_id, job.state, job.model_name, job.submitted_at),
    )


@app.command("show")
def show(training_id: TrainingId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show where a training stands."""
    from luthier.client import Client

    with Client(url) as client:
        status = client.training(training_id)
    if as_json:
        print(json.dumps(dataclasses.asdict(status), indent=2))
    else:
        print(" ".join([status.state, *status.reasons]))


@app.command("follow")
def follow(training_id: TrainingId, url: Url = DEFAULT_URL) -> None:
    """Show a training's progress until it ends. Ctrl-C stops looking, not the training."""
    from luthier.cli.training.progress import wait_with_progress
    from luthier.client import Client

    with Client(url) as client:
        wait_with_progress(client, training_id)
    print(f"completed {training_id}")


@app.command("cancel")
def cancel(training_id: TrainingId, url: Url = DEFAULT_URL) -> None:
    """Stop a training."""
    from luthier.client import Client

    with Client(url) as client:
        print(client.cancel_training(training_id).state)


@app.command("resume")
def resume(training_id: TrainingId, url: Url = DEFAULT_URL) -> None:
    """Go on with a training that was cancelled or failed, from its last checkpoint."""
    from luthier.client import Client

    with Client(url) as client:
        print(client.resume_training(training_id).state)
