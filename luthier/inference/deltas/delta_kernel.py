"""All deltas of a step in one layer by one call of our kernel, ``kernels/lora_deltas.c``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from luthier.inference.deltas.delta_tables import DeltaRows, TableContent
from luthier.inference.kernels.library import kernel


def delta_kernel(dtype: torch.dtype, device: torch.device) -> Callable[..., None] | None:
    """The kernel, or None where PyTorch must do.

    Args:
        dtype: What deltas are computed in.
        device: Where.
    """
    if dtype != torch.float32 or device.type != "cpu":
        return None
    return kernel("lora_deltas", "pppppp p lllll i")


class KernelSpans:
    """Which tokens have which rows of a table, as the kernel reads it.

    Made once and used by every layer whose table has the same rows for these adapters. Used by one
    thread at a time.

    Args:
        add: The kernel.
        counts: Tokens of each adapter; theirs are a step's first, in this order.
        rows: The adapters' in the table, None where the layer has no delta of one.
    """

    def __init__(
        self, add: Callable[..., None], counts: Sequence[int], rows: Sequence[DeltaRows | None]
    ) -> None:
        self._add = add
        entries: list[tuple[int, ...]] = []
        token = num_products = 0
        for count, each in zip(counts, rows, strict=True):
            if each is not None:
                scale = each.start + each.rank if each.has_scale else -1
                entries.append((token, count, each.start, each.rank, scale, num_products))
                num_products += count * each.rank
            token += count
        self._entries = torch.tensor(entries, dtype=torch.int64)
        self._products = torch.empty(num_products)

    def add(
        self, output: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, table: TableContent
    ) -> None:
        """Add the deltas.

        Args:
            output: The layer's, [N, out]; changed.
            x: Its input, [N, in].
            bias: The layer's, [out].
            table: Its deltas, in one piece.
        """
        if not _fits(output):
            fitting = output.float().contiguous()
            self.add(fitting, x, bias, table)
            output.copy_(fitting)
            return
        if not _fits(x):
            x = x.float().contiguous()
        if bias is not None:
            bias = bias.float().contiguous()
        self._add(
            x.data_ptr(),
            output.data_ptr(),
            table.a.data_ptr(),
            table.b.data_ptr(),
            None if bias is None else bias.data_ptr(),
            self._products.data_ptr(),
            self._entries.data_ptr(),
            len(self._entries),
            x.shape[1],
            output.shape[1],
            x.stride(0),
            output.stride(0),
            torch.get_num_threads(),
        )


def _fits(tokens: torch.Tensor) -> bool:
    """Whether the kernel can read a [N, ...] tensor: any distance between rows, none within."""
    return tokens.dtype == torch.float32 and tokens.stride(1) == 1
