"""From protobuf messages to what services take: plain values and caikit's data objects."""

from __future__ import annotations

from typing import Any

from caikit.core.data_model import DataBase
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from luthier.errors import InvalidInputError
from luthier.runtime.services.training_request import TrainingRequest

TRAIN_STREAM = "train_stream"
VALIDATION_STREAM = "val_stream"


def parse(kind: Descriptor, raw: bytes) -> Message:
    """Read a message.

    Args:
        kind: Which one.
        raw: As it came over the wire.

    Returns:
        The message.

    Raises:
        InvalidInputError: If the bytes are no such message.
    """
    message: Message = GetMessageClass(kind)()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise InvalidInputError(f"the request is no {kind.name} message") from error
    return message


def set_fields(message: Message) -> dict[str, Any]:
    """The fields that the sender set, by name, in Python's own types.

    Args:
        message: Any message; nested ones become dicts, repeated fields lists.

    Returns:
        A dict that JSON could hold. A field without presence whose value is its default (an empty
        string) is not told apart from one that was never set, and is left out.
    """
    return {
        field.name: _plain(value, is_repeated=field.is_repeated)
        for field, value in message.ListFields()
    }


def as_data_object(message: Message) -> Any:
    """caikit's data object for a message.

    Args:
        message: Of a class that caikit made.

    Returns:
        The data object.
    """
    return DataBase.get_class_for_proto(message).from_proto(message)


def training_request(module_id: str, message: Any) -> TrainingRequest:
    """A train request in the service's words.

    Args:
        module_id: The module that the rpc trains.
        message: ``…TrainRequest``.

    Returns:
        The request, unchecked.
    """
    parameters = message.parameters
    streams = {
        field.name: as_data_object(value)
        for field, value in parameters.ListFields()
        if field.name in (TRAIN_STREAM, VALIDATION_STREAM)
    }
    for name in streams:
        parameters.ClearField(name)
    return TrainingRequest(
        module_id=module_id,
        model_name=message.model_name,
        parameters=set_fields(parameters),
        train_source=streams.get(TRAIN_STREAM),
        validation_source=streams.get(VALIDATION_STREAM),
        output_path=(
            as_data_object(message.output_path) if message.HasField("output_path") else None
        ),
    )


def _plain(value: Any, *, is_repeated: bool) -> Any:
    if is_repeated:
        return [_plain(item, is_repeated=False) for item in value]
    return set_fields(value) if isinstance(value, Message) else value
