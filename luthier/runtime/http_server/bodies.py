"""Request bodies: JSON or multipart/form-data, checked against a shape."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any, NoReturn

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from luthier.runtime.http_server.problems import HttpError, invalid_body
from luthier.runtime.http_server.shapes import Errors, ListOf, Object, OneOf, Shape

#: Larger JSON is parsed in a thread, so that the event loop goes on meanwhile.
THREAD_BYTES = 256 * 1024
MAX_FORM_PARTS = 2000


async def read_body(request: Request, shape: Object) -> dict[str, Any]:
    """The body of a request.

    A missing Content-Type is taken for JSON, and parameters such as ``charset`` are ignored.

    Args:
        request: Whose body was not read yet.
        shape: What it must be.

    Returns:
        Key to checked value.

    Raises:
        HttpError: 415 for another media type or a compressed body, 422 for a body that is no JSON
            or not of the shape.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("identity", ""):
        raise HttpError(415, "unsupported_media_type", f"content encoding {encoding[:80]!r}")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("", "application/json"):
        raw = await request.body()
        if len(raw) > THREAD_BYTES:
            return await asyncio.to_thread(decode_json, raw, shape)
        return decode_json(raw, shape)
    if kind == "multipart/form-data":
        return await _read_form(request, shape)
    raise HttpError(
        415,
        "unsupported_media_type",
        f"Unsupported media type: {kind[:80]!r}; send application/json or multipart/form-data",
    )


def decode_json(raw: bytes, shape: Object) -> dict[str, Any]:
    """JSON bytes, checked.

    Args:
        raw: The body.
        shape: What it must be.

    Returns:
        Key to checked value.

    Raises:
        HttpError: 422.
    """
    return _checked(_parse(raw), shape)


def _checked(value: Any, shape: Object) -> dict[str, Any]:
    errors = Errors()
    decoded: dict[str, Any] = shape.decode(value, (), errors)
    if errors.found:
        raise invalid_body(errors.found)
    return decoded


def _parse(raw: bytes | str) -> Any:
    try:
        return json.loads(
            raw, parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates
        )
    except RecursionError:
        _refuse_json("nested too deeply")
    except UnicodeDecodeError:
        _refuse_json("not UTF-8")
    except ValueError as error:
        _refuse_json(str(error))


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key that stands twice means two things; taking the last one would be a guess."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object")
    return found


def _refuse_json(reason: str) -> NoReturn:
    raise _refused("json_invalid", f"Invalid JSON: {reason}")


def _refused(kind: str, message: str, *place: str) -> HttpError:
    return invalid_body([{"type": kind, "loc": ["body", *place], "msg": message}])


async def _read_form(request: Request, shape: Object) -> dict[str, Any]:
    limit = request.app.state.max_body_bytes
    try:
        form = await request.form(
            max_files=MAX_FORM_PARTS, max_fields=MAX_FORM_PARTS, max_part_size=limit
        )
    except HTTPException as error:
        raise _refused("form_invalid", error.detail) from error
    try:
        return _checked(await _unflatten(form, shape), shape)
    finally:
        await form.close()


async def _unflatten(form: FormData, shape: Object) -> dict[str, Any]:
    """``a.b`` fields become ``{"a": {"b": …}}``, typed as the shape says."""
    body: dict[str, Any] = {}
    for key in form:
        path = key.split(".")
        leaf = _shape_at(shape, path)
        values = [await _form_value(value, leaf) for value in form.getlist(key)]
        parent = body
        for part in path[:-1]:
            parent = parent.setdefault(part, {})
            if not isinstance(parent, dict):
                message = "this form field stands beside one that holds it"
                raise _refused("form_invalid", message, key[:80])
        is_whole_list = len(values) == 1 and isinstance(values[0], list)
        is_list = isinstance(leaf, ListOf) and not is_whole_list
        parent[path[-1]] = values if is_list else values[-1]
    return body


def _shape_at(shape: Shape, path: list[str]) -> Shape | None:
    """The shape that a dotted key leads to, or None: the check then names the key."""
    current: Shape | None = shape
    for part in path:
        if isinstance(current, OneOf):
            members = (member.fields.get(part) for member in current.members.values())
            current = next((member for member in members if member is not None), None)
        elif isinstance(current, Object):
            current = current.fields.get(part)
        else:
            return None
    return current


async def _form_value(value: UploadFile | str, shape: Shape | None) -> Any:
    item = shape.item if isinstance(shape, ListOf) else shape
    if isinstance(value, UploadFile):
        content = await value.read()
        if isinstance(item, Object) and {"filename", "data"} <= item.fields.keys():
            return {"filename": value.filename or "", "data": content}
        return _structured(content, item) if item is not None else content
    return _structured(value, item)


def _structured(value: bytes | str, shape: Shape | None) -> Any:
    if isinstance(shape, Object | OneOf):
        return _parse(value)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return value
    return shape.from_text(value) if shape is not None else value
