"""``luthier train`` for a flat run: send it with its data, to a server or one of this machine."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.cli.local_runtime import private_runtime
from luthier.cli.training.flat_run import FlatRun
from luthier.cli.training.progress import wait_with_progress
from luthier.client import Client, TrainingJob
from luthier.data_model.options.run_options import FULL_FINE_TUNING, HEAD, LORA
from luthier.data_model.streams import read_train_records, record_as_json


@dataclasses.dataclass(frozen=True)
class LocalRuntime:
    """A server of this machine, for one training.

    Args:
        models_dir: Folder that the model's folder is made in.
        base_models_dir: Folder of base models; None keeps the environment's.
    """

    models_dir: Path
    base_models_dir: Path | None = None


def train_flat(
    run: FlatRun, place: LocalRuntime | str, *, is_detached: bool, as_json: bool
) -> None:
    """Send a run, wait for its end unless it is detached, and say what became of it.

    Args:
        run: Checked.
        place: Where it is trained: the URL of a server, or here.
        is_detached: Return once the server has accepted it.
        as_json: Print JSON on stdout.

    Raises:
        LuthierError: If it is refused, fails or is cancelled.
    """
    if isinstance(place, LocalRuntime) and place.base_models_dir is None:
        run, folder = _with_base_model_by_name(run)
        place = dataclasses.replace(place, base_models_dir=folder)
    with _client(place) as client:
        job = _submit(client, run)
        if not is_detached:
            _wait(client, job)
    verb = "classify" if run.method == HEAD else "generate"
    models_dir = None if isinstance(place, str) else place.models_dir
    _report(job, models_dir, verb=verb, as_json=as_json, is_detached=is_detached)


def _submit(client: Client, run: FlatRun) -> TrainingJob:
    """Send a run with its data."""
    keeps_labels = run.method == HEAD
    request: dict[str, Any] = {
        "base_model": run.base_model,
        "train_data": _read_records(run.train_data, "train_data", keeps_labels=keeps_labels),
        **run.parameters,
    }
    if run.validation_data is not None:
        request["validation_data"] = _read_records(
            run.validation_data, "validation_data", keeps_labels=keeps_labels
        )
    if run.method == HEAD:
        return client.train_head(run.model_name, **request)
    if run.method == FULL_FINE_TUNING:
        return client.train_full(run.model_name, **request)
    if run.method == LORA:
        return client.train_lora(run.model_name, **request)
    tuning_config = dict(run.tuning_config)
    return client.train_prompt(run.model_name, tuning_config=tuning_config, **request)


def _read_records(file: Path, name: str, *, keeps_labels: bool) -> list[dict[str, Any]]:
    records = read_train_records(file, name=name, keeps_labels=keeps_labels)
    return [record_as_json(record) for record in records]


@contextmanager
def _client(place: LocalRuntime | str) -> Iterator[Client]:
    if isinstance(place, str):
        with Client(place) as client:
            yield client
    else:
        print("starting a local runtime", file=sys.stderr, flush=True)
        place.models_dir.mkdir(parents=True, exist_ok=True)
        with private_runtime(place.models_dir, base_models_dir=place.base_models_dir) as client:
            yield client


def _with_base_model_by_name(run: FlatRun) -> tuple[FlatRun, Path | None]:
    """A base model given as a folder of this machine, as a name and the folder that holds it.

    A server takes no paths from requests; the owner of this machine may name any.
    """
    folder = Path(run.base_model).resolve()
    if not folder.is_dir():
        return run, None
    return dataclasses.replace(run, base_model=folder.name), folder.parent


def _wait(client: Client, job: TrainingJob) -> None:
    try:
        wait_with_progress(client, job.training_id)
    except KeyboardInterrupt:
        client.cancel_training(job.training_id)
        print(f"cancelled {job.training_id}", file=sys.stderr)
        raise


def _report(
    job: TrainingJob, models_dir: Path | None, *, verb: str, as_json: bool, is_detached: bool
) -> None:
    path = None if models_dir is None else str(models_dir / job.model_name)
    if as_json:
        print(
            json.dumps(
                {
                    "training_id": job.training_id,
                    "model_name": job.model_name,
                    "is_completed": not is_detached,
                    "path": path,
                }
            )
        )
    elif is_detached:
        print(f"accepted {job.training_id}; 'luthier jobs follow {job.training_id}' shows it")
    elif path is not None:
        print(f"tuned {job.model_name}: {path}")
    else:
        print(f"tuned {job.model_name}; 'luthier {verb} {job.model_name} TEXT' uses it")
