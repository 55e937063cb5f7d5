"""The dropout of a base model's own layers: all of it at once."""

from __future__ import annotations

from torch import nn


def set_dropout(model: nn.Module, share: float) -> bool:
    """Make every place of a network that can drop numbers drop this share of them.

    Hidden states and attention alike, whatever the model's config had there. Nothing is dropped in
    evaluation mode.

    Args:
        model: Changed in place; hand in an ``own_module_tree``.
        share: Of the numbers; 0 removes dropout.

    Returns:
        Whether there is any such place.
    """
    is_found = False
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = share
            is_found = True
        for name, value in vars(layer).items():
            # Many models call the functional form with a rate that they keep as a number.
            if "dropout" in name and isinstance(value, float):
                setattr(layer, name, share)
                is_found = True
    return is_found
