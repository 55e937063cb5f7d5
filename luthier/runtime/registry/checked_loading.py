"""Loading that refuses an adapter which the engine would not serve as it was tuned."""

from __future__ import annotations

from pathlib import Path

import alog

from luthier.modules.text_classification.classification_module import ClassificationModule
from luthier.modules.text_generation.text_module import TextModule
from luthier.runtime.registry.served_module import LoadModule, ServedModule

log = alog.use_channel(__name__)


class CheckedLoading:
    """Reads saved models; the first time that it meets an adapter, runs pinned prompts through it.

    Args:
        load: Reads one.
    """

    def __init__(self, load: LoadModule) -> None:
        self._load = load
        # Content hashes with the base model's name: a model that is evicted and comes back, or is
        # replaced by the same, is not checked again.
        self._passed: set[tuple[str, str]] = set()

    def __call__(self, folder: Path) -> ServedModule:
        """Read a saved model.

        Args:
            folder: Of the model.

        Returns:
            The module.

        Raises:
            ArtifactError: If it cannot be read, or its adapter has no effect, gives NaN or
                something else than the code that tunes adapters.
        """
        module = self._load(folder)
        if not isinstance(module, TextModule | ClassificationModule) or module.adapter is None:
            return module
        key = (module.base_model.name, module.adapter.content_hash())
        if key not in self._passed:
            try:
                module.check_conformance()
            except BaseException:
                module.release()
                raise
            self._passed.add(key)
            log.info("adapter checked: model=%s", folder.name)
        # A served model's folder is replaced as a whole, and then the model is loaded anew.
        module.shelve()
        return module
