"""What a tuning request says about its prompt: its size, its start, where it goes."""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

from typing import Annotated

from caikit.core import DataObjectBase, dataobject
from py_to_proto.dataclass_to_proto import FieldNumber

from luthier.data_model.checks import require_int, require_text
from luthier.data_model.options.limits import TrainingLimits
from luthier.data_model.options.prompt_words import PromptTuningInit, parse_init_method
from luthier.data_model.options.setting import MAX_TEXT_CHARS
from luthier.data_model.records import CAIKIT_NLP_PACKAGE
from luthier.errors import InvalidInputError


@dataobject(package=CAIKIT_NLP_PACKAGE)
class TuningConfig(DataObjectBase):  # type: ignore[misc]  # caikit is untyped
    """The prompt of a prompt tuning, as caikit-nlp's clients send it."""

    num_virtual_tokens: Annotated[int, FieldNumber(1)]
    prompt_tuning_init_text: Annotated[str, FieldNumber(2)]
    prompt_tuning_init_method: Annotated[str, FieldNumber(3)]
    prompt_tuning_init_source_model: Annotated[str, FieldNumber(4)]
    output_model_types: Annotated[list[str], FieldNumber(5)]
    # Luthier's, for P_TUNING and PREFIX_TUNING; see ``PromptEncoderOptions``.
    encoder_reparameterization_type: Annotated[str, FieldNumber(6)]
    encoder_hidden_size: Annotated[int, FieldNumber(7)]
    encoder_num_layers: Annotated[int, FieldNumber(8)]
    encoder_dropout: Annotated[float, FieldNumber(9)]
    prefix_projection: Annotated[bool, FieldNumber(10)]


def validate_tuning_config(config: TuningConfig, limits: TrainingLimits) -> None:
    """Refuse what no base model could satisfy. Whether a source prompt fits is known later.

    Args:
        config: As the request brought it.
        limits: The server's caps.

    Raises:
        InvalidInputError: Naming the field of ``tuning_config``, its value and the limit.
    """
    if not config.num_virtual_tokens:
        raise InvalidInputError("num_virtual_tokens not provided in tuning_config")
    require_int(
        "tuning_config.num_virtual_tokens",
        config.num_virtual_tokens,
        minimum=1,
        maximum=limits.max_virtual_tokens,
    )
    method = parse_init_method(config.prompt_tuning_init_method)
    if method is PromptTuningInit.TEXT:
        if not config.prompt_tuning_init_text:
            raise InvalidInputError(
                "'tuning_config.prompt_tuning_init_text' must be given "
                "when prompt_tuning_init_method is TEXT"
            )
        require_text(
            "tuning_config.prompt_tuning_init_text",
            config.prompt_tuning_init_text,
            max_chars=MAX_TEXT_CHARS,
        )
    if method.needs_source and not config.prompt_tuning_init_source_model:
        raise InvalidInputError(
            "'tuning_config.prompt_tuning_init_source_model' must be given "
            f"when prompt_tuning_init_method is {method.value}"
        )
