"""Puts the runtime together: from the config to services and servers. Nothing else reads both."""

from __future__ import annotations

import os
from pathlib import Path

import luthier.modules as modules
from luthier.config.schema import Config
from luthier.config.settings import env_name
from luthier.inference.registry import engine_for
from luthier.modules.environment import Environment, environment
from luthier.modules.service_package import ServicePackages
from luthier.runtime.grpc_server.server import GrpcServer
from luthier.runtime.http_server.app import create_app
from luthier.runtime.http_server.server import HttpServer
from luthier.runtime.jobs.executor import LocalProcessExecutor
from luthier.runtime.jobs.memory_store import MemoryJobStore
from luthier.runtime.jobs.retention import JobRetention
from luthier.runtime.registry.model_folder import ModelsDir
from luthier.runtime.registry.registry import ModelRegistry
from luthier.runtime.registry.served_module import LoadModule, ServedModule
from luthier.runtime.services.bundle import Services
from luthier.runtime.services.inference import InferenceService
from luthier.runtime.services.info import InfoService
from luthier.runtime.services.models import ModelsService
from luthier.runtime.services.prediction_jobs import PredictionJobsService
from luthier.runtime.services.training import TrainingChecks, TrainingService
from luthier.runtime.services.training_request import JOBS_FOLDER, TrainingPlaces
from luthier.runtime.training_checks import check_training


def make_registry(config: Config, load: LoadModule) -> ModelRegistry:
    """The registry of the served models.

    Args:
        config: The server's.
        load: Reads a saved model.

    Returns:
        A registry with nothing loaded; its folder is made if need be.
    """
    models = ModelsDir(
        Path(config.runtime.local_models_dir).resolve(),
        max_name_chars=config.training.limits.max_model_name_chars,
    )
    return ModelRegistry(models, load=load, max_loaded_models=config.runtime.max_loaded_models)


def make_executor(config: Config, store: MemoryJobStore) -> LocalProcessExecutor:
    """The executor of trainings.

    Args:
        config: The server's.
        store: Remembers the jobs.

    Returns:
        An executor with nothing to do.
    """
    settings = config.runtime.training
    return LocalProcessExecutor(
        store,
        max_running=settings.max_running_jobs,
        max_waiting=settings.max_waiting_jobs,
        cancel_grace_seconds=settings.cancel_grace_seconds,
        # A training's base model is its own: no other process maps it.
        environment={env_name("inference.process.enabled"): "false"},
    )


def make_retention(config: Config, store: MemoryJobStore) -> JobRetention:
    """What removes the folders of ended trainings.

    Args:
        config: The server's.
        store: Of the jobs.

    Returns:
        It, with nothing removed yet.
    """
    return JobRetention(
        Path(config.runtime.training_output_dir).resolve() / JOBS_FOLDER,
        store,
        keep_seconds=config.runtime.training.keep_ended_jobs_hours * 3600,
    )


def make_services(
    config: Config,
    environment: Environment,
    *,
    registry: ModelRegistry,
    store: MemoryJobStore,
    executor: LocalProcessExecutor,
    load: LoadModule,
) -> Services:
    """The services.

    Args:
        config: The server's.
        environment: What the modules know of it.
        registry: Of the served models.
        store: Of the jobs.
        executor: Of the jobs.
        load: Reads a saved model.

    Returns:
        One of each.
    """
    output_dir = Path(config.runtime.training_output_dir).resolve()
    output_dir.mkdir(parents=True, exist_ok=True)
    places = TrainingPlaces(
        output_dir=output_dir,
        save_with_id=config.runtime.training.save_with_id,
        served=registry.models if output_dir == registry.models.path else None,
        max_model_name_chars=config.training.limits.max_model_name_chars,
    )
    checks = TrainingChecks(stream_limits=environment.stream_limits, check=check_training)
    return Services(
        inference=InferenceService(registry),
        prediction_jobs=PredictionJobsService(),
        training=TrainingService(store, executor, places=places, checks=checks),
        models=ModelsService(registry, load),
        info=InfoService(),
    )


def make_grpc_server(config: Config, services: Services, packages: ServicePackages) -> GrpcServer:
    """The gRPC server.

    Args:
        config: The server's.
        services: Who answers.
        packages: caikit's generated messages and services.

    Returns:
        A server that does not listen yet.
    """
    settings = config.runtime.grpc
    host = config.runtime.host
    return GrpcServer(
        services,
        packages,
        address=f"[{host}]:{settings.port}" if ":" in host else f"{host}:{settings.port}",
        max_message_bytes=settings.max_message_bytes,
        has_reflection=settings.reflection_enabled,
    )


def make_http_server(config: Config, services: Services, packages: ServicePackages) -> HttpServer:
    """The HTTP server.

    Args:
        config: The server's.
        services: Who answers.
        packages: caikit's generated messages and services.

    Returns:
        A server that does not listen yet.
    """
    settings = config.runtime.http
    app = create_app(
        services,
        packages,
        route_prefix=settings.route_prefix,
        max_body_bytes=settings.max_body_bytes,
    )
    return HttpServer(
        app,
        host=config.runtime.host,
        port=settings.port,
        drain_seconds=config.runtime.drain_seconds,
    )


def load_saved_model(folder: Path) -> ServedModule:
    """Read a saved model with our modules, and start the engine of its base model.

    Args:
        folder: Of the model.

    Returns:
        The module.
    """
    module = modules.load(os.fspath(folder))
    try:
        # Here, where nobody but its own requests waits for it.
        engine_for(module.base_model, options=environment().engine_options)
    except BaseException:
        module.release()
        raise
    served: ServedModule = module
    return served
