from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROWS = [{"input": f"what is {number}?", "output": f"it is {number}"} for number in range(8)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def write(folder: Path, name: str, **changes: Any) -> str:
    keys = {
        "method": "lora",
        "model_name": name,
        "base_model": "tiny-causal",
        "train_data": "rows.jsonl",
        "num_epochs": 1,
        "batch_size": 2,
        "accumulate_steps": 1,
        **changes,
    }
    (folder / f"{name}.yml").write_text(json.dumps(keys))  # JSON is YAML.
    return f"{name}.yml"


def test_several_files_are_trained_together_and_one_that_fails_says_so(
    run: Any, here: Path, tiny_base_models_dir: Path
) -> None:
    (here / "empty.jsonl").write_text('{"input": "a", "output": ""}\n')
    files = [
        write(here, "a"),
        write(here, "b", method="prompt_tuning", tuning_config={"num_virtual_tokens": 3}),
        write(here, "c", method="full_fine_tuning"),
        write(here, "d", train_data="empty.jsonl"),
    ]
    result = run("train", *files, "--base-models-dir", tiny_base_models_dir)
    assert result.code == 1
    assert result.out.splitlines() == [f"tuned {name}: models/{name}" for name in "abc"]
    assert "a: step 4/4  loss " in result.err
    assert "c: trained by itself: full_fine_tuning changes more" in result.err
    assert "1 of 4 experiments failed: d: " in result.err
    assert (here / "models" / "b" / "adapter" / "adapter_config.json").is_file()
    assert not (here / "models" / "d").exists()


def test_what_is_for_one_experiment_is_refused_for_several(run: Any, here: Path) -> None:
    files = [write(here, "a"), write(here, "b")]
    result = run("train", *files, "--dry-run")
    assert result.code == 2
    assert "are for one experiment, got 2 files" in result.err
    result = run("train", files[0], "-Y", files[1])
    assert result.code == 2
    assert "either by themselves or one with --file" in result.err
