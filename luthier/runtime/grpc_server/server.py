"""The gRPC server: caikit's services, health and reflection on one ``grpc.aio`` server."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import _async as reflection_aio
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha import reflection_pb2 as reflection_v1alpha

from luthier.errors import ConfigError
from luthier.modules.service_package import ServicePackages
from luthier.runtime.grpc_server.rpcs import GrpcService, all_services
from luthier.runtime.services.bundle import Services

REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
_HEALTH_PERIOD_SECONDS = 1.0


class GrpcServer:
    """Answers gRPC on one port. Lives on one event loop.

    Args:
        services: Who answers.
        packages: caikit's generated messages and services.
        address: ``host:port``; port 0 takes a free one.
        max_message_bytes: Largest message in either direction.
        has_reflection: Tell clients the services and messages.
    """

    def __init__(
        self,
        services: Services,
        packages: ServicePackages,
        *,
        address: str,
        max_message_bytes: int,
        has_reflection: bool,
    ) -> None:
        self._address = address
        self._info = services.info
        self._health_watch: asyncio.Task[None] | None = None
        self._health = health_aio.HealthServicer()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                # Two servers on one port would share its connections at random.
                ("grpc.so_reuseport", 0),
            ]
        )
        self._names: list[str] = []
        for service in all_services(services, packages):
            self._add(service)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if has_reflection:
            self._add_reflection()

    async def start(self) -> int:
        """Listen and serve.

        Returns:
            The port.

        Raises:
            ConfigError: If the address is taken or not to be had.
        """
        try:
            port: int = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise ConfigError(f"gRPC cannot listen on {self._address}") from error
        await self._server.start()
        await self._tell_health()
        self._health_watch = asyncio.create_task(self._watch_health())
        return port

    async def stop(self, grace_seconds: float) -> None:
        """Take no more calls, let those that run end, cancel what is left.

        Args:
            grace_seconds: How long calls may still run.
        """
        if self._health_watch is not None:
            self._health_watch.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(_HEALTH_PERIOD_SECONDS)
            await self._tell_health()

    async def _tell_health(self) -> None:
        """Say of every service what HTTP's ``/health`` says: an engine may have died since."""
        statuses = health_pb2.HealthCheckResponse
        status = statuses.NOT_SERVING if self._info.problem() else statuses.SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    def _add(self, service: GrpcService) -> None:
        handler = grpc.method_handlers_generic_handler(service.name, service.handlers)
        self._server.add_generic_rpc_handlers((handler,))
        self._names.append(service.name)

    def _add_reflection(self) -> None:
        names = [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME, REFLECTION_V1]
        reflection.enable_server_reflection(names, self._server)
        # v1 is v1alpha under another name: the same messages, the same answers.
        servicer = reflection_aio.ReflectionServicer(names)
        handler = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_v1alpha.ServerReflectionRequest.FromString,
            response_serializer=reflection_v1alpha.ServerReflectionResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    REFLECTION_V1, {"ServerReflectionInfo": handler}
                ),
            )
        )
