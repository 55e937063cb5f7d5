"""Each rpc by name: which service answers it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from caikit.runtime.service_factory import ServicePackage
from py_to_proto.json_to_service import GRPCService

from luthier.modules.service_package import ServicePackages
from luthier.runtime.grpc_server.calls import Answer, Call, StreamAnswer, server_streaming, unary
from luthier.runtime.messages import set_fields, training_request
from luthier.runtime.services.bundle import Services

Handlers: TypeAlias = "dict[str, grpc.RpcMethodHandler[bytes, bytes]]"


@dataclass(frozen=True)
class GrpcService:
    """A service, ready to be registered.

    Args:
        name: Its full name.
        handlers: Its rpcs by name.
    """

    name: str
    handlers: Handlers


def all_services(services: Services, packages: ServicePackages) -> Iterator[GrpcService]:
    """Everything that is answered over gRPC, but health and reflection.

    Args:
        services: Who answers.
        packages: caikit's generated messages and services.

    Yields:
        One entry per service.
    """
    yield _service(packages.inference, _inference_answers(services))
    yield _service(packages.training, _training_answers(services, packages.training))
    yield _service(packages.training_management, _training_management_answers(services))
    yield _service(packages.training_control, _training_control_answers(services))
    yield _service(packages.model_management, _model_management_answers(services))
    yield _service(packages.info, _info_answers(services))


def _service(
    package: ServicePackage | GRPCService, answers: Mapping[str, Answer | StreamAnswer]
) -> GrpcService:
    handlers: Handlers = {}
    for method in package.descriptor.methods:
        answer: Any = answers.get(method.name)
        # An rpc that is generated but not answered is UNIMPLEMENTED, as gRPC does by itself.
        if answer is not None:
            make = server_streaming if method.server_streaming else unary
            handlers[method.name] = make(method.input_type, answer)
    return GrpcService(package.descriptor.full_name, handlers)


def _inference_answers(services: Services) -> Mapping[str, Answer | StreamAnswer]:
    inference = services.inference

    async def generate(call: Call) -> Any:
        return await inference.generate(call.model_id, call.message.text, _sampling(call))

    def stream(call: Call) -> AsyncGenerator[Any]:
        return inference.stream(call.model_id, call.message.text, _sampling(call))

    async def classify(call: Call) -> Any:
        return await inference.classify(call.model_id, call.message.text)

    async def tokenize(call: Call) -> Any:
        return await inference.tokenize(call.model_id, call.message.text)

    return {
        "TextGenerationTaskPredict": generate,
        "ServerStreamingTextGenerationTaskPredict": stream,
        "TextClassificationTaskPredict": classify,
        "TokenizationTaskPredict": tokenize,
    }


def _sampling(call: Call) -> dict[str, Any]:
    return {name: value for name, value in set_fields(call.message).items() if name != "text"}


def _training_answers(services: Services, package: ServicePackage) -> Mapping[str, Answer]:
    def train_with(module_id: str) -> Answer:
        async def train(call: Call) -> Any:
            # In a thread: 50,000 records take a while to decode.
            request = await asyncio.to_thread(training_request, module_id, call.message)
            return await services.training.submit(request)

        return train

    return {name: train_with(rpc.clz.MODULE_ID) for name, rpc in package.caikit_rpcs.items()}


def _training_management_answers(services: Services) -> Mapping[str, Answer]:
    async def status(call: Call) -> Any:
        return services.training.status(call.message.training_id)

    async def cancel(call: Call) -> Any:
        return await services.training.cancel(call.message.training_id)

    return {"GetTrainingStatus": status, "CancelTraining": cancel}


def _training_control_answers(services: Services) -> Mapping[str, Answer]:
    async def resume(call: Call) -> Any:
        return await services.training.resume(call.message.training_id)

    return {"ResumeTraining": resume}


def _model_management_answers(services: Services) -> Mapping[str, Answer]:
    async def deploy(call: Call) -> Any:
        files = {file.filename: file.data for file in call.message.model_files}
        return await services.models.deploy(call.message.model_id, files)

    async def undeploy(call: Call) -> Any:
        return await services.models.undeploy(call.message.model_id)

    return {"DeployModel": deploy, "UndeployModel": undeploy}


def _info_answers(services: Services) -> Mapping[str, Answer]:
    async def versions(call: Call) -> Any:
        return services.info.versions()

    async def models(call: Call) -> Any:
        return await services.models.describe(list(call.message.model_ids))

    return {"GetRuntimeInfo": versions, "GetModelsInfo": models}
