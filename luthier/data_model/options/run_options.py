"""What a tuning is as a whole: method, base model, result; and what prompt tuning learns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from luthier.data_model.checks import require_text
from luthier.data_model.options.limits import TrainingLimits
from luthier.data_model.options.prompt_encoder import (
    DEFAULT_NUM_LAYERS,
    ENCODER_TYPES,
    MAX_DROPOUT,
    MAX_HIDDEN_SIZE,
    MAX_LAYERS,
    MLP,
)
from luthier.data_model.options.prompt_words import PromptOutputModelType, PromptTuningInit
from luthier.data_model.options.setting import Setting, option
from luthier.errors import InvalidInputError

PROMPT_TUNING = "prompt_tuning"
MULTITASK_PROMPT_TUNING = "multitask_prompt_tuning"
P_TUNING = "p_tuning"
PREFIX_TUNING = "prefix_tuning"
LORA = "lora"
FULL_FINE_TUNING = "full_fine_tuning"
PROMPT_TUNING_METHODS = (PROMPT_TUNING, MULTITASK_PROMPT_TUNING, P_TUNING, PREFIX_TUNING)
HEAD = "head"
METHODS = (*PROMPT_TUNING_METHODS, LORA, FULL_FINE_TUNING, HEAD)

INIT_METHODS = tuple(PromptTuningInit.__members__)
OUTPUT_MODEL_TYPES = tuple(PromptOutputModelType.__members__)


@dataclass(frozen=True)
class RunOptions:
    """Which tuning, of what, and where its result goes."""

    method: str = option(PROMPT_TUNING, "choice", "How weights change.", choices=METHODS)
    model_name: str = option(
        "", "text", "Id of the tuned model, and name of its folder.", aliases=("experiment_name",)
    )
    base_model: str = option(
        "", "text", "Name or folder of the base model; must be given.", aliases=("llm_backbone",)
    )
    output_folder: str = option(
        "models",
        "text",
        "Folder that the model's folder is made in.",
        aliases=("output_dir", "output_directory"),
    )
    run_folder: str | None = option(
        None,
        "text",
        "Folder that gets checkpoints and metrics.jsonl; none keeps neither.",
        is_optional=True,
    )
    resume_from: str | None = option(
        None,
        "text",
        "Checkpoint, or a folder whose newest one the training goes on from as if it had never "
        "stopped.",
        is_optional=True,
        aliases=("resume_from_checkpoint",),
    )
    backup_folder: str | None = option(
        None,
        "text",
        "Folder that gets a copy of each checkpoint.",
        is_optional=True,
    )


@dataclass(frozen=True)
class PromptOptions:
    """The soft prompt's size and start, under the names of caikit-nlp's TuningConfig."""

    num_virtual_tokens: int | None = option(
        None,
        "int",
        "Rows of the soft prompt; must be given.",
        minimum=1,
        limit="max_virtual_tokens",
        is_optional=True,
    )
    prompt_tuning_init_method: str = option(
        "RANDOM", "choice", "How the soft prompt starts.", choices=INIT_METHODS
    )
    prompt_tuning_init_text: str | None = option(
        None,
        "text",
        "What TEXT starts from, cut or repeated to num_virtual_tokens tokens.",
        is_optional=True,
    )
    prompt_tuning_init_source_model: str | None = option(
        None,
        "text",
        "Name below source_prompt_base of the source prompt that the three source methods start "
        "from.",
        is_optional=True,
    )
    output_model_types: tuple[str, ...] = option(
        (),
        "texts",
        "Where a seq2seq model gets the soft prompt; empty takes the kind of base model's.",
        choices=OUTPUT_MODEL_TYPES,
    )
    encoder_reparameterization_type: str = option(
        MLP, "choice", "The network that P-tuning learns through.", choices=ENCODER_TYPES
    )
    encoder_hidden_size: int | None = option(
        None,
        "int",
        "Width inside the network of P-tuning or of a prefix projection; none takes that of a "
        "virtual token.",
        minimum=1,
        maximum=MAX_HIDDEN_SIZE,
        is_optional=True,
    )
    encoder_num_layers: int = option(
        DEFAULT_NUM_LAYERS, "int", "Layers of an LSTM.", minimum=1, maximum=MAX_LAYERS
    )
    encoder_dropout: float = option(
        0.0, "number", "Dropout between the layers of an LSTM.", minimum=0.0, maximum=MAX_DROPOUT
    )
    prefix_projection: bool = option(
        False, "bool", "Whether prefix tuning learns keys and values through a network, too."
    )

    def validate(self, limits: TrainingLimits) -> None:
        """Refuse what no base model could satisfy; changes nothing.

        Args:
            limits: The server's caps.

        Raises:
            InvalidInputError: Naming the option by its path, the value and the limit.
        """
        if self.num_virtual_tokens is None:
            raise InvalidInputError("'tuning_config.num_virtual_tokens' must be given")
        for each in dataclasses.fields(self):
            setting: Setting = each.metadata["setting"]
            if setting.kind != "texts":
                setting.check(f"tuning_config.{each.name}", getattr(self, each.name), limits)
        if not isinstance(self.output_model_types, tuple):
            raise InvalidInputError("'tuning_config.output_model_types' must be a list")
        for word in self.output_model_types:
            text = require_text("tuning_config.output_model_types", word, max_chars=80)
            if text not in OUTPUT_MODEL_TYPES:
                raise InvalidInputError(
                    "'tuning_config.output_model_types' must be of "
                    f"{', '.join(OUTPUT_MODEL_TYPES)}, got {text!r}"
                )
