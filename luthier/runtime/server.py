"""The runtime as one thing that starts, says where it listens, and stops in order."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass

import alog

from luthier.config.schema import Config
from luthier.inference.registry import close_all
from luthier.modules.environment import configure
from luthier.modules.service_package import service_packages
from luthier.runtime import assembly
from luthier.runtime.jobs.memory_store import MemoryJobStore
from luthier.runtime.registry.checked_loading import CheckedLoading
from luthier.runtime.registry.served_module import LoadModule

log = alog.use_channel(__name__)


@dataclass(frozen=True)
class Addresses:
    """Where the servers listen, "" for one that is off.

    Args:
        grpc: ``host:port``.
        http: URL without a path.
    """

    grpc: str = ""
    http: str = ""


class Runtime:
    """Both servers and all behind them, on the event loop that calls ``start``.

    Args:
        config: The server's settings.
        load: Reads a saved model; our modules do, if nothing else is said.
    """

    def __init__(self, config: Config, load: LoadModule = assembly.load_saved_model) -> None:
        self._config = config
        if config.runtime.check_adapters:
            load = CheckedLoading(load)
        environment = configure(config)
        packages = service_packages()
        store = MemoryJobStore()
        self._executor = assembly.make_executor(config, store)
        self._retention = assembly.make_retention(config, store)
        self._cleaning: asyncio.Task[None] | None = None
        self._registry = assembly.make_registry(config, load)
        self.services = assembly.make_services(
            config,
            environment,
            registry=self._registry,
            store=store,
            executor=self._executor,
            load=load,
        )
        runtime = config.runtime
        self._grpc = (
            assembly.make_grpc_server(config, self.services, packages)
            if runtime.grpc.enabled
            else None
        )
        self._http = (
            assembly.make_http_server(config, self.services, packages)
            if runtime.http.enabled
            else None
        )

    async def start(self) -> Addresses:
        """Listen and serve.

        Returns:
            Where.

        Raises:
            ConfigError: If a port cannot be had; nothing is left running.
        """
        host = self._config.runtime.host
        if not _is_loopback(host):
            log.warning(
                "reachable from other machines, and nobody is asked who they are: host=%s",
                host,
            )
        shown = f"[{host}]" if ":" in host else host
        try:
            grpc = f"{shown}:{await self._grpc.start()}" if self._grpc else ""
            http = f"http://{shown}:{await self._http.start()}" if self._http else ""
        except BaseException:
            await self.stop()
            raise
        self._cleaning = asyncio.create_task(self._retention.run())
        return Addresses(grpc, http)

    async def stop(self) -> None:
        """Refuse new work, let requests end within the drain time, stop trainings. Idempotent."""
        self.services.info.is_draining = True
        if self._cleaning is not None:
            self._cleaning.cancel()
        drain_seconds = self._config.runtime.drain_seconds
        await asyncio.gather(
            self._executor.stop(),
            self.services.prediction_jobs.close(),
            *([self._grpc.stop(drain_seconds)] if self._grpc else []),
            *([self._http.stop()] if self._http else []),
        )
        await self._registry.close()
        await asyncio.to_thread(close_all)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
