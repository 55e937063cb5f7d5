"""The JSON form of protobuf messages, for requests (``shape_of``) and responses."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from luthier.runtime.http_server.shapes import (
    Bytes,
    Flag,
    Integer,
    ListOf,
    Number,
    Object,
    OneOf,
    Schema,
    Shape,
    Text,
)

_SCALARS: dict[int, Shape] = {
    FieldDescriptor.TYPE_STRING: Text(),
    FieldDescriptor.TYPE_BYTES: Bytes(),
    FieldDescriptor.TYPE_BOOL: Flag(),
    FieldDescriptor.TYPE_DOUBLE: Number(),
    FieldDescriptor.TYPE_FLOAT: Number(),
    FieldDescriptor.TYPE_INT64: Integer(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: Integer(0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: Integer(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: Integer(0, 2**32 - 1),
}
_TIMESTAMP = "google.protobuf.Timestamp"
_STRUCT = "google.protobuf.Struct"


def shape_of(
    message: Any,
    *,
    name: str = "",
    omit: Collection[str] = (),
    required: tuple[str, ...] = (),
) -> Object:
    """The form that a message has as the JSON of a request.

    Args:
        message: Descriptor of a message without maps, none of which contains itself.
        name: Its name in OpenAPI; the message's own if empty.
        omit: Fields that JSON does not have here.
        required: Fields that must be there.

    Returns:
        An object; a oneof shows as one key, named like the oneof.
    """
    fields: dict[str, Shape] = {}
    for field in message.fields:
        if field.name in omit:
            continue
        oneof = _real_oneof(field)
        if oneof is None:
            fields[field.name] = _field_shape(field)
        else:
            fields[oneof.name] = OneOf({each.name: shape_of(each.message_type)
                                        for each in oneof.fields})  # fmt: skip
    return Object(name or component_name(message), message.full_name, fields, required)


def component_name(message: Descriptor) -> str:
    """A message's name in OpenAPI: nested ones bear their parent's before their own.

    Args:
        message: Any message.

    Returns:
        A name without dots.
    """
    parent = message.containing_type
    return f"{component_name(parent)}{message.name}" if parent is not None else message.name


def response_schema(message: Any, components: dict[str, Schema]) -> Schema:
    """JSON schema of a response: every key is there, unset ones are null, enums are words.

    Args:
        message: Descriptor of what caikit's ``to_json`` writes.
        components: Gets the schemas that the result refers to.

    Returns:
        A reference.
    """
    name = component_name(message)
    if name not in components:
        components[name] = {}
        properties = {field.name: _response_field(field, components) for field in message.fields}
        components[name] = {
            "type": "object",
            "title": message.full_name,
            "properties": properties,
            "additionalProperties": False,
        }
    return {"$ref": f"#/components/schemas/{name}"}


def _field_shape(field: Any) -> Shape:
    shape: Shape = (
        shape_of(field.message_type)
        if field.type == FieldDescriptor.TYPE_MESSAGE
        else _SCALARS[field.type]
    )
    return ListOf(shape) if field.is_repeated else shape


def _response_field(field: Any, components: dict[str, Schema]) -> Schema:
    schema = _response_value(field, components)
    if _is_map(field):
        values = _response_value(field.message_type.fields_by_name["value"], components)
        schema = {"type": "object", "additionalProperties": values}
    elif field.is_repeated:
        schema = {"type": "array", "items": schema}
    return {"anyOf": [schema, {"type": "null"}]}


def _response_value(field: Any, components: dict[str, Schema]) -> Schema:
    if field.type == FieldDescriptor.TYPE_ENUM:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        return _SCALARS[field.type].schema(components)
    known: dict[str, Schema] = {
        _TIMESTAMP: {"type": "string", "format": "date-time"},
        _STRUCT: {"type": "object"},
    }
    special = known.get(field.message_type.full_name)
    if special is not None or _is_map(field):
        return special or {}
    return response_schema(field.message_type, components)


def _real_oneof(field: FieldDescriptor) -> OneofDescriptor | None:
    """The oneof that a field belongs to; protobuf wraps each optional field into one of its own."""
    oneof = field.containing_oneof
    return None if oneof is None or oneof.name.startswith("_") else oneof


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)
