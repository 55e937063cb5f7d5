"""How LoRA factors start. Definitions are PEFT's; the base weight itself is never changed.

R is the rank, ``delta = scaling · B · A`` with A [R, in] and B [out, R]. PiSSA and OLoRA begin with
a delta that is not zero and let it out of the base weight; here the same is done by subtracting the
first delta instead (``StartingFactors.is_subtracted``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from luthier.adapters.lora.layers import oriented_weight
from luthier.adapters.lora.targets import LoraTarget
from luthier.data_model.options.lora_starts import (
    LOFTQ_INIT,
    MEASURED_INITS,
    PissaInit,
    parse_initialisation,
)
from luthier.errors import InvalidInputError


@dataclass(frozen=True)
class StartingFactors:
    """What a layer starts from.

    Args:
        lora_a: [R, in], fp32.
        lora_b: [out, R], fp32.
        is_subtracted: Whether this delta counts as nothing: the layer's output is that of the base
            weight minus this delta plus the learned one.
        trains_b: False if only A is learned.
    """

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    is_subtracted: bool = False
    trains_b: bool = True


def starting_factors(
    layer: nn.Module,
    target: LoraTarget,
    *,
    scaling: float,
    initialisation: str,
    generator: torch.Generator,
    original: nn.Module | None = None,
) -> StartingFactors:
    """Factors for one layer.

    The default, gaussian, random and orthogonal starts draw in PEFT's order, so that a generator
    seeded like torch's global one gives PEFT's own tensors, layer after layer.

    Args:
        layer: The base layer; only some starts look at its weight.
        target: Its sizes and rank.
        scaling: Of the delta.
        initialisation: A word of ``LoraConfig.initialisation``.
        generator: On the CPU; advanced.
        original: For ``loftq``: the layer before it was quantised.

    Returns:
        Factors in fp32 on the CPU.

    Raises:
        InvalidInputError: If the rank does not suit the initialisation, or there is no original.
        NotSupportedError: If it needs the base weight's numbers and they are quantised.

    Source:
        PiSSA: Meng et al. 2024, arXiv 2404.02948. OLoRA: Büyükakyüz 2024, arXiv 2406.01775.
        MiCA: arXiv 2604.01694. LoftQ: Li et al. 2023, arXiv 2310.08659, one step, as PEFT's
        ``replace_lora_weights_loftq``; the delta is the rounding error whatever the scaling, where
        PEFT's is for a scaling of 1. Checked against PEFT 0.21.2.
    """
    kind = parse_initialisation(initialisation)
    num_out, num_in, rank = target.out_features, target.in_features, target.rank
    lora_a = _linear_default(rank, num_in, generator)
    lora_b = _linear_default(num_out, rank, generator)
    if kind == "random":
        return StartingFactors(lora_a, lora_b)
    # A start that looks at data has this one until it has seen them.
    if kind == "default" or kind in MEASURED_INITS:
        return StartingFactors(_linear_default(rank, num_in, generator), torch.zeros(num_out, rank))
    if kind == "gaussian":
        lora_a.normal_(std=1 / rank, generator=generator)
        return StartingFactors(lora_a, torch.zeros(num_out, rank))
    if kind == "orthogonal":
        return _orthogonal(num_in, num_out, rank, generator, path=target.path)
    if rank > min(num_out, num_in):
        raise InvalidInputError(
            f"initialisation {initialisation!r}: rank {rank} exceeds what layer {target.path!r} of "
            f"{num_in} inputs and {num_out} outputs has, at most {min(num_out, num_in)}"
        )
    numbers = oriented_weight(layer).detach().to(device="cpu", dtype=torch.float32)
    if kind == LOFTQ_INIT:
        return _loftq(numbers, original, rank, scaling, path=target.path)
    if isinstance(kind, PissaInit):
        return _pissa(numbers, rank, scaling, kind, generator)
    if kind == "olora":
        q, r = torch.linalg.qr(numbers)
        return StartingFactors(r[:rank].clone(), q[:, :rank].clone(), is_subtracted=True)
    u, _, _ = torch.linalg.svd(numbers, full_matrices=False)
    return StartingFactors(torch.zeros(rank, num_in), u[:, -rank:].clone(), trains_b=False)


def _linear_default(num_out: int, num_in: int, generator: torch.Generator) -> torch.Tensor:
    """The start of a linear layer's weight in torch."""
    return nn.init.kaiming_uniform_(
        torch.empty(num_out, num_in), a=math.sqrt(5), generator=generator
    )


def _orthogonal(
    num_in: int, num_out: int, rank: int, generator: torch.Generator, *, path: str
) -> StartingFactors:
    if rank % 2:
        raise InvalidInputError(
            f"initialisation 'orthogonal' needs an even rank, got {rank} for layer {path!r}"
        )
    q, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator))
    left = torch.randn(num_in, rank // 2, generator=generator)
    right = torch.randn(rank // 2, num_out, generator=generator)
    lora_a = (left @ q[0::2]).T / 10.0
    lora_b = (right.T @ q[1::2]) / 10.0
    return StartingFactors(lora_a.contiguous(), lora_b.contiguous())


def _pissa(
    weight: torch.Tensor, rank: int, scaling: float, kind: PissaInit, generator: torch.Generator
) -> StartingFactors:
    if kind.iterations is None:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    else:
        u, s, vh = low_rank_svd(weight, rank, kind.iterations, generator)
    root = (s / scaling).sqrt()
    return StartingFactors(root[:, None] * vh, u * root, is_subtracted=True)


def _loftq(
    numbers: torch.Tensor, original: nn.Module | None, rank: int, scaling: float, *, path: str
) -> StartingFactors:
    """The largest part of what rounding took away from the layer's numbers."""
    if original is None or hasattr(original, "dequantised_weight"):
        raise InvalidInputError(
            f"initialisation 'loftq' needs the numbers of layer {path!r} as they were before they "
            "were quantised"
        )
    weight = oriented_weight(original).detach().to(device="cpu", dtype=torch.float32)
    u, s, vh = torch.linalg.svd(weight - numbers, full_matrices=False)
    root = (s[:rank] / scaling).sqrt()
    return StartingFactors(root[:, None] * vh[:rank], u[:, :rank] * root)


def low_rank_svd(
    weight: torch.Tensor, rank: int, num_iterations: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The largest ``rank`` singular triples, nearly, by subspace iteration.

    Args:
        weight: [M, N].
        rank: R, at most min(M, N).
        num_iterations: More are nearer.
        generator: On the CPU; advanced.

    Returns:
        [M, R], [R] and [R, N].

    Source:
        Halko, Martinsson & Tropp 2011, arXiv 0909.4061, algorithm 4.4 and 5.1.
    """
    drawn = torch.randn(weight.shape[1], rank, generator=generator).to(weight.device)
    basis = torch.linalg.qr(weight @ drawn).Q
    for _ in range(num_iterations):
        basis = torch.linalg.qr(weight.T @ basis).Q
        basis = torch.linalg.qr(weight @ basis).Q
    u, s, vh = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    return basis @ u, s, vh
