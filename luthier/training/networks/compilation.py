"""Layers that torch compiles, each kind of layer once."""

from __future__ import annotations

import os
import shutil

from transformers import PreTrainedModel

from luthier.errors import NotSupportedError


def compile_layers(model: PreTrainedModel, *, backend: str = "inductor") -> None:
    """Compile what a model repeats, at its first pass and for rows of any length.

    Only the layers: they are where the time goes, all are compiled by one compilation, and what
    stands around them (labels that a head looks at, prompts before a row) stays plain Python.

    Args:
        model: Changed in place; hand in an ``own_module_tree``.
        backend: What torch compiles with.

    Raises:
        NotSupportedError: If the model does not say what its layers are, or it is on the CPU and
            this machine has no compiler.
    """
    if model.device.type == "cpu" and not any(map(shutil.which, _compilers())):
        raise NotSupportedError(
            f"'compile_model' on a CPU needs one of the compilers {', '.join(_compilers())}"
        )
    layer_types = set(getattr(model, "_no_split_modules", None) or ())
    layers = [layer for layer in model.modules() if type(layer).__name__ in layer_types]
    if not layers:
        raise NotSupportedError(
            f"'compile_model' goes layer by layer, and a base model of type "
            f"{model.config.model_type!r} does not say what its layers are"
        )
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)


def _compilers() -> tuple[str, ...]:
    """What torch looks for."""
    return tuple(filter(None, (os.environ.get("CXX"), "g++", "clang++")))
