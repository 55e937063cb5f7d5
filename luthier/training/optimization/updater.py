"""From gradients to changed parameters: one update."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from luthier.adapters.base import Adapter
from luthier.adapters.full_weights import FullWeights
from luthier.data_model.options.training_options import TrainingOptions
from luthier.training.networks.mixed_precision import LossScale
from luthier.training.optimization.learned_parameters import (
    MasterWeights,
    choose_learned,
    put_back,
    requiring_gradients,
)
from luthier.training.optimization.optimizers import (
    build_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
)
from luthier.training.processes.parallel import ProcessGroup
from luthier.training.processes.sharding import whole_tensor

#: Of torch's ``clip_grads_with_norm_``.
_CLIP_EPSILON = 1e-6


class Updater:
    """What is learned, its optimizer, and the copies in fp32 where it is held in half precision.

    Args:
        adapter: What is tuned.
        options: Optimizer, clip, frozen layers.
        shares: This process's shares of what is learned, by name; what is not here is whole.

    Raises:
        InvalidInputError: If the options leave nothing to learn or name no layer.
        NotSupportedError: For an optimizer that this machine cannot run.
    """

    def __init__(
        self,
        adapter: Adapter,
        options: TrainingOptions,
        *,
        shares: Mapping[str, nn.Parameter] = MappingProxyType({}),
    ) -> None:
        self._adapter = adapter
        self._max_norm = options.max_grad_norm
        #: What is learned, by name, as the model holds it.
        self.learned = {**choose_learned(adapter, options), **shares}
        self._shares = shares
        #: What a loss is multiplied with before its backward pass; ``gradient_norm`` takes it out.
        self.loss_scale = LossScale(options.mixed_precision)
        self._masters = MasterWeights(self.learned)
        self._optimizer = build_optimizer(
            self._masters.named.items(), options, learning_rate_factor=adapter.learning_rate_factor
        )

    @property
    def num_trainable(self) -> int:
        """Numbers that are learned."""
        return sum(parameter.numel() for parameter in self.learned.values())

    def requiring_gradients(self) -> contextlib.AbstractContextManager[None]:
        """Gradients for what is learned, for as long as this lasts."""
        return requiring_gradients(self._adapter, self.learned)

    def copy_from_main(self, group: ProcessGroup) -> None:
        """Give every process the main one's numbers."""
        whole = [each for name, each in self._masters.named.items() if name not in self._shares]
        group.copy_from_main(whole)
        self._masters.give_back()

    def sum_gradients(self, group: ProcessGroup) -> None:
        """Give every process the sum of the processes' gradients."""
        # Those of shares were summed on the way back through the model.
        group.sum_gradients(
            parameter for name, parameter in self.learned.items() if name not in self._shares
        )

    def gradient_norm(self) -> float:
        """The Euclidean norm of all gradients together; not finite if one of them is not. The
        loss's scale is taken out of them, so call it once per update."""
        self._masters.take_gradients()
        gradients = [
            parameter.grad
            for parameter in self._masters.named.values()
            if parameter.grad is not None
        ]
        self.loss_scale.unscale(gradients)
        return float(whole_tensor(get_total_norm(gradients))) if gradients else 0.0

    def update(self, learning_rate: float, gradient_norm: float) -> None:
        """Change the parameters by their gradients, clipped if asked for, and drop those.

        Args:
            learning_rate: Of this update.
            gradient_norm: From ``gradient_norm``, called just before.
        """
        if self._max_norm:
            self._clip(gradient_norm)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        # torch's fused optimizers do not count what they change; caches go by the count.
        torch.autograd.graph.increment_version(self._masters.named.values())
        self.clear()
        self._masters.give_back()
        self.loss_scale.note_good_update()

    def _clip(self, gradient_norm: float) -> None:
        if not self._shares:
            masters = list(self._masters.named.values())
            norm = torch.tensor(gradient_norm, dtype=masters[0].dtype)
            clip_grads_with_norm_(masters, self._max_norm, norm)
            return
        # torch's function mixes shares with a whole tensor, which torch refuses.
        factor = min(1.0, self._max_norm / (gradient_norm + _CLIP_EPSILON))
        for parameter in self._masters.named.values():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def put_together(self, *, is_main: bool) -> None:
        """Give the adapter the whole of what it learned, where this process learned a share.

        Args:
            is_main: Whether this process is the main one. Where numbers are borrowed, the others
                give their shares and keep nothing.
        """
        borrows = isinstance(self._adapter, FullWeights) and self._adapter.is_shared_out
        named = dict(self._adapter.named_parameters())
        for name, share in self._shares.items():
            whole = whole_tensor(share.detach())
            if not borrows:
                with torch.no_grad():
                    named[name].copy_(whole)
            elif is_main:
                named[name].data = whole

    def clear(self) -> None:
        """Drop all gradients."""
        self._optimizer.zero_grad(set_to_none=True)
        for parameter in self.learned.values():
            parameter.grad = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The optimizer's state and the copies, for a checkpoint; not copied."""
        return {
            **optimizer_tensors(self._optimizer, self._masters.named),
            **self._masters.tensors(),
            **self.loss_scale.tensors(),
        }

    def restore(
        self, parameters: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
    ) -> None:
        """Put back what a checkpoint holds.

        Args:
            parameters: By the names of ``learned``.
            tensors: From ``tensors``.

        Raises:
            ArtifactError: If they do not fit.
        """
        put_back(parameters, self.learned)
        restore_optimizer(
            self._optimizer,
            self._masters.named,
            self._masters.restore(self.loss_scale.restore(tensors)),
        )
