"""What this machine is good at: devices and dtypes."""

from __future__ import annotations

import functools
import time

import alog
import torch

from luthier.errors import InvalidInputError, did_you_mean

log = alog.use_channel(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"
OFF = "off"
#: A dtype must win by this factor before it counts as fast; below it, rounding is not worth it.
MIN_SPEEDUP = 1.3


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Read a dtype word; a ``torch.`` before it is allowed.

    Args:
        dtype: Word or dtype.

    Returns:
        A floating point dtype.

    Raises:
        InvalidInputError: If it is none of float32, bfloat16, float16.

    Example:
        >>> parse_dtype("torch.bfloat16")
        torch.bfloat16
    """
    word = str(dtype).removeprefix("torch.") if isinstance(dtype, str | torch.dtype) else None
    if word not in DTYPES:
        raise InvalidInputError(
            f"'torch_dtype' must be one of {sorted(DTYPES)}, got {str(dtype)[:80]!r}"
            f"{did_you_mean(str(word)[:80], DTYPES)}"
        )
    return DTYPES[word]


def parse_device(device: str | torch.device | None) -> torch.device:
    """Read a device word; None and ``auto`` are the best device present.

    Args:
        device: Word, device, or None.

    Returns:
        A device of this machine, with its index unless it is the CPU.

    Raises:
        InvalidInputError: If the word means nothing or this machine has no such device.
    """
    if device is None or device == AUTO:
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(f"'device' {str(device)[:80]!r} is not a device") from error
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(parsed.type, 0)
    if (parsed.index or 0) >= present:
        raise InvalidInputError(f"'device' {str(device)!r}: this machine has no such device")
    if parsed.type == "cpu":
        return torch.device("cpu")
    return torch.device(parsed.type, parsed.index or 0)


def pick_training_dtype(requested: str | torch.dtype, *, device: torch.device) -> torch.dtype:
    """The dtype to train in: ``requested``, or float32 where a half precision is slower.

    Half precision on a CPU is measured once per process (about 0.1 s), not assumed: without AMX
    or AVX512-BF16 it is several times slower than float32 and less exact.

    Args:
        requested: dtype word of the request or the config.
        device: Where the training runs.

    Returns:
        ``requested`` or ``torch.float32``.
    """
    dtype = parse_dtype(requested)
    if dtype is torch.float32 or device.type != "cpu":
        return dtype
    speedup = measure_cpu_speedup(dtype)
    if speedup >= MIN_SPEEDUP:
        return dtype
    log.warning(
        "training in float32: %s is %.2f times as fast as float32 on this CPU", dtype, speedup
    )
    return torch.float32


def pick_mixed_precision(requested: str, *, device: torch.device) -> str:
    """What layers compute in: ``requested``, or ``off`` where a half precision is slower.

    Args:
        requested: ``off``, ``bfloat16`` or ``float16``.
        device: Where the training runs.

    Returns:
        ``requested`` or ``off``.
    """
    if requested == OFF or pick_training_dtype(requested, device=device) is not torch.float32:
        return requested
    return OFF


@functools.cache
def measure_cpu_speedup(dtype: torch.dtype, *, size: int = 384, repeats: int = 8) -> float:
    """How many times faster a square matmul runs on the CPU in ``dtype`` than in float32.

    The two take turns and the fastest run of each counts; one thread each, because on a busy
    machine the time of several is mostly the wait for the last. The caller's number of threads
    is restored.
    """
    matrices = [torch.ones(size, size), torch.ones(size, size).to(dtype)]
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = [_matmul_seconds(matrix) for _ in range(repeats + 1) for matrix in matrices]
    finally:
        torch.set_num_threads(num_threads)
    # The first turn warms caches and threads up.
    return min(seconds[2::2]) / min(seconds[3::2])


def _matmul_seconds(matrix: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(matrix, matrix)
    return time.perf_counter() - start
