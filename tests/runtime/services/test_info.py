"""Versions and health."""

from __future__ import annotations

import luthier
from luthier.inference.base import EngineStatus
from luthier.runtime.services import info
from luthier.runtime.services.info import InfoService


def test_versions_name_what_matters():
    versions = InfoService().versions()
    assert versions.runtime_version == luthier.__version__
    assert {"caikit", "torch", "transformers"} <= versions.python_packages.keys()
    assert all(versions.python_packages.values())


def test_a_server_that_stops_is_not_healthy():
    service = InfoService()
    assert service.problem() == ""
    service.is_draining = True
    assert "stopping" in service.problem()


def test_a_dead_engine_is_told(monkeypatch):
    class DeadEngine:
        def status(self):
            return EngineStatus(is_healthy=False, detail="out of memory")

    monkeypatch.setattr(info, "engines", lambda: [DeadEngine()])
    assert InfoService().problem() == "out of memory"
