"""Data that is larger than memory: a process that may have less of it than the file is long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.large_file_training import write_rows

MEBIBYTE = 2**20
FILE_BYTES = 24 * MEBIBYTE
#: For everything that grows: chunks of rows, lengths and order of rows, a batch's activations.
BUDGET_BYTES = 16 * MEBIBYTE


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts mapped memory on Linux alone"
)
def test_a_file_longer_than_the_memory_is_learned_from(
    tiny_base_models_dir: Path, tmp_path: Path
) -> None:
    """With all tokens in memory, or all records, the child dies."""
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    write_rows(small, num_chars=MEBIBYTE)
    num_rows = write_rows(large, num_chars=FILE_BYTES)
    assert large.stat().st_size >= FILE_BYTES
    request = {
        "base_models_dir": str(tiny_base_models_dir),
        "small_file": str(small),
        "large_file": str(large),
        "budget_bytes": BUDGET_BYTES,
        "datasets": [
            {"max_tokens_in_memory": 10_000},
            {"tokenization_cache": str(tmp_path / "cache")},
        ],
    }
    tests = Path(__file__).parents[1]
    child = subprocess.run(
        [sys.executable, "-m", "fixtures.large_file_training", json.dumps(request)],
        env={
            **os.environ,
            "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}",
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (child.returncode, child.stdout) == (0, f"[{num_rows}, {num_rows}]\n")
