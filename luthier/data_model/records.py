"""Train records: one typed example each, with caikit-nlp's protobuf names and field numbers."""

from typing import Annotated

from caikit.core import DataObjectBase, dataobject
from caikit.interfaces.nlp.data_model import ClassificationTrainRecord
from py_to_proto.dataclass_to_proto import FieldNumber

__all__ = [
    "CAIKIT_NLP_PACKAGE",
    "ClassificationTrainRecord",
    "GenerationTrainRecord",
    "to_generation_record",
]

#: The protobuf package that caikit-nlp's clients know; names in it are frozen.
CAIKIT_NLP_PACKAGE = "caikit_data_model.caikit_nlp"


@dataobject(package=CAIKIT_NLP_PACKAGE)
class GenerationTrainRecord(DataObjectBase):  # type: ignore[misc]  # caikit is untyped
    """One example of text generation: what goes in and what shall come out."""

    input: Annotated[str, FieldNumber(1)]
    output: Annotated[str, FieldNumber(2)]


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
