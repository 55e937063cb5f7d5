"""The small network that P-tuning and prefix tuning may learn a prompt through."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.data_model.checks import require_bool, require_int, require_number
from luthier.data_model.options.prompt_words import TuningType
from luthier.errors import InvalidInputError, did_you_mean

MLP = "MLP"
LSTM = "LSTM"
ENCODER_TYPES = (MLP, LSTM)
DEFAULT_NUM_LAYERS = 2
MAX_HIDDEN_SIZE = 65_536
MAX_LAYERS = 16
MAX_DROPOUT = 0.9
#: Field of ``TuningConfig`` -> field of ``PromptEncoderOptions``.
ENCODER_FIELDS = {
    "encoder_reparameterization_type": "reparameterization_type",
    "encoder_hidden_size": "hidden_size",
    "encoder_num_layers": "num_layers",
    "encoder_dropout": "dropout",
    "prefix_projection": "prefix_projection",
}


@dataclass(frozen=True)
class PromptEncoderOptions:
    """PEFT's ``PromptEncoderConfig`` and the part of its ``PrefixTuningConfig`` that is alike.

    Args:
        reparameterization_type: ``MLP`` or ``LSTM``; P-tuning alone.
        hidden_size: Of the network; None takes the width of the rows.
        num_layers: Of the LSTM.
        dropout: Between the LSTM's layers.
        prefix_projection: Whether prefix tuning learns through a network, too.
    """

    reparameterization_type: str = MLP
    hidden_size: int | None = None
    num_layers: int = DEFAULT_NUM_LAYERS
    dropout: float = 0.0
    prefix_projection: bool = False

    def validate(self) -> None:
        """Refuse what no network could be made of; changes nothing.

        Raises:
            InvalidInputError: Naming the option, its value and the limit.
        """
        word = self.reparameterization_type
        if word not in ENCODER_TYPES:
            raise InvalidInputError(
                f"'encoder_reparameterization_type' must be one of {', '.join(ENCODER_TYPES)}, "
                f"got {str(word)[:80]!r}{did_you_mean(str(word)[:80], ENCODER_TYPES)}"
            )
        if self.hidden_size is not None:
            require_int("encoder_hidden_size", self.hidden_size, minimum=1, maximum=MAX_HIDDEN_SIZE)
        require_int("encoder_num_layers", self.num_layers, minimum=1, maximum=MAX_LAYERS)
        require_number("encoder_dropout", self.dropout, minimum=0.0, maximum=MAX_DROPOUT)
        require_bool("prefix_projection", self.prefix_projection)


def encoder_options(config: object, tuning_type: TuningType) -> PromptEncoderOptions:
    """The network that a prompt is to be learned through.

    Args:
        config: A ``TuningConfig`` or whatever has its fields; on a wire, 0 and "" are not given.
        tuning_type: How the prompt is tuned.

    Returns:
        The options, checked.

    Raises:
        InvalidInputError: For a value that cannot be meant, or one that has no use with this
            tuning type.
    """
    given = {name: value for name in ENCODER_FIELDS if (value := getattr(config, name, None))}
    default = {"encoder_reparameterization_type": MLP, "encoder_num_layers": DEFAULT_NUM_LAYERS}
    is_prefix = tuning_type is TuningType.PREFIX_TUNING
    for name, value in given.items():
        has_use = (name == "prefix_projection") == is_prefix or (
            is_prefix and name == "encoder_hidden_size" and bool(given.get("prefix_projection"))
        )
        if value != default.get(name) and not (tuning_type.learns_through_a_network and has_use):
            raise InvalidInputError(
                f"'tuning_config.{name}' has no use with tuning type {tuning_type.value}"
                + (" without 'prefix_projection'" if is_prefix else "")
            )
    options = PromptEncoderOptions(**{ENCODER_FIELDS[name]: given[name] for name in given})
    options.validate()
    return options
