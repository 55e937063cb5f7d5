"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# NOTE: the same address as ``luthier.client.DEFAULT_URL``, which costs an import of httpx.
DEFAULT_URL = "http://127.0.0.1:8080"
#: In place of a text: read standard input.
STDIN = "-"

Url = Annotated[
    str, typer.Option("--url", envvar="LUTHIER_URL", help="Address of the server (HTTP).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
BaseModelsDir = Annotated[
    Path | None, typer.Option(help="With --local: folder of base models; else BASE_MODELS_DIR.")
]
