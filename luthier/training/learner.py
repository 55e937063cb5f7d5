"""From rows to gradients: forward and backward of one training's micro-batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from luthier.adapters.base import Adapter
from luthier.data_model.options.training_options import TrainingOptions
from luthier.resources.base_model import BaseModel
from luthier.training.data.collation import TokenBatch
from luthier.training.networks.embedding_noise import EmbeddingNoise
from luthier.training.networks.mixed_precision import autocast_dtype
from luthier.training.networks.network import TrainingNetwork
from luthier.training.objective import label_weights
from luthier.training.optimization.learned_parameters import choose_learned
from luthier.training.processes.parallel import ALONE, ProcessGroup


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Rows that go forward and backward together; an update learns from one or several.

    Args:
        learner: Of the training that the rows belong to.
        batch: The rows.
        units: What the update's losses are divided by: its label tokens, or its rows. Dividing by
            the units of the whole update is what makes k batches of b rows the same as one of k·b.
            Smaller by the factor that scales the loss in fp16.
        number: Of the batch in the whole training, from 0. With the seed it decides what is drawn.
    """

    learner: Learner
    batch: TokenBatch
    units: float
    number: int

    def backward(self) -> torch.Tensor:
        """Add this batch's part of the update's gradient; its loss, summed, without a graph."""
        return self.learner.backward(self)


class Learner:
    """An adapter on a base model, ready to learn from batches.

    Args:
        base_model: The frozen base.
        adapter: What is learned.
        options: Dropout, checkpointing, loss function and seed count.
        noise: Added to embeddings, or None.
        group: The processes that train together.
    """

    def __init__(
        self,
        base_model: BaseModel,
        adapter: Adapter,
        options: TrainingOptions,
        *,
        noise: EmbeddingNoise | None = None,
        group: ProcessGroup = ALONE,
    ) -> None:
        self.adapter = adapter
        self.options = options
        self.noise = noise
        self.network = TrainingNetwork(
            base_model,
            adapter,
            base_dropout=options.base_dropout,
            intermediate_dropout=options.intermediate_dropout,
            gradient_checkpointing=options.gradient_checkpointing,
            embedding_noise=noise,
            computes_in=autocast_dtype(options.mixed_precision),
            is_compiled=options.compile_model,
            sharing=group if options.use_fsdp else None,
            learned=choose_learned(adapter, options) if options.use_fsdp else None,
        )
        self._device = base_model.device

    def backward(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Forward and backward; what is drawn depends on the seed and the batch's number.

        Args:
            micro_batch: One of this learner's.

        Returns:
            The loss, summed, without a graph.
        """
        batch, number = micro_batch.batch, micro_batch.number
        with self._dropout_randomness(number), self._embedding_noise(batch, number):
            loss_sum = self.network.loss_sum(batch, self.label_weights(batch))
            (loss_sum / micro_batch.units).backward()
        return loss_sum.detach()

    def label_weights(self, batch: TokenBatch) -> torch.Tensor | None:
        """What each label of a batch counts, fp32 [N]; None if all count 1."""
        return label_weights(batch, self.options.loss_function)

    def dropout_seed(self, number: int) -> int:
        """Seeds what is dropped in a batch."""
        return (self.options.seed + number) % 2**63

    @contextlib.contextmanager
    def _dropout_randomness(self, number: int) -> Iterator[None]:
        """Repeatable dropout, where there is any: torch offers it no generator of its own."""
        options = self.options
        is_dropping = options.base_dropout or bool(options.intermediate_dropout)
        if not (is_dropping or self.adapter.has_dropout):
            yield
            return
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.dropout_seed(number))
            yield

    def _embedding_noise(
        self, batch: TokenBatch, number: int
    ) -> contextlib.AbstractContextManager[None]:
        if self.noise is None:
            return contextlib.nullcontext()
        return self.noise.applied(batch.attention_mask, batch=number)
