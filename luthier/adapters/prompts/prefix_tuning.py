"""Prefix tuning: learned keys and values before those of every attention layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

from luthier.adapters.base import Adapter, SoftPromptTensors
from luthier.adapters.prompts.prompt_encoders import PrefixProjection
from luthier.adapters.prompts.soft_prompt import (
    MAX_VIRTUAL_TOKENS,
    PEFT_TASK_TYPES,
    BaseModelKind,
    PromptPlace,
)
from luthier.data_model.options.prompt_encoder import PromptEncoderOptions
from luthier.errors import InvalidInputError

PREFIX_TUNING_TYPE = "PREFIX_TUNING"


@dataclass(frozen=True)
class PrefixShape:
    """Of the keys and values of one virtual token.

    Args:
        num_layers: L, of the stack that makes logits.
        num_kv_heads: K.
        head_dim: Dh.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int

    @property
    def layer_width(self) -> int:
        """Keys of one layer, K·Dh; what PEFT calls the token's dimension."""
        return self.num_kv_heads * self.head_dim

    @property
    def width(self) -> int:
        """Keys and values of all layers, 2·L·K·Dh."""
        return 2 * self.num_layers * self.layer_width


class PrefixTuning(Adapter):
    """P virtual tokens that are keys and values in each layer, not embeddings before the first.

    In a seq2seq model they stand in the decoder's attention to itself. There PEFT cuts one table
    of 2·L tensors into twice as many and takes every other pair, so layer i has the pair that
    starts at ``4·i mod 2·L``; so do we, or its adapters would compute something else here.

    Args:
        rows: One per virtual token: keys and values of all layers, [P, 2·L·K·Dh], or what goes
            into the projection, [P, K·Dh]. Copied.
        projection: Makes keys and values of rows; None for none. Taken over.
        kind: Of the base model.
        shape: Of keys and values.
        options: Of the projection.

    Raises:
        InvalidInputError: If the rows do not have this shape.

    Source:
        Li & Liang 2021, https://arxiv.org/abs/2101.00190
    """

    method: ClassVar[str] = "prefix_tuning"
    #: A prefix stands in the stack that makes logits.
    places: tuple[PromptPlace, ...] = ("decoder",)

    def __init__(
        self,
        rows: torch.Tensor,
        projection: PrefixProjection | None = None,
        *,
        kind: BaseModelKind,
        shape: PrefixShape,
        options: PromptEncoderOptions,
    ) -> None:
        width = shape.width if projection is None else shape.layer_width
        if rows.ndim != 2 or not rows.is_floating_point() or rows.shape[1] != width:
            raise InvalidInputError(
                f"a prefix for this base model must be float numbers of shape [virtual tokens, "
                f"{width}], got {rows.dtype} {list(rows.shape)}"
            )
        if not 1 <= len(rows) <= MAX_VIRTUAL_TOKENS:
            raise InvalidInputError(
                f"a prefix has from 1 to {MAX_VIRTUAL_TOKENS} virtual tokens, got {len(rows)}"
            )
        self.kind: BaseModelKind = kind
        self.shape = shape
        self.options = options
        self.rows = nn.Parameter(rows.detach().clone())
        self.projection = projection

    @property
    def num_virtual_tokens(self) -> int:
        """P."""
        return self.rows.shape[0]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """``embedding.weight`` and the projection's, or ``prompt_embeddings`` if there is none."""
        if self.projection is None:
            yield "prompt_embeddings", self.rows
            return
        yield "embedding.weight", self.rows
        yield from self.projection.named_parameters()

    def soft_prompt(self) -> SoftPromptTensors:
        """None: the input stays as it is."""
        return SoftPromptTensors()

    def prefix_key_values(self) -> torch.Tensor:
        """Keys and values by layer, [2·L, K, P, Dh]."""
        shape = self.shape
        parts = self._flat().view(
            self.num_virtual_tokens, 2 * shape.num_layers, shape.num_kv_heads, shape.head_dim
        )
        parts = parts.permute(1, 2, 0, 3)
        if self.kind == "causal":
            return parts
        starts = [4 * layer % len(parts) for layer in range(shape.num_layers)]
        return parts[[index for start in starts for index in (start, start + 1)]]

    def served(self) -> Self:
        """Keys and values without the projection."""
        if self.projection is None:
            return self
        return self._copy(self._flat().detach())

    def peft_config(self) -> dict[str, Any]:
        """PEFT's ``PrefixTuningConfig``."""
        return {
            "auto_mapping": None,
            "base_model_name_or_path": None,
            "encoder_hidden_size": self.options.hidden_size or self.shape.layer_width,
            "inference_mode": True,
            "init_weights": None,
            "num_attention_heads": self.shape.num_kv_heads,
            "num_layers": self.shape.num_layers,
            "num_transformer_submodules": 1 if self.kind == "causal" else 2,
            "num_virtual_tokens": self.num_virtual_tokens,
            "peft_type": PREFIX_TUNING_TYPE,
            "prefix_projection": self.options.prefix_projection,
            "revision": None,
            "task_type": PEFT_TASK_TYPES[self.kind],
            "token_dim": self.shape.layer_width,
        }

    def peft_state(self) -> Mapping[str, torch.Tensor]:
        """``prompt_embeddings``: keys and values, flat, [P, 2·L·K·Dh]."""
        return {"prompt_embeddings": self._flat().detach()}

    def to(self, *, device: torch.device, dtype: torch.dtype) -> Self:
        """A copy on ``device`` in ``dtype`` without the projection (self if nothing changes)."""
        if self.rows.device == device and self.rows.dtype == dtype:
            return self
        return self._copy(self._flat().detach().to(device=device, dtype=dtype))

    def placed_on(self, device: torch.device) -> Self:
        """The adapter itself, moved with its projection to where it will be learned."""
        if self.rows.device != device:
            self.rows = nn.Parameter(self.rows.detach().to(device))
            if self.projection is not None:
                self.projection.to(device)
        return self

    def _flat(self) -> torch.Tensor:
        flat: torch.Tensor = self.rows if self.projection is None else self.projection(self.rows)
        return flat

    def _copy(self, rows: torch.Tensor) -> Self:
        return type(self)(rows, kind=self.kind, shape=self.shape, options=self.options)

    def _hashed_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.peft_state().items()

    def _settings(self) -> list[object]:
        shape = self.shape
        return [self.kind, shape.num_layers, shape.num_kv_heads, shape.head_dim]


def new_prefix_tuning(
    num_virtual_tokens: int,
    shape: PrefixShape,
    *,
    kind: BaseModelKind,
    options: PromptEncoderOptions,
    generator: torch.Generator,
) -> PrefixTuning:
    """Prefix tuning before its first update, as PEFT starts it.

    Args:
        num_virtual_tokens: P.
        shape: Of the base model's keys and values.
        kind: Of the base model.
        options: Of the projection, validated.
        generator: On the CPU; advanced.

    Returns:
        The adapter, on the CPU in float32.
    """
    width = shape.layer_width if options.prefix_projection else shape.width
    rows = torch.empty(num_virtual_tokens, width).normal_(generator=generator)
    projection = None
    if options.prefix_projection:
        inner_size = options.hidden_size or shape.layer_width
        projection = PrefixProjection(width, inner_size, shape.width, generator)
    return PrefixTuning(rows, projection, kind=kind, shape=shape, options=options)
