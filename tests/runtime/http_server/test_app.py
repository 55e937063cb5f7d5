"""The whole app, on its own settings."""

from __future__ import annotations

import re

import httpx
import pytest

from luthier.modules.service_package import service_packages
from luthier.runtime.http_server.app import create_app


class NoServices:
    """Stands where services are wanted and never asked."""

    def __getattr__(self, name: str) -> NoServices:
        return self


@pytest.fixture
async def client():
    app = create_app(
        NoServices(), service_packages(), route_prefix="my/prefix", max_body_bytes=1000
    )
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield client


async def test_the_prefix_stands_before_tasks_and_trainings_alone(client):
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert "/my/prefix/task/text-generation" in paths
    assert "/my/prefix/TextGenerationTaskPeftPromptTuningTrain" in paths
    assert "/management/trainings" in paths and "/health" in paths


async def test_a_body_beyond_the_limit_is_refused_on_every_route(client):
    for path in ("/my/prefix/task/text-generation", "/management/models"):
        response = await client.post(path, content=b"x" * 1001)
        assert (response.status_code, response.json()["error"]) == (413, "body_too_large")


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_pages_for_people_load_nothing_from_elsewhere(client, path):
    page = (await client.get(path)).text
    sources = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page)
    assert any(source.endswith(".js") for source in sources)
    for source in sources:
        assert source.startswith("/")
        assert (await client.get(source)).status_code == 200


async def test_an_unexpected_error_shows_nothing_of_itself(client):
    response = await client.get("/info/version")
    assert response.status_code == 500
    assert response.json()["error"] == "internal"
