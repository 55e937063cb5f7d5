"""The FastAPI app: caikit's routes, ours beside them, one document, one kind of error."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline

from luthier.modules.service_package import ServicePackages
from luthier.runtime.http_server import problems
from luthier.runtime.http_server.body_limit import BodyLimit
from luthier.runtime.http_server.inference_routes import InferenceRoutes
from luthier.runtime.http_server.management_routes import ManagementRoutes
from luthier.runtime.http_server.openapi import Document
from luthier.runtime.http_server.training_routes import TrainingRoutes
from luthier.runtime.services.bundle import Services


def create_app(
    services: Services, packages: ServicePackages, *, route_prefix: str, max_body_bytes: int
) -> FastAPI:
    """Make the app. More routers may be included afterwards; the document is made at the end.

    Args:
        services: Who answers.
        packages: caikit's generated messages and services, which give bodies and train routes.
        route_prefix: Before the routes of tasks and trainings, like ``api/v1``.
        max_body_bytes: Larger request bodies are refused.

    Returns:
        An ASGI app.
    """
    # Its documentation pages come with their scripts: FastAPI's own load them from elsewhere.
    app = FastAPIOffline(title="Luthier", separate_input_output_schemas=False)
    app.state.max_body_bytes = max_body_bytes
    document = Document()
    tasks = APIRouter(prefix=f"/{route_prefix}")
    others = APIRouter()
    training = TrainingRoutes(services, packages.training, document)
    InferenceRoutes(services, packages.inference.descriptor, document).add_to(tasks)
    training.add_train_routes(tasks)
    training.add_management_routes(others)
    ManagementRoutes(services, document).add_to(others)
    app.include_router(tasks)
    app.include_router(others)
    app.add_middleware(BodyLimit, max_body_bytes=max_body_bytes)
    problems.install(app)
    document.install(app)
    return app
