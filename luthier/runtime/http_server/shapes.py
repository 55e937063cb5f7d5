"""The form of a JSON value: what it must be, how OpenAPI says so, what becomes of it.

Each kind has both sides, ``schema`` and ``decode``, so that the document and the check cannot
drift apart. ``messages.shape_of`` makes shapes from protobuf messages.
"""

from __future__ import annotations

import base64
import binascii
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.errors import did_you_mean

Schema = dict[str, Any]
Place = tuple[str | int, ...]

MAX_ERRORS = 20


@dataclass
class Errors:
    """What was found wrong so far, in pydantic's form. Ends the search after ``MAX_ERRORS``."""

    found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, kind: str, place: Place, message: str) -> None:
        """Note one.

        Args:
            kind: A stable word.
            place: Keys and indices that lead there.
            message: For people.
        """
        if len(self.found) < MAX_ERRORS:
            self.found.append({"type": kind, "loc": ["body", *place], "msg": message})


class Shape(ABC):
    """One kind of JSON value."""

    @abstractmethod
    def schema(self, components: dict[str, Schema]) -> Schema:
        """JSON schema of the value.

        Args:
            components: Gets the schemas that the result refers to.

        Returns:
            The schema, or a reference to it.
        """

    @abstractmethod
    def decode(self, value: Any, place: Place, errors: Errors) -> Any:
        """Check a value.

        Args:
            value: As the JSON parser, or a form, gave it.
            place: Where it stands, for messages.
            errors: Gets what is wrong.

        Returns:
            The value as services take it; anything if ``errors`` grew.
        """

    def from_text(self, text: str) -> Any:
        """Read the text of a form field.

        Args:
            text: The field's value.

        Returns:
            What JSON would have had; the text itself if it cannot be.
        """
        return text


@dataclass(frozen=True)
class Text(Shape):
    """A string."""

    def schema(self, components: dict[str, Schema]) -> Schema:
        """``string``."""
        return {"type": "string"}

    def decode(self, value: Any, place: Place, errors: Errors) -> Any:
        """The string, if it can be encoded."""
        if not isinstance(value, str):
            errors.add("string_type", place, "Input should be a valid string")
        elif not value.isascii() and not _is_encodable(value):
            errors.add("string_unicode", place, "Input should be valid Unicode: a lone surrogate")
        return value


@dataclass(frozen=True)
class Integer(Shape):
    """A whole number in a range, ends included."""

    minimum: int
    maximum: int

    def schema(self, components: dict[str, Schema]) -> Schema:
        """``integer`` with its range."""
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}

    def decode(self, value: Any, place: Place, errors: Errors) -> Any:
        """The int; 3.0 counts as 3, as JSON has but one kind of number."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            errors.add("int_type", place, "Input should be a valid integer")
        elif not self.minimum <= value <= self.maximum:
            message = f"Input should be between {self.minimum} and {self.maximum}"
            errors.add("int_range", place, message)
        return value

    def from_text(self, text: str) -> Any:
        """``"3"`` is 3."""
        digits = text.strip()
        is_number = digits.lstrip("+-").isdecimal() and len(digits) < 25
        return int(digits) if is_number else text


@dataclass(frozen=True)
class Number(Shape):
    """A finite number."""

    def schema(self, components: dict[str, Schema]) -> Schema:
        """``number``."""
        return {"type": "number"}

    def decode(self, value: Any, place: Place, errors: Errors) -> Any:
        """The float."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            errors.add("float_type", place, "Input should be a valid number")
            return value
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            errors.add("finite_number", place, "Input should be a finite number")
        return number

    def from_text(self, text: str) -> Any:
        """``"0.5"`` is 0.5."""
        try:
            return float(text)
        except ValueError:
            return text


@dataclass(frozen=True)
class Flag(Shape):
    """True or false; 0 and 1 are refused."""

    def schema(self, components: dict[str, Schema]) -> Schema:
        """``boolean``."""
        return {"type": "boolean"}

    def decode(self, value: Any, place: Place, errors: Errors) -> Any:
        """The bool."""
        if not isinstance(value, bool):
            errors.add("bool_type", place, "Input should be a valid boolean")
        return value

    def from_text(self, text: str) -> Any:
        """``"true"`` and ``"false"``, in upper or lower case."""
        return {"true": True, "false": False}.get(text.strip().lower(), text)


@dataclass(frozen=True)
class Bytes(Shape):
    """Bytes: base64 in JSON, a file's content in a form."""

    def schema(self, components: dict[str, Schema]) -> Schema:
        """``string`` in base64."""
        return {"type": "string", "format": "byte", "contentEncoding": "base64"}

    def decode(self, value: Any, place: Place, errors: Errors) -> Any:
        """The bytes."""
        if isinstance(value, bytes):
            return value
        try:
            return base64.b64decode(value, validate=True)
        except (TypeError, ValueError, binascii.Error):
            errors.add("bytes_encoding", place, "Input should be base64")
            return b""


@dataclass(frozen=True)
class ListOf(Shape):
    """A list of values of one shape."""

    item: Shape

    def schema(self, components: dict[str, Schema]) -> Schema:
        """``array``."""
        return {"type": "array", "items": self.item.schema(components)}

    def decode(self, value: Any, place: Place, errors: Errors) -> Any:
        """The list."""
        if not isinstance(value, list):
            errors.add("list_type", place, "Input should be a valid list")
            return []
        return [self.item.decode(item, (*place, index), errors) for index, item in enumerate(value)]


@dataclass(frozen=True)
class OneOf(Shape):
    """One of several objects, told apart by the keys they have.

    Args:
        members: Name on the protobuf wire to shape.
    """

    members: Mapping[str, Object]

    def schema(self, components: dict[str, Schema]) -> Schema:
        """``anyOf`` the members."""
        return {"anyOf": [member.schema(components) for member in self.members.values()]}

    def decode(self, value: Any, place: Place, errors: Errors) -> Any:
        """``{member's name: its value}`` for the first member that knows every key."""
        if not isinstance(value, dict) or not value:
            errors.add("dict_type", place, "Input should be an object with one of its forms' keys")
            return {}
        for name, member in self.members.items():
            if value.keys() <= member.fields.keys():
                return {name: member.decode(value, place, errors)}
        forms = "; ".join(", ".join(member.fields) for member in self.members.values())
        errors.add("union", place, f"Input should have the keys of one form: {forms}")
        return {}


@dataclass(frozen=True)
class Object(Shape):
    """A JSON object with known keys and no others.

    Args:
        name: Its name in OpenAPI; it is written where it stands if this is empty.
        title: Its full name on the protobuf wire.
        fields: Key to shape.
        required: Keys that must be there. Null counts as absent.
    """

    name: str
    title: str
    fields: Mapping[str, Shape]
    required: tuple[str, ...] = ()

    def schema(self, components: dict[str, Schema]) -> Schema:
        """A reference to its component."""
        if not self.name:
            return self.inline_schema(components)
        if self.name not in components:
            components[self.name] = {}
            components[self.name] = self.inline_schema(components)
        return {"$ref": f"#/components/schemas/{self.name}"}

    def inline_schema(self, components: dict[str, Schema]) -> Schema:
        """The object itself, not a reference.

        Args:
            components: As for ``schema``.

        Returns:
            The schema.
        """
        schema: Schema = {
            "type": "object",
            "title": self.title,
            "properties": {key: shape.schema(components) for key, shape in self.fields.items()},
            "additionalProperties": False,
        }
        if self.required:
            schema["required"] = list(self.required)
        return schema

    def decode(self, value: Any, place: Place, errors: Errors) -> Any:
        """Key to checked value, absent keys left out, as protobuf's constructors take it."""
        if not isinstance(value, dict):
            errors.add("dict_type", place, "Input should be a valid object")
            return {}
        decoded: dict[str, Any] = {}
        for key, item in value.items():
            shape = self.fields.get(key)
            if shape is None:
                hint = did_you_mean(key[:80], self.fields)
                message = f"Extra inputs are not permitted{hint}"
                errors.add("extra_forbidden", (*place, key[:80]), message)
            elif isinstance(shape, OneOf) and item is not None:
                # On the protobuf wire the chosen member stands here itself.
                decoded |= shape.decode(item, (*place, key), errors)
            elif item is not None:
                decoded[key] = shape.decode(item, (*place, key), errors)
        for key in self.required:
            if value.get(key) is None:
                errors.add("missing", (*place, key), "Field required")
        return decoded


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
