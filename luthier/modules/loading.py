"""From a folder, a module; from a module's id, its checks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.errors import InvalidInputError, NotSupportedError
from luthier.modules.planning.train_plan import TrainingPlan
from luthier.modules.saving.saved_model import read_config
from luthier.modules.text_classification.head_tuning import HeadTuning
from luthier.modules.text_generation.lora_tuning import LoraTuning
from luthier.modules.text_generation.peft_prompt_tuning import PeftPromptTuning
from luthier.modules.text_generation.text_generation import TextGeneration

AnyModule = HeadTuning | LoraTuning | PeftPromptTuning | TextGeneration
MODULES: Mapping[
    str, type[HeadTuning] | type[LoraTuning] | type[PeftPromptTuning] | type[TextGeneration]
] = {
    HeadTuning.MODULE_ID: HeadTuning,
    LoraTuning.MODULE_ID: LoraTuning,
    PeftPromptTuning.MODULE_ID: PeftPromptTuning,
    TextGeneration.MODULE_ID: TextGeneration,
}


def load(path: str | os.PathLike[str]) -> AnyModule:
    """Read any saved model, Luthier's or caikit-nlp's.

    Args:
        path: The model's folder.

    Returns:
        The module, ready to run. Thread-safe; ``release`` gives its base model back.

    Raises:
        ArtifactError: If the folder is incomplete, damaged or no saved model.
        NotSupportedError: If another kind of module was saved in it.
        BaseModelNotFoundError: If the base model of a tuned prompt is not here.
    """
    folder = Path(path)
    module_id = read_config(folder)["module_id"]
    module_class = MODULES.get(module_id)
    if module_class is None:
        raise NotSupportedError(
            f"{folder.name!r} was saved by the module {module_id[:80]!r}; known are "
            f"{', '.join(known.__name__ for known in MODULES.values())}"
        )
    return module_class.load(str(folder))


def plan_train(module_id: str, arguments: Mapping[str, Any]) -> TrainingPlan:
    """Check a training as far as that is possible without loading weights.

    Args:
        module_id: Of the module to be trained.
        arguments: Of its ``train``, by name; ``from_request=True`` where a stranger chose them.

    Returns:
        What the training would do.

    Raises:
        LuthierError: If it would fail; names the argument or the row.
    """
    module_class = MODULES.get(module_id)
    if module_class is None:
        raise InvalidInputError(f"no module has the id {module_id[:80]!r}")
    return module_class.plan_train(**arguments)
