"""Listening, health, reflection, limits and stopping."""

from __future__ import annotations

import grpc
import pytest
from fixtures.echo_runtime import RunningRuntime
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from luthier.config import load_config
from luthier.errors import ConfigError
from luthier.modules.service_package import service_packages
from luthier.runtime.grpc_server.server import REFLECTION_V1, GrpcServer

V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
SERVICES = {
    "caikit.runtime.Nlp.NlpService",
    "caikit.runtime.Nlp.NlpTrainingService",
    "caikit.runtime.training.TrainingManagement",
    "caikit.runtime.models.ModelManagement",
    "caikit.runtime.info.InfoService",
    "luthier.TrainingControl",
    "grpc.health.v1.Health",
}


def ask_reflection(channel: grpc.Channel, service: str, **question: str):
    call = channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    [answer] = call(iter([reflection_pb2.ServerReflectionRequest(**question)]))
    return answer


@pytest.mark.parametrize("version", [V1ALPHA, REFLECTION_V1])
def test_reflection_lists_every_service(runtime: RunningRuntime, version):
    with runtime.channel() as channel:
        answer = ask_reflection(channel, version, list_services="")
    found = {service.name for service in answer.list_services_response.service}
    assert found >= SERVICES


@pytest.mark.parametrize("version", [V1ALPHA, REFLECTION_V1])
def test_a_client_that_knows_nothing_generates_with_what_reflection_tells(runtime, version):
    """As caikit-nlp-client 0.0.8 does: descriptors from the server, parameters by setattr."""
    pool = descriptor_pool.DescriptorPool()
    with runtime.channel() as channel:

        def add(**question: str) -> None:
            answer = ask_reflection(channel, version, **question)
            for raw in answer.file_descriptor_response.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(raw)
                for needed in file.dependency:
                    try:
                        pool.FindFileByName(needed)
                    except KeyError:
                        add(file_by_filename=needed)
                pool.Add(file)

        for symbol in (
            "caikit.runtime.Nlp.TextGenerationTaskRequest",
            "caikit_data_model.nlp.GeneratedTextResult",
        ):
            add(file_containing_symbol=symbol)
        request_class, result_class = (
            message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
            for name in (
                "caikit.runtime.Nlp.TextGenerationTaskRequest",
                "caikit_data_model.nlp.GeneratedTextResult",
            )
        )
        request = request_class(text="a b")
        request.max_new_tokens = 5
        for rpc, is_stream in (
            ("TextGenerationTaskPredict", False),
            ("ServerStreamingTextGenerationTaskPredict", True),
        ):
            make = channel.unary_stream if is_stream else channel.unary_unary
            call = make(
                f"/caikit.runtime.Nlp.NlpService/{rpc}",
                request_serializer=request_class.SerializeToString,
                response_deserializer=result_class.FromString,
            )
            answer = call(request, metadata=[("mm-model-id", "echo")])
            # Only field 1 of a stream's messages matters, so one class reads both.
            text = "".join(each.generated_text for each in (answer if is_stream else [answer]))
            assert text == "ba"


def test_health_answers_for_the_server_and_each_service(runtime):
    with runtime.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "caikit.runtime.Nlp.NlpService"):
            status = stub.Check(health_pb2.HealthCheckRequest(service=name)).status
            assert status == health_pb2.HealthCheckResponse.SERVING


def small_server(runtime_services, **changes) -> GrpcServer:
    settings = {"address": "127.0.0.1:0", "max_message_bytes": 2048, "has_reflection": False}
    return GrpcServer(runtime_services, service_packages(), **{**settings, **changes})


class NoServices:
    """Stands where services are wanted and never asked; ``trouble`` is what health finds."""

    trouble = ""

    def __getattr__(self, name: str) -> NoServices:
        return self

    def problem(self) -> str:
        return self.trouble

    async def generate(self, *arguments: object) -> None:
        raise AssertionError("must not be reached")


async def test_a_message_that_is_too_large_is_refused():
    server = small_server(NoServices())
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/caikit.runtime.Nlp.NlpService/TextGenerationTaskPredict")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"x" * 4096, metadata=(("mm-model-id", "echo"),))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await server.stop(0)


async def test_reflection_can_be_off():
    server = small_server(NoServices())
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        # A stream may be refused while its messages are still being sent, which reads INTERNAL.
        call = channel.unary_unary(f"/{V1ALPHA}/ServerReflectionInfo")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await server.stop(0)


async def test_a_port_that_is_taken_is_named():
    first = small_server(NoServices())
    port = await first.start()
    second = small_server(NoServices(), address=f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match=str(port)):
        await second.start()
    await first.stop(0)


async def test_health_turns_red_while_the_server_cannot_serve():
    services = NoServices()
    server = small_server(services)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        seen = aiter(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()))
        assert (await anext(seen)).status == health_pb2.HealthCheckResponse.SERVING
        services.trouble = "an engine has died"
        assert (await anext(seen)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        services.trouble = ""
        assert (await anext(seen)).status == health_pb2.HealthCheckResponse.SERVING
    await server.stop(0)


def test_the_default_port_is_8085():
    assert load_config({}).runtime.grpc.port == 8085
