"""What generation gives back, and the one structured parameter it takes.

The result objects are caikit's own (package ``caikit_data_model.nlp``), re-exported so that the
rest of Luthier names one place. ``WireFinishReason`` is caikit's word for the engines'
``inference.base.FinishReason``, member for member.
"""

# NOTE: no ``from __future__ import annotations`` here: caikit reads annotations as types.

from caikit.core import DataObjectBase, dataobject
from caikit.interfaces.common.data_model import ProducerId
from caikit.interfaces.nlp.data_model import FinishReason as WireFinishReason
from caikit.interfaces.nlp.data_model import (
    GeneratedTextResult,
    GeneratedTextStreamResult,
    GeneratedToken,
    Token,
    TokenizationResults,
    TokenStreamDetails,
)
from py_to_proto.dataclass_to_proto import Annotated, FieldNumber

from luthier.data_model.records import CAIKIT_NLP_PACKAGE

__all__ = [
    "ExponentialDecayLengthPenalty",
    "GeneratedTextResult",
    "GeneratedTextStreamResult",
    "GeneratedToken",
    "ProducerId",
    "Token",
    "TokenStreamDetails",
    "TokenizationResults",
    "WireFinishReason",
]


@dataobject(package=CAIKIT_NLP_PACKAGE)
class ExponentialDecayLengthPenalty(DataObjectBase):  # type: ignore[misc]
    """Make the end of sequence likelier with every token from ``start_index`` on.

    Args:
        start_index: Generated tokens before the penalty starts, >= 0.
        decay_factor: Growth per token, > 1 ends earlier.
    """

    start_index: Annotated[int, FieldNumber(1)]
    decay_factor: Annotated[float, FieldNumber(2)]
