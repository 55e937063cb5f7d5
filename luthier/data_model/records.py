"""Train records: one typed example each, with caikit-nlp's protobuf names and field numbers."""

from typing import Annotated, Any, Optional

from caikit.core import DataObjectBase, dataobject
from caikit.interfaces.nlp.data_model import ClassificationTrainRecord
from py_to_proto.dataclass_to_proto import FieldNumber

__all__ = [
    "CAIKIT_NLP_PACKAGE",
    "LUTHIER_PACKAGE",
    "ClassificationTrainRecord",
    "GenerationTrainRecord",
    "TrainMessage",
    "to_generation_record",
]

#: The protobuf package that caikit-nlp's clients know; names in it are frozen.
CAIKIT_NLP_PACKAGE = "caikit_data_model.caikit_nlp"
#: The protobuf package of messages that caikit-nlp has not.
LUTHIER_PACKAGE = "caikit_data_model.luthier"


@dataobject(package=LUTHIER_PACKAGE)
class TrainMessage(DataObjectBase):  # type: ignore[misc]  # caikit is untyped
    """What one speaker of a conversation said; weight 0 makes an answer context only."""

    role: Annotated[str, FieldNumber(1)]
    content: Annotated[str, FieldNumber(2)]
    weight: Annotated[Optional[int], FieldNumber(3)] = None

    @classmethod
    def from_proto(cls, proto: Any) -> "TrainMessage":
        """The message with what it sets alone; caikit would make a missing weight 0.

        Args:
            proto: The message.

        Returns:
            The data object.
        """
        weight = proto.weight if proto.HasField("weight") else None
        return cls(role=proto.role, content=proto.content, weight=weight)


@dataobject(package=CAIKIT_NLP_PACKAGE)
class GenerationTrainRecord(DataObjectBase):  # type: ignore[misc]  # caikit is untyped
    """One example of text generation: what goes in and what shall come out.

    In place of the two, a request may send a conversation, of which the model learns to write the
    assistant's messages.
    """

    input: Annotated[str, FieldNumber(1)]
    output: Annotated[str, FieldNumber(2)]
    messages: Annotated[Optional[list[TrainMessage]], FieldNumber(3)] = None


def to_generation_record(
    record: GenerationTrainRecord | ClassificationTrainRecord,
) -> GenerationTrainRecord:
    """A generation record as it is; a classification record with its labels as the output.

    Several labels are joined with a comma and no space, as caikit-nlp does.

    Args:
        record: One of the two kinds.

    Returns:
        A generation record.

    Example:
        >>> to_generation_record(ClassificationTrainRecord(text="hi", labels=["a", "b"])).output
        'a,b'
    """
    if isinstance(record, ClassificationTrainRecord):
        return GenerationTrainRecord(input=record.text, output=",".join(record.labels or ()))
    return record
