"""The check of a JSON value and its schema say the same."""

from __future__ import annotations

import math

import pytest

from luthier.runtime.http_server.shapes import (
    MAX_ERRORS,
    Bytes,
    Errors,
    Flag,
    Integer,
    ListOf,
    Number,
    Object,
    OneOf,
    Text,
)

SMALL = Integer(0, 9)
POINT = Object("Point", "demo.Point", {"x": SMALL, "label": Text()}, required=("x",))
CHOICE = OneOf(
    {"inline": Object("A", "", {"data": ListOf(POINT)}), "file": Object("B", "", {"name": Text()})}
)
OUTER = Object("Outer", "demo.Outer", {"point": POINT, "source": CHOICE})


def errors_of(shape, value) -> list[tuple[str, tuple]]:
    errors = Errors()
    shape.decode(value, (), errors)
    return [(error["type"], tuple(error["loc"])) for error in errors.found]


@pytest.mark.parametrize(
    ("shape", "value", "decoded"),
    [
        (Text(), "é", "é"),
        (SMALL, 9, 9),
        (SMALL, 3.0, 3),
        (Number(), 1, 1.0),
        (Number(), -0.5, -0.5),
        (Flag(), True, True),
        (Bytes(), "aGk=", b"hi"),
        (Bytes(), b"\xff", b"\xff"),
        (ListOf(SMALL), [1, 2], [1, 2]),
        (POINT, {"x": 1, "label": None}, {"x": 1}),
        (OUTER, {"source": {"name": "f"}}, {"file": {"name": "f"}}),
        (OUTER, {"source": {"data": [{"x": 1}]}}, {"inline": {"data": [{"x": 1}]}}),
    ],
)
def test_a_right_value_is_decoded(shape, value, decoded):
    errors = Errors()
    assert shape.decode(value, (), errors) == decoded
    assert errors.found == []


@pytest.mark.parametrize(
    ("shape", "value", "kind"),
    [
        (Text(), 1, "string_type"),
        (Text(), "a\ud800", "string_unicode"),
        (SMALL, True, "int_type"),
        (SMALL, "1", "int_type"),
        (SMALL, 1.5, "int_type"),
        (SMALL, 10, "int_range"),
        (SMALL, 10**400, "int_range"),
        (SMALL, math.inf, "int_type"),
        (Number(), False, "float_type"),
        (Number(), math.nan, "finite_number"),
        (Number(), 10**400, "finite_number"),
        (Flag(), 1, "bool_type"),
        (Flag(), "true", "bool_type"),
        (Bytes(), "%%%", "bytes_encoding"),
        (Bytes(), 5, "bytes_encoding"),
        (ListOf(SMALL), {"0": 1}, "list_type"),
        (POINT, [], "dict_type"),
        (POINT, {"x": 1, "y": 2}, "extra_forbidden"),
        (POINT, {"x": None}, "missing"),
        (CHOICE, {}, "dict_type"),
        (CHOICE, {"data": [], "name": "f"}, "union"),
    ],
)
def test_a_wrong_value_is_named(shape, value, kind):
    assert [found for found, _ in errors_of(shape, value)] == [kind]


def test_an_error_says_where():
    value = {"source": {"data": [{"x": 1}, {"x": "one", "z": 0}]}}
    assert errors_of(OUTER, value) == [
        ("int_type", ("body", "source", "data", 1, "x")),
        ("extra_forbidden", ("body", "source", "data", 1, "z")),
    ]


def test_a_flood_of_errors_is_cut():
    assert len(errors_of(ListOf(SMALL), ["x"] * 1000)) == MAX_ERRORS


@pytest.mark.parametrize(
    ("shape", "text", "value"),
    [
        (SMALL, " 7 ", 7),
        (SMALL, "-7", -7),
        (SMALL, "seven", "seven"),
        (SMALL, "9" * 5000, "9" * 5000),
        (Number(), "0.5", 0.5),
        (Number(), "half", "half"),
        (Flag(), "TRUE", True),
        (Flag(), "1", "1"),
        (Text(), "7", "7"),
    ],
)
def test_the_text_of_a_form_field_becomes_what_json_would_have_had(shape, text, value):
    assert shape.from_text(text) == value


def test_schemas_refer_to_components_that_are_there():
    components: dict = {}
    assert OUTER.schema(components) == {"$ref": "#/components/schemas/Outer"}
    assert set(components) == {"Outer", "Point", "A", "B"}
    assert components["Point"] == {
        "type": "object",
        "title": "demo.Point",
        "properties": {
            "x": {"type": "integer", "minimum": 0, "maximum": 9},
            "label": {"type": "string"},
        },
        "additionalProperties": False,
        "required": ["x"],
    }
    inline = OUTER.inline_schema({})
    assert inline["properties"]["source"]["anyOf"][1] == {"$ref": "#/components/schemas/B"}
    assert (Number().schema({})["type"], Flag().schema({})["type"]) == ("number", "boolean")
    assert Bytes().schema({})["contentEncoding"] == "base64"
