"""How many tokens a shared pass should have on this machine: measured, once per base and device.

A pass costs something by itself (weights are read, kernels are started) and something per token. Up
to some size more tokens make each of them cheaper; beyond it they only need more memory. Passes of
doubling size are run, forward and backward, until a token stops getting cheaper::

    tokens          32    64   128   256   512  1024
    ms per token  9.8   7.1   5.4   4.6   4.2   4.1      512: the next saves less than 3 %

Where that would take long, the rest is told from the first sizes: cost = fixed + each · tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import alog
import torch

from luthier.adapters.base import SoftPromptTensors
from luthier.adapters.module_tree import own_module_tree
from luthier.files.atomic_folder import write_file_atomically
from luthier.resources.base_model import BaseModel
from luthier.training.checkpointing.run_fingerprint import mark_of
from luthier.training.data.collation import TokenBatch
from luthier.training.data.examples import IGNORED_LABEL
from luthier.training.fusion.padded_parts import PaddedPart, PaddedParts
from luthier.training.networks.label_head import install_label_head

log = alog.use_channel(__name__)

#: A pass is large enough when one of twice its tokens makes each cheaper by less than this share.
MIN_GAIN = 0.03
#: Passes of fewer tokens are shared in any case.
SMALLEST_PASS = 128
_FIRST_SIZE = 32
_ROW_TOKENS, _ROW_LABELS = 32, 8
_measuring = threading.Lock()


@dataclass(frozen=True)
class PassCost:
    """What was measured.

    Args:
        pass_tokens: Tokens that a shared pass should have at most.
        tokens: Sizes of the passes that were run.
        seconds: What each took, CPU seconds on a CPU, wall seconds elsewhere.
    """

    pass_tokens: int
    tokens: tuple[int, ...]
    seconds: tuple[float, ...]


def measured_pass_cost(
    base_model: BaseModel, *, most_tokens: int, max_seconds: float, cache_folder: Path
) -> PassCost:
    """Measure a base model on its device, or read what was measured before.

    Args:
        base_model: Not changed.
        most_tokens: No larger pass is tried or chosen: a pass holds the activations of its tokens.
        max_seconds: What the measurement may take, about.
        cache_folder: Where it is kept, a file for each base, precision, device and number of
            threads.

    Returns:
        What was measured.
    """
    file = cache_folder / f"{_key(base_model, most_tokens)}.json"
    with _measuring:
        found = _read(file)
        if found is None:
            found = find_pass_cost(
                lambda size: _seconds_of_pass(base_model, size),
                most_tokens=most_tokens,
                max_seconds=max_seconds,
            )
            _keep(file, found)
            log.info(
                "a shared pass has up to %d tokens: base_model=%s device=%s measured=%s",
                found.pass_tokens,
                base_model.name,
                base_model.device,
                dict(zip(found.tokens, found.seconds, strict=True)),
            )
    return found


def find_pass_cost(
    seconds_of: Callable[[int], float], *, most_tokens: int, max_seconds: float
) -> PassCost:
    """Try passes of doubling size.

    Args:
        seconds_of: Runs a pass of so many tokens and says what it took. The better of two counts.
        most_tokens: No larger one is run or chosen.
        max_seconds: No pass is begun that would probably end after that.

    Returns:
        What was found.
    """
    seconds_of(_FIRST_SIZE)  # The first pass of all sets things up.
    sizes: list[int] = []
    costs: list[float] = []
    size = _FIRST_SIZE
    while size <= most_tokens:
        if len(costs) >= 2 and 2 * (sum(costs) + 2 * costs[-1]) > max_seconds:
            return PassCost(_extrapolated(sizes, costs, most_tokens), tuple(sizes), tuple(costs))
        try:
            costs.append(min(seconds_of(size), seconds_of(size)))
        except torch.cuda.OutOfMemoryError:
            break
        sizes.append(size)
        is_flat = len(costs) > 1 and costs[-1] > 2 * (1 - MIN_GAIN) * costs[-2]
        if is_flat and size > SMALLEST_PASS:
            return PassCost(sizes[-2], tuple(sizes), tuple(costs))
        size *= 2
    return PassCost(sizes[-1] if sizes else most_tokens, tuple(sizes), tuple(costs))


def _extrapolated(sizes: Sequence[int], costs: Sequence[float], most_tokens: int) -> int:
    """Where twice the tokens would save less than ``MIN_GAIN``, if cost = fixed + each · tokens."""
    mean_size, mean_cost = sum(sizes) / len(sizes), sum(costs) / len(costs)
    each = sum(
        (size - mean_size) * (cost - mean_cost) for size, cost in zip(sizes, costs, strict=True)
    ) / sum((size - mean_size) ** 2 for size in sizes)
    fixed = mean_cost - each * mean_size
    if each <= 0:
        return most_tokens
    # fixed/n saves half of itself: fixed / 2n = MIN_GAIN · (each + fixed / n)
    wanted = fixed * (0.5 - MIN_GAIN) / (MIN_GAIN * each)
    return int(min(max(wanted, SMALLEST_PASS), most_tokens))


def _seconds_of_pass(base_model: BaseModel, num_tokens: int) -> float:
    """One forward and backward through rows of a few tokens; a learned token is before each."""
    model = own_module_tree(base_model.model).eval()
    passes = PaddedParts(base_model, model, install_label_head(model))
    device, is_seq2seq = base_model.device, base_model.kind == "seq2seq"
    ids = torch.full((max(1, num_tokens // _ROW_TOKENS), _ROW_TOKENS - 1), 3, device=device)
    labels = ids.clone()
    if is_seq2seq:
        labels = labels[:, :_ROW_LABELS]
    else:
        labels[:, :-_ROW_LABELS] = IGNORED_LABEL
    batch = TokenBatch(tuple(range(len(ids))), ids, torch.ones_like(ids), labels, 0, 0)
    prompt = torch.zeros(
        1, base_model.hidden_size, device=device, dtype=base_model.dtype, requires_grad=True
    )
    tensors = SoftPromptTensors(encoder=prompt) if is_seq2seq else SoftPromptTensors(decoder=prompt)
    started = _clock(device)
    logits = passes.run([PaddedPart(batch, tensors)])
    result = passes.label_head.hidden if passes.label_head.keeps_hidden else logits
    assert result is not None
    result.float().square().mean().backward()
    return _clock(device) - started


def _clock(device: torch.device) -> float:
    """CPU seconds where the CPU computes: what neighbours do does not count."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def _key(base_model: BaseModel, most_tokens: int) -> str:
    device = base_model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    parts = [
        mark_of(base_model),
        base_model.quantization,
        name,
        torch.get_num_threads(),
        torch.__version__,
        most_tokens,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(file: Path) -> PassCost | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        tokens, seconds = tuple(map(int, content["tokens"])), tuple(map(float, content["seconds"]))
        found = PassCost(int(content["pass_tokens"]), tokens, seconds)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.pass_tokens > 0 else None


def _keep(file: Path, found: PassCost) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file_atomically(file, json.dumps(dataclasses.asdict(found)).encode())
    except OSError as error:
        log.warning("what a pass costs is measured again next time: %s", error)
