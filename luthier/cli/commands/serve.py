"""``luthier serve``: become the runtime, with some of its settings from the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.child_settings import RUNTIME_MODULE, add_config_files, add_settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Port of HTTP; 0 takes a free one.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Port of gRPC; 0 takes a free one.")] = None,
    models_dir: Annotated[Path | None, typer.Option(help="Folder of the served models.")] = None,
    base_models_dir: Annotated[Path | None, typer.Option(help="Folder of base models.")] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option("--config", "-c", help="Settings file over the defaults; may be repeated."),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="error, warning, info, debug …")] = None,
) -> None:
    """Serve models and trainings over gRPC and HTTP, until Ctrl-C.

    The options set the same keys as the config file and the environment; see docs/settings.md.
    """
    environment = dict(os.environ)
    add_settings(
        environment,
        {
            "RUNTIME_HOST": host,
            "RUNTIME_HTTP_PORT": http_port,
            "RUNTIME_GRPC_PORT": grpc_port,
            "RUNTIME_LOCAL_MODELS_DIR": models_dir,
            "BASE_MODELS_DIR": base_models_dir,
            "LOG_LEVEL": log_level,
        },
    )
    add_config_files(environment, config or [])
    os.execve(sys.executable, [sys.executable, "-m", RUNTIME_MODULE], environment)
