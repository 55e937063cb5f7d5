"""The OpenAPI document: FastAPI's routes with the bodies that the routes' shapes describe."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from google.protobuf.descriptor import Descriptor

import luthier
from luthier.runtime.http_server.message_shapes import response_schema
from luthier.runtime.http_server.shapes import Object, Schema

ERROR_NAME = "Error"
ERROR_SCHEMA: Schema = {
    "type": "object",
    "title": "Error",
    "properties": {
        "details": {"type": "string", "title": "What is wrong"},
        "code": {"type": "integer", "title": "The HTTP status"},
        "id": {"type": "string", "title": "Id of the error in the server's log"},
        "error": {"type": "string", "title": "Stable word for the kind of error"},
        "additional_info": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["details", "code", "id", "error"],
}


class Document:
    """Collects the schemas of the routes while they are added, then makes the document."""

    def __init__(self) -> None:
        self._components: dict[str, Schema] = {ERROR_NAME: ERROR_SCHEMA}

    def request_body(self, shape: Object, *, inline: tuple[str, ...] = ()) -> dict[str, Any]:
        """What a route's ``openapi_extra`` says of its body: JSON or a form.

        Args:
            shape: The body.
            inline: Keys whose objects are written in place, under ``allOf``: existing clients
                read ``parameters.allOf[0].properties``.

        Returns:
            An operation's ``requestBody``.
        """
        schema = shape.inline_schema(self._components)
        for key in inline:
            part = shape.fields[key]
            if isinstance(part, Object):
                schema["properties"][key] = self._inlined(part)
        kinds = ("application/json", "multipart/form-data")
        content = {kind: {"schema": schema} for kind in kinds}
        return {"requestBody": {"required": True, "content": content}}

    def responses(
        self, message: Descriptor, *, media_type: str = "application/json"
    ) -> dict[int | str, dict[str, Any]]:
        """What a route answers with: a message, or an error.

        Args:
            message: The answer's data object on the protobuf wire.
            media_type: How it is sent.

        Returns:
            A route's ``responses``.
        """
        return self.responses_of(response_schema(message, self._components), media_type=media_type)

    def responses_of(
        self, schema: Schema, *, media_type: str = "application/json"
    ) -> dict[int | str, dict[str, Any]]:
        """As ``responses``, for a schema.

        Args:
            schema: The answer's.
            media_type: How it is sent.

        Returns:
            A route's ``responses``.
        """
        error = {"$ref": f"#/components/schemas/{ERROR_NAME}"}
        return {
            200: {"description": "OK", "content": {media_type: {"schema": schema}}},
            "default": {
                "description": "Refused or failed",
                "content": {"application/json": {"schema": error}},
            },
        }

    def component(self, message: Descriptor) -> Schema:
        """A reference to a message's schema as a response.

        Args:
            message: On the protobuf wire.

        Returns:
            The reference.
        """
        return response_schema(message, self._components)

    def _inlined(self, shape: Object) -> Schema:
        """The object in place, and every object in it likewise: nothing but ``allOf`` around."""
        schema = shape.inline_schema(self._components)
        for key, part in shape.fields.items():
            if isinstance(part, Object):
                schema["properties"][key] = self._inlined(part)
        return {"allOf": [schema]}

    def install(self, app: FastAPI) -> None:
        """Make the document of the app's routes and serve it.

        Args:
            app: With every route added.
        """
        document = get_openapi(
            title="Luthier",
            version=luthier.__version__,
            description="Tunes and serves language models.",
            routes=app.routes,
        )
        document.setdefault("components", {})["schemas"] = dict(sorted(self._components.items()))
        app.openapi = lambda: document  # type: ignore[method-assign]
