"""Routes of the tasks: generate, stream, classify, tokenize, and the same in the background."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from caikit.interfaces.runtime.data_model import PredictionJob, PredictionJobStatusResponse
from fastapi import APIRouter, Query, Request, Response
from google.protobuf.descriptor import Descriptor, ServiceDescriptor

from luthier.data_model.caller import acting_for
from luthier.errors import InvalidInputError
from luthier.runtime.callers import caller_of
from luthier.runtime.http_server.bodies import read_body
from luthier.runtime.http_server.disconnect import while_connected
from luthier.runtime.http_server.message_shapes import shape_of
from luthier.runtime.http_server.openapi import Document
from luthier.runtime.http_server.problems import guarded
from luthier.runtime.http_server.shapes import Integer, Object, Shape, Text
from luthier.runtime.http_server.sse import UNCUT, SseResponse
from luthier.runtime.services.bundle import Services

#: Does a request's work: model id, text, sampling parameters.
Work = Callable[[str, str, dict[str, Any]], Awaitable[Any]]


def json_response(result: Any) -> Response:
    """caikit's data object as a response.

    Args:
        result: The data object.

    Returns:
        Its JSON: every field, enums as words.
    """
    return Response(result.to_json(), media_type="application/json")


class InferenceRoutes:
    """Adds the routes of the inference service to a router.

    Args:
        services: Who answers.
        rpcs: ``NlpService``; its requests give the bodies.
        document: Gets the schemas.
    """

    def __init__(self, services: Services, rpcs: ServiceDescriptor, document: Document) -> None:
        self._services = services
        self._rpcs = rpcs
        self._document = document

    def add_to(self, router: APIRouter) -> None:
        """Add every route.

        Args:
            router: Has the route prefix already.
        """
        inference = self._services.inference

        async def classify(model_id: str, text: str, parameters: dict[str, Any]) -> Any:
            return await inference.classify(model_id, text)

        async def tokenize(model_id: str, text: str, parameters: dict[str, Any]) -> Any:
            return await inference.tokenize(model_id, text)

        self._add_unary(router, "text-generation", "TextGenerationTaskPredict", inference.generate)
        self._add_unary(router, "text-classification", "TextClassificationTaskPredict", classify)
        self._add_unary(router, "tokenization", "TokenizationTaskPredict", tokenize)
        self._add_stream(router)
        self._add_many(router)

    def _add_unary(self, router: APIRouter, task: str, rpc: str, work: Work) -> None:
        method = self._rpcs.methods_by_name[rpc]
        shape = _body_shape(method.input_type)

        async def handle(request: Request) -> Response:
            arguments = _arguments(await read_body(request, shape))
            with acting_for(caller_of(request.headers)):
                return json_response(await while_connected(request.receive, _run(work, arguments)))

        router.add_api_route(
            f"/task/{task}",
            guarded(handle),
            methods=["POST"],
            responses=self._document.responses(method.output_type),
            openapi_extra=self._document.request_body(shape, inline=_inlined(shape)),
            operation_id=f"{task}",
            summary=f"{task}: run a model on a text",
        )
        self._add_job(router, task, shape, method.output_type, work)

    def _add_stream(self, router: APIRouter) -> None:
        method = self._rpcs.methods_by_name["ServerStreamingTextGenerationTaskPredict"]
        shape = _body_shape(method.input_type)
        inference = self._services.inference

        async def handle(request: Request) -> Response:
            arguments = _arguments(await read_body(request, shape))
            results = inference.stream(*arguments)
            try:
                # What is wrong with a request mostly shows here, while there is a status to set.
                with acting_for(caller_of(request.headers)):
                    first = await while_connected(request.receive, anext(results))
            except BaseException:
                await results.aclose()
                raise
            return SseResponse(first, results)

        router.add_api_route(
            "/task/server-streaming-text-generation",
            guarded(handle, error_prefix=UNCUT),
            methods=["POST"],
            responses=self._document.responses(
                method.output_type, media_type=SseResponse.media_type
            ),
            openapi_extra=self._document.request_body(shape, inline=_inlined(shape)),
            operation_id="server-streaming-text-generation",
            summary="server-streaming-text-generation: generate, one server-sent event per piece",
        )

    def _add_many(self, router: APIRouter) -> None:
        method = self._rpcs.methods_by_name["TextGenerationTaskPredict"]
        one = _body_shape(method.input_type)
        fields = {**one.fields, "n": Integer(-(2**63), 2**63 - 1)}
        shape = Object("", "TextGenerationsHttpRequest", fields, required=("inputs", "n"))
        inference = self._services.inference

        async def handle(request: Request) -> Response:
            body = await read_body(request, shape)
            model_id, text, parameters = _arguments(body)
            with acting_for(caller_of(request.headers)):
                work = inference.generate_many(model_id, text, body["n"], parameters)
                results = await while_connected(request.receive, work)
            items = ",".join(result.to_json() for result in results)
            return Response(f'{{"results":[{items}]}}', media_type="application/json")

        results = {"type": "array", "items": self._document.component(method.output_type)}
        answer = {"type": "object", "properties": {"results": results}, "required": ["results"]}
        router.add_api_route(
            "/task/text-generations",
            guarded(handle),
            methods=["POST"],
            responses=self._document.responses_of(answer),
            openapi_extra=self._document.request_body(shape, inline=_inlined(shape)),
            operation_id="text-generations",
            summary="text-generations: several answers to one text, by sampling",
        )

    def _add_job(
        self, router: APIRouter, task: str, shape: Object, result: Descriptor, work: Work
    ) -> None:
        jobs = self._services.prediction_jobs

        async def start(request: Request) -> Response:
            arguments = _arguments(await read_body(request, shape))
            with acting_for(caller_of(request.headers)):
                return json_response(jobs.start(_run(work, arguments)))

        async def status(prediction_id: Annotated[str, Query()]) -> Response:
            return json_response(jobs.status(prediction_id))

        async def cancel(prediction_id: Annotated[str, Query()]) -> Response:
            return json_response(await jobs.cancel(prediction_id))

        async def get_result(prediction_id: Annotated[str, Query()]) -> Response:
            return json_response(jobs.result(prediction_id))

        status_type = PredictionJobStatusResponse.get_proto_class().DESCRIPTOR
        started = PredictionJob.get_proto_class().DESCRIPTOR
        body = self._document.request_body(shape, inline=_inlined(shape))
        for verb, suffix, handler, answer, extra in (
            ("POST", "", start, started, body),
            ("GET", "", status, status_type, None),
            ("DELETE", "", cancel, status_type, None),
            ("GET", "/results", get_result, result, None),
        ):
            router.add_api_route(
                f"/task/{task}/job{suffix}",
                guarded(handler),
                methods=[verb],
                responses=self._document.responses(answer),
                openapi_extra=extra,
                operation_id=f"{verb.lower()}-{task}-job{suffix.replace('/', '-')}",
                summary=f"{task} in the background",
            )


def _body_shape(request: Descriptor) -> Object:
    """``{"inputs", "parameters", "model_id"}``; ``parameters`` only if there are any."""
    parameters = shape_of(request, name=f"{request.name}Parameters", omit=("text",))
    fields: dict[str, Shape] = {"inputs": Text(), "model_id": Text()}
    if parameters.fields:
        fields["parameters"] = parameters
    return Object("", f"{request.name}HttpRequest", fields, required=("inputs",))


def _inlined(shape: Object) -> tuple[str, ...]:
    return ("parameters",) if "parameters" in shape.fields else ()


def _arguments(body: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    model_id = body.get("model_id")
    if not model_id:
        raise InvalidInputError("Please provide model_id in payload")
    return model_id, body["inputs"], body.get("parameters", {})


async def _run(work: Work, arguments: tuple[str, str, dict[str, Any]]) -> Any:
    return await work(*arguments)
