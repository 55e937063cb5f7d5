"""All deltas of a step in one layer by one call of our kernel, ``kernels/lora_deltas.c``.

Between two layers little of Python and PyTorch is in a core's cache, because weights and factors
went through it; each call costs some times what it costs elsewhere. So there are few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from luthier.errors import EngineError
from luthier.inference.deltas.delta_table import DeltaRows, TableContent
from luthier.inference.kernels.library import kernel

#: What the kernel reads factors from, by its own numbers for them.
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def delta_kernel(dtype: torch.dtype, device: torch.device) -> Callable[..., None] | None:
    """The kernel, or None where PyTorch must do.

    Args:
        dtype: What deltas are computed in.
        device: Where.
    """
    if dtype != torch.float32 or device.type != "cpu":
        return None
    return kernel("lora_deltas", "pppp i ppp lllll i")


def narrow_dtypes(dtype: torch.dtype, device: torch.device) -> tuple[torch.dtype, ...]:
    """Precisions of 16 bits that factors may be held in: the kernel makes floats of them.

    Args:
        dtype: What deltas are computed in.
        device: Where.
    """
    return (torch.bfloat16, torch.float16) if delta_kernel(dtype, device) is not None else ()


class KernelSpans:
    """Which tokens have which rows of a table, as the kernel reads it.

    Made once and used by every layer whose table has the same rows for these adapters.

    Args:
        counts: Tokens of each adapter; theirs are a step's first, in this order.
        rows: The adapters' in the table, None where the layer has no delta of one.

    Attributes:
        entries: The kernel's ``struct span``, [S, 6].
        products: Room for what the kernel computes in between; for one layer at a time.
        num_tokens: Of all adapters.
        has_scales: Whether there is DoRA among them, for which the layer's bias matters.
    """

    def __init__(self, counts: Sequence[int], rows: Sequence[DeltaRows | None]) -> None:
        entries: list[tuple[int, ...]] = []
        token = num_products = 0
        for count, each in zip(counts, rows, strict=True):
            if each is not None:
                scale = each.start + each.rank if each.has_scale else -1
                entries.append((token, count, each.start, each.rank, scale, num_products))
                num_products += count * each.rank
            token += count
        self.entries = torch.tensor(entries, dtype=torch.int64)
        self.products = torch.empty(num_products)
        self.num_tokens = token
        self.has_scales = any(each is not None and each.has_scale for each in rows)


class KernelStep:
    """What a step adds to one layer, by our kernel.

    Args:
        call: The kernel.
        parts: The layer's deltas, a table in one piece for each precision, and which tokens have
            which rows of it.
    """

    def __init__(
        self, call: Callable[..., None], parts: Sequence[tuple[KernelSpans, TableContent]]
    ) -> None:
        self._call = call
        self._held = parts  # what the addresses below are of
        self._arguments = [_arguments_of(spans, table) for spans, table in parts]
        spans, table = parts[0]
        self._num_tokens = spans.num_tokens
        self._widths = (table.a.shape[1], table.b.shape[1])
        #: Whether ``add`` looks at the layer's bias.
        self.needs_bias = any(spans.has_scales for spans, _ in parts)

    def add(self, output: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Add the deltas.

        Args:
            output: The layer's, [N, out] or [1, N, out]; changed.
            x: Its input, [N, in] or [1, N, in].
            bias: The layer's, [out].

        Raises:
            EngineError: If these are fewer tokens than have deltas, or not as wide as the deltas.
        """
        num_inputs, num_outputs = self._widths
        # Counted: in each layer of each step, comparing shapes takes a fiftieth of the time.
        size = x.numel()
        if (
            size < self._num_tokens * num_inputs
            or size * num_outputs != output.numel() * num_inputs
        ):
            raise EngineError(
                f"A layer made {list(output.shape)} of {list(x.shape)}, but its deltas are for "
                f"{self._num_tokens} tokens or more of {num_inputs} and {num_outputs} numbers"
            )
        if not _fits(output):
            fitting = output.float().contiguous()
            self.add(fitting, x, bias)
            output.copy_(fitting)
            return
        if not _fits(x):
            x = x.float().contiguous()
        if bias is not None:
            bias = bias.float().contiguous()
        places = (x.data_ptr(), output.data_ptr())
        bias_place = None if bias is None else bias.data_ptr()
        for factors, others in self._arguments:
            self._call(*places, *factors, bias_place, *others, torch.get_num_threads())


def _arguments_of(spans: KernelSpans, table: TableContent) -> tuple[tuple[int, ...], ...]:
    """The kernel's arguments before and after the bias that are the same in each pass."""
    factors = (table.a.data_ptr(), table.b.data_ptr(), _KINDS[table.a.dtype])
    lengths = (table.a.shape[1], table.b.shape[1])  # of rows, so the distances between them, too
    entries = (spans.products.data_ptr(), spans.entries.data_ptr(), len(spans.entries))
    return factors, (*entries, *lengths, *lengths)


def _fits(tokens: torch.Tensor) -> bool:
    """Whether the kernel can read a tensor as it is."""
    return tokens.dtype == torch.float32 and tokens.is_contiguous()
