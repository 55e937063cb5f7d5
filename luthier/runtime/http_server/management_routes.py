"""Routes of models, versions and health."""

from __future__ import annotations

from typing import Annotated

from caikit.interfaces.runtime.data_model import (
    DeployModelRequest,
    ModelInfo,
    ModelInfoResponse,
    RuntimeInfoResponse,
    UndeployModelRequest,
)
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from luthier.errors import InvalidInputError
from luthier.runtime.http_server.bodies import read_body
from luthier.runtime.http_server.inference_routes import json_response
from luthier.runtime.http_server.message_shapes import shape_of
from luthier.runtime.http_server.openapi import Document
from luthier.runtime.http_server.problems import guarded
from luthier.runtime.http_server.shapes import Schema
from luthier.runtime.services.bundle import Services


class ManagementRoutes:
    """Adds ``/management/models``, ``/info`` and ``/health`` to a router.

    Args:
        services: Who answers.
        document: Gets the schemas.
    """

    def __init__(self, services: Services, document: Document) -> None:
        self._services = services
        self._document = document

    def add_to(self, router: APIRouter) -> None:
        """Add every route.

        Args:
            router: Has no prefix.
        """
        self._add_models(router)
        self._add_info(router)
        self._add_health(router)

    def _add_models(self, router: APIRouter) -> None:
        models = self._services.models
        shape = shape_of(DeployModelRequest.get_proto_class().DESCRIPTOR, required=("model_id",))

        async def deploy(request: Request) -> Response:
            body = await read_body(request, shape)
            files: dict[str, bytes] = {}
            for file in body.get("model_files", ()):
                name = file.get("filename", "")
                if name in files:
                    raise InvalidInputError(f"{name[:80]!r} is twice in model_files")
                files[name] = file.get("data", b"")
            return json_response(await models.deploy(body["model_id"], files))

        async def undeploy(model_id: Annotated[str, Query()]) -> Response:
            return json_response(await models.undeploy(model_id))

        router.add_api_route(
            "/management/models",
            guarded(deploy),
            methods=["POST"],
            responses=self._document.responses(ModelInfo.get_proto_class().DESCRIPTOR),
            openapi_extra=self._document.request_body(shape),
            operation_id="deploy-model",
            summary="Serve a model whose files come with the request",
        )
        router.add_api_route(
            "/management/models",
            guarded(undeploy),
            methods=["DELETE"],
            responses=self._document.responses(UndeployModelRequest.get_proto_class().DESCRIPTOR),
            operation_id="undeploy-model",
            summary="Stop serving a model and delete it",
        )

    def _add_info(self, router: APIRouter) -> None:
        services = self._services

        async def version() -> Response:
            return json_response(services.info.versions())

        async def models(model_ids: Annotated[list[str] | None, Query()] = None) -> Response:
            return json_response(await services.models.describe(model_ids or ()))

        async def engines() -> Response:
            return JSONResponse({"engines": await services.info.engines()})

        listing: Schema = {
            "type": "object",
            "properties": {"engines": {"type": "array", "items": {"type": "object"}}},
        }
        component = self._document.component
        for path, handler, answer in (
            ("version", version, component(RuntimeInfoResponse.get_proto_class().DESCRIPTOR)),
            ("models", models, component(ModelInfoResponse.get_proto_class().DESCRIPTOR)),
            ("engines", engines, listing),
        ):
            router.add_api_route(
                f"/info/{path}",
                guarded(handler),
                methods=["GET"],
                responses=self._document.responses_of(answer),
                operation_id=f"info-{path}",
                summary=f"Information: {path}",
            )

    def _add_health(self, router: APIRouter) -> None:
        info = self._services.info

        async def health() -> Response:
            problem = info.problem()
            if problem:
                return PlainTextResponse(problem, 503)
            return PlainTextResponse("OK")

        router.add_api_route(
            "/health",
            guarded(health),
            methods=["GET"],
            responses={
                200: {"description": "Ready", "content": {"text/plain": {}}},
                503: {"description": "Cannot serve, and why", "content": {"text/plain": {}}},
            },
            response_class=PlainTextResponse,
            operation_id="health",
            summary="Whether the server can serve",
        )
