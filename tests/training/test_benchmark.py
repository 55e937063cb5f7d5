"""The training benchmarks run, and all of their sides learn the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def _run(program: str, *arguments: str) -> dict[str, Any]:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, f"benchmarks/{program}", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_all_sides_of_the_training_benchmark_learn_the_same() -> None:
    report = _run(
        *("training.py", "--tiny"),
        *("--rows", "6", "--batch-size", "3", "--repeats", "1", "--methods", "lora_qv"),
    )
    (result,) = report["results"]
    assert result["method"] == "lora_qv"
    assert result["is_same"]
    assert result["largest_loss_difference"] < 1e-4
    for side in ("luthier", "caikit_nlp_style", "trainer_peft"):
        assert result[side]["tokens_per_cpu_second"] > 0
        assert len(result["losses"][side]) == 2


def test_trainings_together_alone_and_with_peft_learn_the_same() -> None:
    report = _run(
        *("fused.py", "--tiny", "--jobs", "3", "--steps", "2"),
        *("--rows", "2", "--repeats", "1", "--methods", "lora_all", "prompt_tuning"),
    )
    assert [result["method"] for result in report["results"]] == ["lora_all", "prompt_tuning"]
    for result in report["results"]:
        assert result["is_same"]
        assert result["largest_loss_difference"] < 1e-4
        assert len(result["losses_of_first_job"]["peft"]) == 2
        assert min(result["cpu_seconds"]["fused"]) > 0


def test_the_parts_of_a_training_are_told_apart() -> None:
    report = _run(
        *("loop_overhead.py", "--tiny", "--steps", "2"),
        *("--methods", "lora_all"),
    )
    (result,) = report["results"]
    assert {"forward and backward", "optimizer", "logging", "collation"} <= set(
        result["cpu_seconds"]
    )


def test_a_steps_rate_is_told_beside_the_processors() -> None:
    report = _run(
        *("training_peak.py", "--tiny", "--batch-size", "2"),
        *("--repeats", "1", "--methods", "prompt_tuning", "full_fine_tuning"),
    )
    assert [result["method"] for result in report["results"]] == [
        "prompt_tuning",
        "full_fine_tuning",
    ]
    for result in report["results"]:
        assert result["step_gflop_per_second"] > 0
        assert 0 < result["share_of_peak"] < 1
