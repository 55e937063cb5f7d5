"""One pass of a frozen base model for the micro-batches of several trainings.

Rows of all of them are laid end to end. Linear layers see all tokens at once, attention goes batch
by batch, each LoRA sees its own tokens (``adapters/lora_segments``). The sum of all losses, each
divided as it would be alone, has for each adapter the gradient that it would get alone::

    Σ_j  loss_j / units_j      and loss_j does not depend on another adapter's parameters
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional

from luthier.adapters.base import Adapter
from luthier.adapters.lora.layers import LoraLinear
from luthier.adapters.lora.segments import RandomStream, Segment, SegmentedLora, SegmentPlan
from luthier.adapters.module_tree import own_module_tree
from luthier.resources.base_model import BaseModel
from luthier.training.learner import Learner, MicroBatch
from luthier.training.losses import projected_label_losses
from luthier.training.networks.label_head import install_label_head
from luthier.training.networks.packed_network import PackedNetwork, PackedPart


@dataclass(frozen=True, eq=False)
class FusedPart:
    """A micro-batch that can share a pass.

    Args:
        micro_batch: Its rows.
        part: The same, packed.
    """

    micro_batch: MicroBatch
    part: PackedPart

    @property
    def num_tokens(self) -> int:
        """Tokens in the pass, virtual ones included."""
        return self.part.num_tokens


def why_not_fused(base_model: BaseModel, learner: Learner) -> str | None:
    """What keeps a training from sharing passes.

    Args:
        base_model: The frozen base.
        learner: Of the training.

    Returns:
        A reason, in words for people; None if it can share.
    """
    options = learner.options
    if options.base_dropout:
        return "the base model's own dropout draws one noise for a whole pass"
    if options.compile_model or options.use_fsdp:
        return "its network is compiled or shared out to processes"
    if options.mixed_precision != "off":
        return "mixed precision is chosen for a whole pass"
    if options.gradient_checkpointing:
        return "gradient checkpointing is about one training's activations"
    if learner.noise is not None:
        return "noise on embeddings belongs to padded rows"
    if not learner.network.packs_rows:
        return "its rows are padded, and only packed rows share a pass"
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
        model = own_module_tree(base_model.model).eval()
        install_label_head(model)
        self._base_model = base_model
        self._packed = PackedNetwork(model)
        self._plan = SegmentPlan()
        self._layers: WeakKeyDictionary[Learner, list[SegmentedLora]] = WeakKeyDictionary()

    def add(self, learner: Learner) -> None:
        """Let a training take part.

        Args:
            learner: One that ``why_not_fused`` has nothing against.
        """
        deltas = _deltas_of(self._base_model, learner.adapter) or {}
        layers = self._layers[learner] = []
        model = self._packed.model
        for path, delta in deltas.items():
            layer = model.get_submodule(path)
            if not isinstance(layer, SegmentedLora):
                layer = SegmentedLora(layer, self._plan)
                model.set_submodule(path, layer)
            layer.deltas[learner] = delta
            layers.append(layer)

    def remove(self, learner: Learner) -> None:
        """Forget a training."""
        for layer in self._layers.pop(learner, []):
            layer.deltas.pop(learner, None)

    def pack(self, micro_batch: MicroBatch) -> FusedPart | None:
        """Make a micro-batch ready for a pass.

        Args:
            micro_batch: Of a training that was added.

        Returns:
            The part; None if its rows cannot be packed and have to go alone.
        """
        learner = micro_batch.learner
        part = self._packed.pack(
            micro_batch.batch,
            learner.adapter.soft_prompt().decoder,
            shares_text=not learner.adapter.has_dropout,
        )
        return None if part is None else FusedPart(micro_batch, part)

    def forward(self, parts: Sequence[FusedPart]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """One pass.

        Args:
            parts: From ``pack``, each of another training, since their last update.

        Returns:
            What to call ``backward`` on, a scalar; and the summed loss of each part, without a
            graph.
        """
        self._plan.segments = self._segments(parts)
        logits = self._packed.run_parts([part.part for part in parts])
        labels = torch.cat([part.part.packed.labels for part in parts])
        counts = [len(part.part.packed.labels) for part in parts]
        weights = [_weights(part, labels.device) for part in parts]
        units = [part.micro_batch.units for part in parts]
        shares = torch.cat([each / unit for each, unit in zip(weights, units, strict=True)])
        total, losses = self._losses(logits, labels, shares)
        loss_sums = [
            (losses_of_part * weights_of_part).sum()
            for losses_of_part, weights_of_part in zip(losses.split(counts), weights, strict=True)
        ]
        return total, loss_sums

    def _losses(
        self, logits: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of all losses by their shares, and each loss without a graph."""
        label_head = self._packed.label_head
        head, hidden = label_head.head, label_head.hidden
        if label_head.keeps_hidden and isinstance(head, nn.Linear) and hidden is not None:
            return projected_label_losses(hidden, head.weight, head.bias, labels, shares)
        losses = functional.cross_entropy(logits[0].float(), labels, reduction="none")
        return (losses * shares).sum(), losses.detach()

    def _segments(self, parts: Sequence[FusedPart]) -> list[Segment]:
        segments, start = [], 0
        for part in parts:
            learner, stop = part.micro_batch.learner, start + part.num_tokens
            stream = None
            if learner.adapter.has_dropout:
                seed = learner.dropout_seed(part.micro_batch.number)
                stream = RandomStream(seed, self._base_model.device)
            segments.append(Segment(learner, start, stop, stream))
            start = stop
        return segments


def _weights(part: FusedPart, device: torch.device) -> torch.Tensor:
    """What each label of a part counts in its loss, fp32 [N]."""
    weights = part.micro_batch.learner.label_weights(part.micro_batch.batch)
    if weights is None:
        return torch.ones(len(part.part.packed.labels), device=device)
    return weights.to(device)


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
