"""Attention of all rows of a step by one call of a kernel in C, ``kernels/row_attention.c``.

It stores what is new in the arena and attends to it there, without a call for each row. Every
query's numbers are summed in the same order whatever else is in the step, so that an answer depends
neither on the other rows nor on the pieces that its prompt came in.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from luthier.inference.kernels.library import kernel
from luthier.inference.runners.score_attention import ScoreOptions

#: The largest Dh that fits the kernel's own memory.
MAX_HEAD_DIM = 512


class _Arguments(ctypes.Structure):
    """What the kernel is told: ``struct attention`` in its source, field by field."""

    _fields_ = [
        ("query", ctypes.c_void_p),
        ("query_head", ctypes.c_long),
        ("query_token", ctypes.c_long),
        ("new_keys", ctypes.c_void_p),
        ("new_values", ctypes.c_void_p),
        ("new_keys_head", ctypes.c_long),
        ("new_keys_token", ctypes.c_long),
        ("new_values_head", ctypes.c_long),
        ("new_values_token", ctypes.c_long),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("kv_head", ctypes.c_long),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("sinks", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bias_head", ctypes.c_long),
        ("bias_origin", ctypes.c_long),
        ("num_rows", ctypes.c_long),
        ("num_heads", ctypes.c_long),
        ("num_kv_heads", ctypes.c_long),
        ("head_dim", ctypes.c_long),
        ("rotary_dim", ctypes.c_long),
        ("window", ctypes.c_long),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("is_causal", ctypes.c_int),
        ("threads", ctypes.c_int),
    ]


def has_row_attention(*tensors: torch.Tensor) -> bool:
    """Whether the kernel can be used for queries, keys and values, [H, N, Dh] or alike."""
    return _kernel() is not None and all(
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.stride(-1) == 1
        and tensor.shape[-1] == tensors[0].shape[-1] <= MAX_HEAD_DIM
        for tensor in tensors
    )


def attend_rows(
    query: torch.Tensor,
    new: tuple[torch.Tensor, torch.Tensor] | None,
    stored: tuple[torch.Tensor, torch.Tensor],
    rows: torch.Tensor,
    *,
    options: ScoreOptions,
    window: int | None = None,
    bias: torch.Tensor | None = None,
    positions: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Store the step's keys and values, and attend to each row's own; see ``has_row_attention``.

    Args:
        query: [H, N, Dh].
        new: Keys and values of the step, [K, N, Dh] each, and a token sees its row up to itself;
            None if all are stored, and it sees all of them.
        stored: Those of the whole arena, [K, S, Dh] each; changed where the rows' new ones go.
        rows: Each row's first token in the step, how many it has there, its first slot in the
            arena and the slot behind the last, [R, 4], int64.
        options: What happens to scores.
        window: Slots that a token sees, its own included; None if it sees all before it.
        bias: Added to the scaled scores by distance, [H, D], a head's side by side, D at least the
            slots of any row: the last for a token itself, those before it for the ones before it.
            None if nothing is, as without ``new``.
        positions: Cosines and sines of the angles by which queries and new keys are still to be
            turned, [.., N, R] each and contiguous, R <= Dh even: pair (i, i + R / 2) of a head's
            numbers by angle i. None if nothing is.

    Returns:
        [N, H, Dh].
    """
    attend = _kernel()
    assert attend is not None
    num_heads, num_tokens, head_dim = query.shape
    keys, values = stored
    out = query.new_empty(num_tokens, num_heads, head_dim)
    sinks = None if options.sinks is None else options.sinks.float().contiguous()
    arguments = _Arguments(
        query=query.data_ptr(),
        query_head=query.stride(0),
        query_token=query.stride(1),
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        kv_head=keys.stride(0),
        out=out.data_ptr(),
        rows=rows.data_ptr(),
        sinks=None if sinks is None else sinks.data_ptr(),
        num_rows=len(rows),
        num_heads=num_heads,
        num_kv_heads=len(keys),
        head_dim=head_dim,
        window=window or 0,
        scale=head_dim**-0.5 if options.scaling is None else options.scaling,
        softcap=options.softcap or 0.0,
        is_causal=new is not None,
        threads=torch.get_num_threads(),
    )
    if new is not None:
        new_keys, new_values = new
        arguments.new_keys, arguments.new_values = new_keys.data_ptr(), new_values.data_ptr()
        arguments.new_keys_head, arguments.new_keys_token = new_keys.stride()[:2]
        arguments.new_values_head, arguments.new_values_token = new_values.stride()[:2]
    if bias is not None:
        arguments.bias = bias.data_ptr()
        arguments.bias_head, arguments.bias_origin = bias.stride(0), bias.shape[1] - 1
    if positions is not None:
        cosines, sines = positions
        arguments.cosines, arguments.sines = cosines.data_ptr(), sines.data_ptr()
        arguments.rotary_dim = cosines.shape[-1]
    attend(ctypes.byref(arguments))
    return out


def _kernel() -> Callable[..., None] | None:
    return kernel("attend_rows", "p")
