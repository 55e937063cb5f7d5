"""Luthier tunes and serves language models: many small adapters over one frozen base.

Nothing heavy is imported here, so that ``luthier --help`` answers at once. ``luthier.load`` and
the module classes arrive on first use (PEP 562).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from luthier.modules import HeadTuning, LoraTuning, PeftPromptTuning, TextGeneration, load

__all__ = ["HeadTuning", "LoraTuning", "PeftPromptTuning", "TextGeneration", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from luthier import modules  # noqa: PLC0415  torch and transformers take seconds

        return getattr(modules, name)
    raise AttributeError(f"module 'luthier' has no attribute {name!r}")
