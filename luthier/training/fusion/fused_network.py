"""One pass of a frozen base model for the micro-batches of several trainings.

Rows of all of them are laid end to end, or below each other where they cannot be packed. Linear
layers see all tokens at once, attention goes batch by batch or row by row, each LoRA sees its own
tokens (``adapters/lora/segments``). The sum of all losses, each divided as it would be alone, has
for each adapter the gradient that it would get alone::

    Σ_j  loss_j / units_j      and loss_j does not depend on another adapter's parameters
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from luthier.adapters.base import Adapter
from luthier.adapters.lora.layers import LoraLinear
from luthier.adapters.lora.segments import RandomStream, Segment, SegmentedLora, SegmentPlan
from luthier.adapters.module_tree import own_module_tree
from luthier.resources.base_model import BaseModel
from luthier.training.fusion.padded_parts import PaddedPart, PaddedParts
from luthier.training.learner import Learner, MicroBatch
from luthier.training.losses import projected_label_losses
from luthier.training.networks.label_head import LabelHead, install_label_head
from luthier.training.networks.mixed_precision import autocast_dtype
from luthier.training.networks.packed_network import PackedNetwork, PackedPart, pack_if_exact

_Passes = TypeVar("_Passes", PackedNetwork, PaddedParts)


@dataclass(frozen=True, eq=False)
class FusedPart:
    """A micro-batch that can share a pass.

    Args:
        micro_batch: Its rows.
        part: The same, packed or to be padded.
        width: Tokens of a row with padding; 0 where rows are packed.
        stream: Where its dropout comes from; None if there is none.
    """

    micro_batch: MicroBatch
    part: PackedPart | PaddedPart
    width: int = 0
    stream: RandomStream | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens in the pass, virtual ones and its own padding included."""
        if isinstance(self.part, PackedPart):
            return self.part.num_tokens
        return self.part.num_rows * self.width

    @property
    def kind(self) -> Hashable:
        """What parts of one pass have in common."""
        own = self.part.kind if isinstance(self.part, PaddedPart) else None
        return own, self.micro_batch.learner.options.mixed_precision

    @property
    def labels(self) -> torch.Tensor:
        """What is learned, row after row, [N]."""
        return self.part.packed.labels if isinstance(self.part, PackedPart) else self.part.labels


def why_not_fused(base_model: BaseModel, learner: Learner) -> str | None:
    """What keeps a training from sharing passes.

    Args:
        base_model: The frozen base.
        learner: Of the training.

    Returns:
        A reason, in words for people; None if it can share.
    """
    options = learner.options
    if options.base_dropout or options.intermediate_dropout:
        return "the base model's own dropout draws one noise for a whole pass"
    if options.compile_model or options.use_fsdp:
        return "its network is compiled or shared out to processes"
    if options.gradient_checkpointing:
        return "gradient checkpointing is about one training's activations"
    if _deltas_of(base_model, learner.adapter) is None:
        return f"{learner.adapter.method} changes more of the base model than LoRA's deltas"
    return None


class FusedNetwork:
    """Runs micro-batches of several trainings over one base model.

    Trainings are added before their first micro-batch and removed after their last.

    Args:
        base_model: The frozen base; not changed.
    """

    def __init__(self, base_model: BaseModel) -> None:
        self._base_model = base_model
        # Either is made when the first training needs it.
        self._packed: _Tree[PackedNetwork] | None = None
        self._padded: _Tree[PaddedParts] | None = None

    def add(self, learner: Learner) -> None:
        """Let a training take part.

        Args:
            learner: One that ``why_not_fused`` has nothing against.
        """
        deltas = _deltas_of(self._base_model, learner.adapter) or {}
        if _packs(learner):
            self._packed_tree().add(learner, deltas)
        else:
            self._padded_tree().add(learner, deltas)

    def remove(self, learner: Learner) -> None:
        """Forget a training."""
        for tree in (self._packed, self._padded):
            if tree is not None:
                tree.remove(learner)

    def pack(self, micro_batch: MicroBatch) -> FusedPart | None:
        """Make a micro-batch ready for a pass.

        Args:
            micro_batch: Of a training that was added.

        Returns:
            The part; None if its rows cannot be laid beside others and have to go alone.
        """
        learner = micro_batch.learner
        has_dropout = learner.adapter.has_dropout
        stream = None
        if has_dropout:
            seed = learner.dropout_seed(micro_batch.number)
            stream = RandomStream(seed, self._base_model.device)
        drawing = stream.drawn_from() if stream is not None else contextlib.nullcontext()
        with drawing, self._in_precision_of(learner):
            prompt = learner.adapter.soft_prompt()
            key_values = learner.adapter.prefix_key_values()
        if _packs(learner):
            passes = self._packed_tree().passes
            packed = passes.pack(micro_batch.batch, prompt.decoder, shares_text=not has_dropout)
            return None if packed is None else FusedPart(micro_batch, packed, 0, stream)
        part = PaddedPart(
            micro_batch.batch, prompt, key_values, learner.noise, number=micro_batch.number
        )
        is_seq2seq = self._base_model.kind == "seq2seq"
        if not is_seq2seq and part.starts_with_label:
            return None
        width = sum(part.widths(is_seq2seq=is_seq2seq)) + part.num_cached
        return FusedPart(micro_batch, part, width, stream)

    def forward(self, parts: Sequence[FusedPart]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """One pass.

        Args:
            parts: From ``pack``, alike in ``kind``, each of another training, since their last
                update.

        Returns:
            What to call ``backward`` on, a scalar; and the summed loss of each part, without a
            graph.
        """
        learner = parts[0].micro_batch.learner
        dtype = autocast_dtype(learner.options.mixed_precision)
        labels = torch.cat([part.labels for part in parts])
        counts = [len(part.labels) for part in parts]
        in_loss = torch.promote_types(self._base_model.dtype, torch.float32)
        weights = [_weights(part, labels, in_loss) for part in parts]
        units = [part.micro_batch.units for part in parts]
        shares = torch.cat([each / unit for each, unit in zip(weights, units, strict=True)])
        with self._in_precision_of(learner):
            label_head, logits = self._run(parts)
        total, losses = _losses(label_head, logits, labels, shares, dtype)
        loss_sums = [
            (losses_of_part * weights_of_part).sum()
            for losses_of_part, weights_of_part in zip(losses.split(counts), weights, strict=True)
        ]
        return total, loss_sums

    def _in_precision_of(self, learner: Learner) -> torch.autocast:
        dtype = autocast_dtype(learner.options.mixed_precision)
        device = self._base_model.device
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)

    def _run(self, parts: Sequence[FusedPart]) -> tuple[LabelHead, torch.Tensor]:
        packed = [part.part for part in parts if isinstance(part.part, PackedPart)]
        if packed:
            tree = self._packed_tree()
            tree.plan.segments = _token_segments(parts)
            return tree.passes.label_head, tree.passes.run_parts(packed)
        padded_tree = self._padded_tree()
        padded = [part.part for part in parts if isinstance(part.part, PaddedPart)]
        padded_tree.plan.segments = _row_segments(
            parts, padded, padded_tree.passes.widths(padded), self._base_model.kind == "seq2seq"
        )
        return padded_tree.passes.label_head, padded_tree.passes.run(padded)

    def _packed_tree(self) -> _Tree[PackedNetwork]:
        if self._packed is None:
            model, _ = self._own_network()
            # Tokens without a label go all the way: deltas are told by where a token stands.
            packed = pack_if_exact(model, None, shares_text=False) or PackedNetwork(model)
            self._packed = _Tree(packed, is_padded=False)
        return self._packed

    def _padded_tree(self) -> _Tree[PaddedParts]:
        if self._padded is None:
            padded = PaddedParts(self._base_model, *self._own_network())
            self._padded = _Tree(padded, is_padded=True)
        return self._padded

    def _own_network(self) -> tuple[PreTrainedModel, LabelHead]:
        model = own_module_tree(self._base_model.model).eval()
        return model, install_label_head(model)


class _Tree(Generic[_Passes]):
    """A network around the base's tensors, with the deltas of every training in its layers.

    Args:
        passes: Runs it.
        is_padded: Whether its rows are.
    """

    def __init__(self, passes: _Passes, *, is_padded: bool) -> None:
        self.passes: _Passes = passes
        self.plan = SegmentPlan()
        self.plan.is_padded = is_padded
        self._layers: WeakKeyDictionary[Learner, list[SegmentedLora]] = WeakKeyDictionary()

    def add(self, learner: Learner, deltas: dict[str, LoraLinear]) -> None:
        """Put a training's deltas, by path, beside their layers."""
        layers = self._layers[learner] = []
        model = self.passes.model
        for path, delta in deltas.items():
            layer = model.get_submodule(path)
            if not isinstance(layer, SegmentedLora):
                layer = SegmentedLora(layer, self.plan)
                model.set_submodule(path, layer)
            layer.deltas[learner] = delta
            layers.append(layer)

    def remove(self, learner: Learner) -> None:
        """Take a training's deltas away."""
        for layer in self._layers.pop(learner, []):
            layer.deltas.pop(learner, None)


def _packs(learner: Learner) -> bool:
    """Whether a training's rows are laid end to end; each row's noise belongs to padded ones."""
    return learner.network.packs_rows and learner.noise is None


def _losses(
    label_head: LabelHead,
    logits: torch.Tensor,
    labels: torch.Tensor,
    shares: torch.Tensor,
    dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of all losses by their shares, and each loss without a graph."""
    head, hidden = label_head.head, label_head.hidden
    if label_head.keeps_hidden and isinstance(head, nn.Linear) and hidden is not None:
        weight: torch.Tensor = head.weight
        bias: torch.Tensor | None = head.bias
        if dtype is not None:
            hidden, weight = hidden.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return projected_label_losses(hidden, weight, bias, labels, shares)
    losses = functional.cross_entropy(logits[0].to(shares.dtype), labels, reduction="none")
    return (losses * shares).sum(), losses.detach()


def _token_segments(parts: Sequence[FusedPart]) -> list[Segment]:
    segments, start = [], 0
    for part in parts:
        stop = start + part.num_tokens
        segments.append(Segment(part.micro_batch.learner, start, stop, part.stream))
        start = stop
    return segments


def _row_segments(
    parts: Sequence[FusedPart],
    padded: Sequence[PaddedPart],
    of_pass: tuple[int, int],
    is_seq2seq: bool,
) -> list[Segment]:
    segments, start = [], 0
    for part, rows in zip(parts, padded, strict=True):
        stop = start + rows.num_rows
        widths = dict(zip(of_pass, rows.widths(is_seq2seq=is_seq2seq), strict=True))
        segments.append(Segment(part.micro_batch.learner, start, stop, part.stream, widths))
        start = stop
    return segments


def _weights(part: FusedPart, labels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What each label of a part counts in its loss, [N], in ``dtype``."""
    weights = part.micro_batch.learner.label_weights(part.micro_batch.batch)
    if weights is None:
        return torch.ones(len(part.labels), device=labels.device, dtype=dtype)
    return weights.to(labels.device, dtype)


def _deltas_of(base_model: BaseModel, adapter: Adapter) -> dict[str, LoraLinear] | None:
    """The LoRA layers by path, none for methods that leave the network alone; None if an adapter
    changes anything else of it."""
    tuned = adapter.tuned_model(base_model.model)
    if tuned is base_model.model:
        return {}
    deltas = {path: layer for path, layer in tuned.named_modules() if isinstance(layer, LoraLinear)}
    known = {id(parameter) for layer in deltas.values() for parameter in layer.parameters()}
    is_all = all(id(parameter) in known for _, parameter in adapter.named_parameters())
    return deltas if is_all else None
