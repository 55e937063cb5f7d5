"""What torch sees on this machine, as one JSON line: ``python -m luthier.cli.torch_probe``.

A process of its own, because importing torch takes seconds and may fail in ways that no
``except`` catches (an illegal instruction, a missing driver).
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch

#: Side of the square matrices of the measurement; large enough to time, small enough to wait for.
SIDE = 384
NUM_REPEATS = 5


def probe() -> dict[str, Any]:
    """Device, threads, and how fast bfloat16 is compared with float32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    num_threads = torch.get_num_threads()
    # One thread: two that wait for each other on busy cores would be measured waiting.
    torch.set_num_threads(1)
    ratio = _matmul_seconds(torch.float32, device) / _matmul_seconds(torch.bfloat16, device)
    torch.set_num_threads(num_threads)
    return {
        "torch": torch.__version__,
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else "",
        "num_threads": num_threads,
        "bf16_speed_of_fp32": round(ratio, 2),
        "is_bf16_faster": ratio > 1,
    }


def _matmul_seconds(dtype: torch.dtype, device: str) -> float:
    """Best time of one product; the first, which warms up, does not count."""
    matrix = torch.ones(SIDE, SIDE, dtype=dtype, device=device)
    times = []
    for _ in range(NUM_REPEATS + 1):
        start = time.perf_counter()
        matrix @ matrix
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


if __name__ == "__main__":
    print(json.dumps(probe()))
