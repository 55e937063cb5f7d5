"""The training benchmark runs, and all of its sides learn the same."""

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_all_sides_of_the_training_benchmark_learn_the_same() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/training.py", "--tiny"),
            *("--rows", "6", "--batch-size", "3", "--repeats", "1", "--methods", "lora_qv"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    (result,) = report["results"]
    assert result["method"] == "lora_qv"
    assert result["is_same"]
    assert result["largest_loss_difference"] < 1e-4
    for side in ("luthier", "caikit_nlp_style", "trainer_peft"):
        assert result[side]["tokens_per_cpu_second"] > 0
        assert len(result["losses"][side]) == 2
