"""What integration tests share: one real server, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.server_process import ServerProcess
from fixtures.tuned_server import tuned_server


@pytest.fixture(scope="session")
def runtime_server(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_models_dir: Path
) -> Iterator[tuple[ServerProcess, dict[str, dict[str, Any]]]]:
    """A server with the models of ``fixtures.tuned_server``, and how each training ended."""
    with tuned_server(tmp_path_factory.mktemp("server"), tiny_base_models_dir) as found:
        yield found
