"""The training benchmark runs, and both of its sides learn the same."""

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_both_sides_of_the_training_benchmark_learn_the_same() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/training.py", "--tiny"),
            *("--rows", "6", "--batch-size", "3", "--repeats", "1"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert [result["method"] for result in report["results"]] == [
        "prompt_tuning",
        "full_fine_tuning",
    ]
    for result in report["results"]:
        assert result["is_same"]
        assert result["relative_gradient_difference"] < 1e-3
        assert result["luthier"]["tokens_per_cpu_second"] > 0
        assert result["caikit_nlp_style"]["tokens_per_cpu_second"] > 0
