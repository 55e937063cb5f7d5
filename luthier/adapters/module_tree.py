"""A model's layers copied around the same tensors."""

from __future__ import annotations

import copy
from itertools import chain

from transformers import PreTrainedModel


def own_module_tree(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the layers around the same tensors: some milliseconds, no memory for weights.

    Modes, hooks, replaced layers and the config belong to the copy; weights are shared. So one
    caller can set up the copy as it likes, while others generate from ``model``.
    """
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
