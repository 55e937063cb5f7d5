"""Fixtures for every test, and two promises: one torch thread, no network but loopback."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from fixtures.tiny_models import make_tiny_causal, make_tiny_seq2seq
from hypothesis import settings
from transformers.utils import logging as transformers_logging

from luthier.resources.base_model import BaseModel
from luthier.resources.model_loading import load_base_model
from luthier.resources.names import BaseModelSources, resolve_base_model

transformers_logging.disable_progress_bar()
torch.set_num_threads(1)
# A busy machine is no bug: how long one example takes says nothing.
settings.register_profile("luthier", deadline=None)
settings.load_profile("luthier")

_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex
_getaddrinfo = socket.getaddrinfo


def _is_local(host: object) -> bool:
    if host in (None, "", "localhost", b"localhost", "testserver", socket.gethostname()):
        return True
    text = host.decode() if isinstance(host, bytes) else str(host)
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse_remote(host: object) -> None:
    if not _is_local(host):
        pytest.fail(f"a test reached for the network: {host!r}", pytrace=True)


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded_connect(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_remote(address[0])
        return connect(self, address)

    return guarded_connect


def _guarded_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
    _refuse_remote(host)
    return _getaddrinfo(host, *args, **kwargs)


def pytest_configure() -> None:
    """Close every way out of this process but loopback."""
    socket.socket.connect = _guarded(_connect)  # type: ignore[method-assign]
    socket.socket.connect_ex = _guarded(_connect_ex)  # type: ignore[method-assign]
    socket.getaddrinfo = _guarded_getaddrinfo


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names with addresses: other in each process, they stop a run in several."""
    named = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if named:
        raise pytest.UsageError(f"give these tests ids without addresses: {named[:5]}")


@pytest.fixture(scope="session")
def tiny_base_models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``base_models_dir`` that holds ``tiny-causal`` and ``tiny-seq2seq``."""
    folder = tmp_path_factory.mktemp("base_models")
    make_tiny_causal(folder / "tiny-causal")
    make_tiny_seq2seq(folder / "tiny-seq2seq")
    return folder


@pytest.fixture(scope="session")
def tiny_causal_dir(tiny_base_models_dir: Path) -> Path:
    """A Llama-type model of 2 layers, hidden 32, vocabulary 400. Read only, please."""
    return tiny_base_models_dir / "tiny-causal"


@pytest.fixture(scope="session")
def tiny_seq2seq_dir(tiny_base_models_dir: Path) -> Path:
    """A T5-type model of 2 + 2 layers, hidden 32, vocabulary 400. Read only, please."""
    return tiny_base_models_dir / "tiny-seq2seq"


def _load(name: str, base_models_dir: Path) -> BaseModel:
    sources = BaseModelSources(base_models_dir=base_models_dir)
    location = resolve_base_model(name, sources, from_request=True)
    return load_base_model(location, sources=sources)


@pytest.fixture(scope="session")
def tiny_causal_base(tiny_base_models_dir: Path) -> BaseModel:
    """``tiny-causal``, loaded. Frozen and shared by the tests of a session."""
    return _load("tiny-causal", tiny_base_models_dir)


@pytest.fixture(scope="session")
def tiny_seq2seq_base(tiny_base_models_dir: Path) -> BaseModel:
    """``tiny-seq2seq``, loaded. Frozen and shared by the tests of a session."""
    return _load("tiny-seq2seq", tiny_base_models_dir)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The shared data: caikit-nlp's saved models, reference protos, data sets."""
    repository = Path(__file__).resolve().parent.parent
    folder = Path(os.environ.get("LUTHIER_SHARED", repository.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set LUTHIER_SHARED")
    return folder
