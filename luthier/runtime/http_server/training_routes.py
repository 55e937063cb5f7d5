"""Routes of trainings: start one per module, look at them, cancel, resume."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

from caikit.interfaces.runtime.data_model import TrainingJob, TrainingStatusResponse
from caikit.runtime.service_factory import ServicePackage
from fastapi import APIRouter, Query, Request, Response
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from luthier.runtime.http_server.bodies import read_body
from luthier.runtime.http_server.inference_routes import json_response
from luthier.runtime.http_server.message_shapes import shape_of
from luthier.runtime.http_server.openapi import Document
from luthier.runtime.http_server.problems import guarded
from luthier.runtime.http_server.shapes import Schema
from luthier.runtime.jobs.base import Job
from luthier.runtime.messages import training_request
from luthier.runtime.services.bundle import Services
from luthier.runtime.services.training_status import as_status


class TrainingRoutes:
    """Adds the routes of the training service to routers.

    Args:
        services: Who answers.
        package: ``NlpTrainingService``: one rpc, and so one route, per module.
        document: Gets the schemas.
    """

    def __init__(self, services: Services, package: ServicePackage, document: Document) -> None:
        self._training = services.training
        self._package = package
        self._document = document

    def add_train_routes(self, router: APIRouter) -> None:
        """Add ``/<rpc>`` for every module that can be trained.

        Args:
            router: Has the route prefix already.
        """
        for method in self._package.descriptor.methods:
            self._add_train(router, method, self._package.caikit_rpcs[method.name].clz.MODULE_ID)

    def add_management_routes(self, router: APIRouter) -> None:
        """Add status, list, cancel, resume and metrics.

        Args:
            router: Has no prefix.
        """
        training = self._training
        status_message = TrainingStatusResponse.get_proto_class().DESCRIPTOR

        async def get(training_id: Annotated[str | None, Query()] = None) -> Response:
            if training_id is None:
                return _json({"trainings": [_listed(job) for job in training.jobs()]})
            return json_response(training.status(training_id))

        async def cancel(training_id: Annotated[str, Query()]) -> Response:
            return json_response(await training.cancel(training_id))

        async def resume(training_id: Annotated[str, Query()]) -> Response:
            return json_response(await training.resume(training_id))

        async def metrics(training_id: Annotated[str, Query()]) -> Response:
            return _json({"metrics": await training.metrics(training_id)})

        status = self._document.component(status_message)
        listing: Schema = {
            "type": "object",
            "properties": {"trainings": {"type": "array", "items": {"type": "object"}}},
        }
        lines: Schema = {
            "type": "object",
            "properties": {"metrics": {"type": "array", "items": {"type": "object"}}},
        }
        for verb, path, handler, schema, summary in (
            ("GET", "trainings", get, {"anyOf": [status, listing]}, "One training, or all"),
            ("DELETE", "trainings", cancel, status, "Cancel a training"),
            ("POST", "trainings/resume", resume, status, "Go on from the last checkpoint"),
            ("GET", "trainings/metrics", metrics, lines, "What a training has measured so far"),
        ):
            router.add_api_route(
                f"/management/{path}",
                guarded(handler),
                methods=[verb],
                responses=self._document.responses_of(schema),
                operation_id=f"{verb.lower()}-{path.replace('/', '-')}",
                summary=summary,
            )

    def _add_train(self, router: APIRouter, method: MethodDescriptor, module_id: str) -> None:
        shape = shape_of(method.input_type)
        message_class = GetMessageClass(method.input_type)
        training = self._training

        async def handle(request: Request) -> Response:
            body = await read_body(request, shape)
            # In a thread: 50,000 records take a while to convert.
            decoded = await asyncio.to_thread(
                lambda: training_request(module_id, message_class(**body))
            )
            return json_response(await training.submit(decoded))

        router.add_api_route(
            f"/{method.name}",
            guarded(handle),
            methods=["POST"],
            responses=self._document.responses(TrainingJob.get_proto_class().DESCRIPTOR),
            openapi_extra=self._document.request_body(shape),
            operation_id=method.name,
            summary=f"{method.name}: start a training",
        )


def _listed(job: Job) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(as_status(job).to_json())
    return status | {"model_name": job.spec.model_name}


def _json(body: dict[str, Any]) -> Response:
    return Response(json.dumps(body), media_type="application/json")
