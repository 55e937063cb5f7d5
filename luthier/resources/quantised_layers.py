"""Linear layers whose frozen weights take 8 or 4 bits a number, by bitsandbytes' arithmetic.

bitsandbytes' own layers change themselves while they run: they move their scales about at the
first pass, and pack their weights anew between training and generating. Ours hold the same numbers
and never change, so any number of threads, and of trees around the same tensors, may run them.

    8 bits  weight int8 [out, in], one scale per output (LLM.int8() without its outliers, so that
            what a row gives does not hang on the rows beside it)
    4 bits  two numbers a byte, one scale per block of 64, and these scales in 8 bits themselves
"""

from __future__ import annotations

import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Self

import torch
from torch import nn

from luthier.errors import NotSupportedError

_STATE_TENSORS = ("absmax", "code", "offset", "nested_absmax", "nested_code")


class QuantisedLinear(nn.Linear, ABC):
    """A frozen linear layer with quantised weights.

    Args:
        weight: As packed; its shape says nothing.
        bias: [out], or None.
        shape: [out, in] of what was quantised.

    Shape:
        forward: [.., in] -> [.., out], in the dtype that comes in.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, shape: torch.Size) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter(
            "bias", None if bias is None else nn.Parameter(bias, requires_grad=False)
        )

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What beside its tensors makes this layer, as JSON values; ``empty`` takes it."""

    @classmethod
    @abstractmethod
    def empty(cls, settings: Mapping[str, Any]) -> Self:
        """A layer that is yet to be given the tensors of another, under their names.

        Args:
            settings: The other one's.

        Returns:
            A layer whose tensors are placeholders without memory.
        """

    @abstractmethod
    def dequantised_weight(self) -> torch.Tensor:
        """What the numbers stand for, [out, in]; made anew at each call."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move, but leave scales in their own precision whatever the model is moved to."""
        kept = {name: buffer for name, buffer in self.named_buffers(recurse=False)}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self


class Int8Linear(QuantisedLinear):
    """8 bits a number.

    Args:
        weight: int8 [out, in].
        scale: Largest number of each output, fp32 [out].
        bias: [out], or None.
    """

    scale: torch.Tensor

    def __init__(
        self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        super().__init__(weight, bias, weight.shape)
        self.register_buffer("scale", scale, persistent=False)

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> Self:
        """Quantise a float weight, [out, in]."""
        package = require_bitsandbytes()
        packed, scale, _ = package.functional.int8_vectorwise_quant(
            weight.detach().to(torch.float16).contiguous()
        )
        return cls(packed, scale, bias)

    def settings(self) -> dict[str, Any]:
        """Its shape, and whether it has a bias."""
        return _shape_settings(self)

    @classmethod
    def empty(cls, settings: Mapping[str, Any]) -> Self:
        """A layer that is yet to be given its tensors."""
        weight = torch.empty(settings["shape"], dtype=torch.int8, device="meta")
        return cls(weight, _placeholder(), _placeholder() if settings["has_bias"] else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x Wᵀ + bias``. On a CPU in the dtype of ``x``; on a GPU ``x`` is rounded to 8 bits."""
        package = require_bitsandbytes()
        state = package.MatmulLtState()
        state.CB, state.SCB = self.weight.data, self.scale
        state.has_fp16_weights = False
        # What bitsandbytes calls training is on a CPU the way that does not round ``x``.
        state.is_training = True
        bias = self.bias if self.bias is None else self.bias.to(x.dtype)
        output: torch.Tensor = package.matmul(x, self.weight, state=state, bias=bias)
        return output

    def dequantised_weight(self) -> torch.Tensor:
        """fp32 [out, in]."""
        return self.weight.float() * (self.scale / 127.0)[:, None]


class Int4Linear(QuantisedLinear):
    """4 bits a number, as one of 16 values of ``nf4`` or ``fp4``.

    Args:
        weight: uint8 [out · in / 2, 1].
        state: bitsandbytes' ``QuantState`` of it.
        bias: [out], or None.

    Source:
        Dettmers et al. 2023, arXiv 2305.14314.
    """

    def __init__(self, weight: torch.Tensor, state: Any, bias: torch.Tensor | None) -> None:
        super().__init__(weight, bias, state.shape)
        tensors = (
            state.absmax,
            state.code,
            state.offset,
            state.state2.absmax,
            state.state2.code,
        )
        for name, tensor in zip(_STATE_TENSORS, tensors, strict=True):
            self.register_buffer(name, tensor, persistent=False)
        self._shape, self._dtype = state.shape, state.dtype
        self._block, self._type = state.blocksize, state.quant_type
        self._nested_block, self._nested_dtype = state.state2.blocksize, state.state2.dtype

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor | None, *, quant_type: str) -> Self:
        """Quantise a float weight, [out, in]; ``quant_type`` is ``nf4`` or ``fp4``."""
        package = require_bitsandbytes()
        packed, state = package.functional.quantize_4bit(
            weight.detach().contiguous(), compress_statistics=True, quant_type=quant_type
        )
        return cls(packed, state, bias)

    def settings(self) -> dict[str, Any]:
        """Its shape, whether it has a bias, and how its blocks are packed."""
        return {
            **_shape_settings(self),
            "dtype": _name_of(self._dtype),
            "block": self._block,
            "type": self._type,
            "nested_block": self._nested_block,
            "nested_dtype": _name_of(self._nested_dtype),
        }

    @classmethod
    def empty(cls, settings: Mapping[str, Any]) -> Self:
        """A layer that is yet to be given its tensors."""
        kind = require_bitsandbytes().functional.QuantState
        nested = kind(
            absmax=_placeholder(),
            code=_placeholder(),
            blocksize=settings["nested_block"],
            dtype=getattr(torch, settings["nested_dtype"]),
        )
        state = kind(
            absmax=_placeholder(),
            shape=torch.Size(settings["shape"]),
            dtype=getattr(torch, settings["dtype"]),
            blocksize=settings["block"],
            code=_placeholder(),
            quant_type=settings["type"],
            offset=_placeholder(),
            state2=nested,
        )
        bias = _placeholder() if settings["has_bias"] else None
        return cls(torch.empty(0, dtype=torch.uint8, device="meta"), state, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x Wᵀ + bias``, computed in the dtype of ``x``."""
        bias = self.bias if self.bias is None else self.bias.to(x.dtype)
        output: torch.Tensor = require_bitsandbytes().matmul_4bit(
            x, self.weight, quant_state=self._state(), bias=bias
        )
        return output

    def dequantised_weight(self) -> torch.Tensor:
        """[out, in], in the dtype that was quantised."""
        weight: torch.Tensor = require_bitsandbytes().functional.dequantize_4bit(
            self.weight.data, self._state()
        )
        return weight

    def _state(self) -> Any:
        kind = require_bitsandbytes().functional.QuantState
        absmax, code, offset, nested_absmax, nested_code = (
            getattr(self, name) for name in _STATE_TENSORS
        )
        nested = kind(
            absmax=nested_absmax,
            code=nested_code,
            blocksize=self._nested_block,
            dtype=self._nested_dtype,
        )
        return kind(
            absmax=absmax,
            shape=self._shape,
            dtype=self._dtype,
            blocksize=self._block,
            code=code,
            quant_type=self._type,
            offset=offset,
            state2=nested,
        )


def _shape_settings(layer: QuantisedLinear) -> dict[str, Any]:
    shape = [layer.out_features, layer.in_features]
    return {"shape": shape, "has_bias": layer.bias is not None}


def _placeholder() -> torch.Tensor:
    return torch.empty(0, device="meta")


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def require_bitsandbytes() -> ModuleType:
    """The package, imported at first use: that takes seconds.

    Returns:
        ``bitsandbytes``.

    Raises:
        NotSupportedError: If it is not installed.
    """
    package_log = logging.getLogger("bitsandbytes")
    level = package_log.level
    try:
        # It warns of a kernel for packed weights, which are not used here.
        package_log.setLevel(logging.ERROR)
        import bitsandbytes  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise NotSupportedError(
            "quantised base models need the package bitsandbytes, which is not installed: "
            "pip install 'luthier[quantization]'"
        ) from error
    finally:
        package_log.setLevel(level)
    found: ModuleType = bitsandbytes
    return found
