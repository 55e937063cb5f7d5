"""``luthier train``: tune a model, here or on a server, and watch it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.options import DEFAULT_URL, AsJson, BaseModelsDir, Url
from luthier.errors import InvalidInputError

if TYPE_CHECKING:
    from luthier.cli.training.experiment_source import ExperimentSource

DEFAULT_OUTPUT_DIR = Path("models")


def train(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="The same as --file. Of several, those over one base model are trained together.",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            "-Y",
            help="YAML file: ours, or one of H2O LLM Studio, caikit-nlp or LLM Trainer.",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Start from a preset of the LLM Trainer.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="prompt_tuning, multitask_prompt_tuning, p_tuning, prefix_tuning, lora, "
            "full_fine_tuning or head (classification)."
        ),
    ] = None,
    model_name: Annotated[str | None, typer.Option(help="Id of the tuned model.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Base model, by name or path.")] = None,
    train_data: Annotated[
        Path | None, typer.Option(help="Train records here: .jsonl, .json or .csv.")
    ] = None,
    validation_data: Annotated[Path | None, typer.Option(help="Validation records.")] = None,
    num_virtual_tokens: Annotated[int | None, typer.Option(help="Size of the soft prompt.")] = None,
    init_text: Annotated[
        str | None, typer.Option(help="Text that the soft prompt starts from.")
    ] = None,
    verbalizer: Annotated[
        str | None, typer.Option(help="Template of the text that the model reads: '{{input}}'.")
    ] = None,
    num_epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Step size of AdamW.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows at once.")] = None,
    accumulate_steps: Annotated[int | None, typer.Option(help="Batches per update.")] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(help="Processes that share the work, a GPU each where there are some."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the run repeatable.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other key: key=value; may be repeated."),
    ] = None,
    is_dry: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show rows, tokens, the first batch, time and memory; train nothing."
        ),
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Write the whole experiment here, in our words.")
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Train on this machine, without a server.")
    ] = False,
    output_dir: Annotated[
        Path, typer.Option(help="With --local: folder that the model's folder is made in.")
    ] = DEFAULT_OUTPUT_DIR,
    base_models_dir: BaseModelsDir = None,
    is_detached: Annotated[
        bool, typer.Option("--detach", help="Return once the server has accepted the training.")
    ] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Tune a model. Options are laid over the keys of the file.

    A server trains what a flat file or options alone describe. A file in groups, one of another
    system, and what several processes share are trained on this machine, in processes of their own.
    Under torchrun, its processes are the ones.

    Ctrl-C cancels the training. Exit codes: 0 done, 1 failed, 2 asked for wrongly, 130 cancelled.
    """
    from luthier.cli.training.experiment_run import run_experiment
    from luthier.cli.training.experiments_run import run_experiments
    from luthier.cli.training.flat_run import read_run
    from luthier.cli.training.flat_training import LocalRuntime, train_flat

    given = {
        "method": method,
        "model_name": model_name,
        "base_model": base_model,
        "train_data": train_data,
        "validation_data": validation_data,
        "verbalizer": verbalizer,
        "num_epochs": num_epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "accumulate_steps": accumulate_steps,
        "seed": seed,
        "num_processes": num_processes,
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    tuning_config = _tuning_config(num_virtual_tokens, init_text)
    for setting in settings or []:
        _lay_over(chosen, tuning_config, setting)
    if files and file is not None:
        raise InvalidInputError("give files either by themselves or one with --file")
    if files and len(files) > 1:
        if is_dry or export is not None or preset is not None or is_detached:
            raise InvalidInputError(
                "--dry-run, --export, --preset and --detach are for one experiment, got "
                f"{len(files)} files"
            )
        given = {**chosen, **_dotted(tuning_config)}
        run_experiments(
            [_experiment(each, None, given, output_dir) for each in files],
            base_models_dir=base_models_dir,
            as_json=as_json,
        )
        return
    file = files[0] if files else file
    is_shared = num_processes is not None or "WORLD_SIZE" in os.environ
    if is_dry or export is not None or preset is not None or is_shared or _is_experiment(file):
        if is_detached:
            raise InvalidInputError("--detach has no use here: this is done on this machine")
        source = _experiment(file, preset, {**chosen, **_dotted(tuning_config)}, output_dir)
        run_experiment(
            source,
            is_dry=is_dry,
            export=export,
            base_models_dir=base_models_dir,
            as_json=as_json,
        )
        return
    run = read_run(file, {**chosen, "tuning_config": tuning_config})
    if local and is_detached:
        raise InvalidInputError("--local and --detach exclude each other: the server would be gone")
    place = LocalRuntime(output_dir, base_models_dir) if local else url
    train_flat(run, place, is_detached=is_detached, as_json=as_json)


def _is_experiment(file: Path | None) -> bool:
    """Whether a file is more than a server's train call takes."""
    from luthier.cli.training.experiment_source import is_experiment
    from luthier.data_model.experiment_file import read_yaml_mapping

    return file is not None and is_experiment(read_yaml_mapping(file))


def _experiment(
    file: Path | None, preset: str | None, given: Mapping[str, Any], output_dir: Path
) -> ExperimentSource:
    from luthier.cli.training.experiment_source import read_experiment

    plain = {
        name: str(value) if isinstance(value, Path) else value for name, value in given.items()
    }
    if output_dir != DEFAULT_OUTPUT_DIR:
        plain["output_folder"] = str(output_dir)
    return read_experiment(file, preset, plain)


def _dotted(tuning_config: Mapping[str, Any]) -> dict[str, Any]:
    return {f"tuning_config.{name}": value for name, value in tuning_config.items()}


def _tuning_config(num_virtual_tokens: int | None, init_text: str | None) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    if num_virtual_tokens is not None:
        chosen["num_virtual_tokens"] = num_virtual_tokens
    if init_text is not None:
        chosen["prompt_tuning_init_method"] = "TEXT"
        chosen["prompt_tuning_init_text"] = init_text
    return chosen


def _lay_over(chosen: dict[str, Any], tuning_config: dict[str, Any], setting: str) -> None:
    """Put one ``--set key=value`` where it belongs; the value is read as YAML."""
    from luthier.config.yaml_text import parse_yaml

    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise InvalidInputError(f"--set wants key=value, got {setting[:80]!r}")
    target, name = chosen, key
    if key.startswith("tuning_config."):
        target, name = tuning_config, key.removeprefix("tuning_config.")
    target[name] = parse_yaml(text)
