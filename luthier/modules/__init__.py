"""What users train and run. Importing this package registers the modules with caikit."""

from __future__ import annotations

import luthier.compat  # noqa: F401  must come before the first import of caikit
from luthier.modules.environment import configure
from luthier.modules.loading import load, plan_train
from luthier.modules.text_classification.head_tuning import HeadTuning
from luthier.modules.text_generation.lora_tuning import LoraTuning
from luthier.modules.text_generation.peft_prompt_tuning import PeftPromptTuning
from luthier.modules.text_generation.text_generation import TextGeneration

__all__ = [
    "HeadTuning",
    "LoraTuning",
    "PeftPromptTuning",
    "TextGeneration",
    "configure",
    "load",
    "plan_train",
]
