"""The small network that P-tuning and prefix tuning may learn a prompt through."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.data_model.checks import require_bool, require_int, require_number
from luthier.errors import InvalidInputError, did_you_mean

MLP = "MLP"
LSTM = "LSTM"
ENCODER_TYPES = (MLP, LSTM)
DEFAULT_NUM_LAYERS = 2
MAX_HIDDEN_SIZE = 65_536
MAX_LAYERS = 16
MAX_DROPOUT = 0.9


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
