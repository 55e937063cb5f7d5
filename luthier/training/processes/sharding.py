"""A network whose weights are shared out among processes, each layer whole only while it is used.

torch's ``fully_shard`` (FSDP2) does it. Every process keeps its share of each weight, of its
gradient and of the optimizer's state; what an adapter adds stays whole in all of them. Gradients of
shares come out of the backward pass summed over the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from luthier.errors import NotSupportedError
from luthier.training.processes.memory_reuse import return_freed_memory
from luthier.training.processes.parallel import ProcessGroup

T = TypeVar("T")


class _Root(nn.Module):
    """What borrows the weights that belong to no layer, for as long as a pass lasts.

    A pass is a function, because it uses the output layer's weight outside the model, too.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], T]) -> T:
        return run()


class ShardedModel:
    """Shares out a network's weights.

    Args:
        model: A network with modules of its own; its weights are replaced by shares.
        group: The processes.
        learned: Of the network's weights, those that get gradients; all others get none.
        whole: Parameters that stay whole, because they are the adapter's.

    Raises:
        NotSupportedError: If there is one process, or the model does not say what its layers are.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        group: ProcessGroup,
        *,
        learned: Mapping[str, nn.Parameter],
        whole: set[nn.Parameter],
    ) -> None:
        if group.is_alone:
            raise NotSupportedError("'use_fsdp' shares weights out among processes, there is one")
        return_freed_memory()
        names = {id(parameter): name for name, parameter in learned.items()}
        owners = _with_own_parameters(model, names, whole)
        self._root = _Root(model)
        mesh = init_device_mesh(group.device.type, (group.num_processes,))
        layer_types = set(getattr(model, "_no_split_modules", None) or ())
        layers = [layer for layer in model.modules() if type(layer).__name__ in layer_types]
        if not layers:
            raise NotSupportedError(
                f"'use_fsdp' goes layer by layer, and a base model of type "
                f"{model.config.model_type!r} does not say what its layers are"
            )
        for module in (*layers, self._root):
            fully_shard(module, mesh=mesh, ignored_params=whole)
        for module in self._root.modules():
            if isinstance(module, FSDPModule):
                # A sum over rows, divided by the units of all processes already.
                module.set_gradient_divide_factor(1.0)
                # gloo, between CPUs, can do no other.
                module.set_force_sum_reduction_for_comms(True)
        #: The shares of what is learned, by the names in ``learned``.
        self.learned: dict[str, nn.Parameter] = {
            name: module.get_parameter(attribute) for name, (module, attribute) in owners.items()
        }

    def run(self, run: Callable[[], T]) -> T:
        """A pass, with the weights at hand; all processes make one at the same time."""
        result: T = self._root(run)
        return result


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that a share is of, put together by all processes; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This process's share of a whole tensor, a copy, where the parameter is one and shaped like
    it; else the tensor."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    shared = distribute_tensor(
        tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )
    # A part of the whole would keep all of it in memory.
    return shared.clone()


def _with_own_parameters(
    model: nn.Module, names: Mapping[int, str], whole: set[nn.Parameter]
) -> dict[str, tuple[nn.Module, str]]:
    """Give a network parameter objects of its own around the same numbers, tied ones tied.

    Sharing them out changes the objects, and others hold them, too.

    Returns:
        Where each named one is.
    """
    own: dict[int, nn.Parameter] = {}
    owners: dict[str, tuple[nn.Module, str]] = {}
    for module in model.modules():
        for attribute, parameter in list(module._parameters.items()):
            if parameter is None or parameter in whole:
                continue
            name = names.get(id(parameter))
            if id(parameter) not in own:
                own[id(parameter)] = nn.Parameter(
                    parameter.detach(), requires_grad=name is not None
                )
            module._parameters[attribute] = own[id(parameter)]
            if name is not None:
                owners.setdefault(name, (module, attribute))
    return owners
