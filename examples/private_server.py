"""A server of one's own for an example: a child process on free ports, with a tiny base model.

Nothing of Luthier is imported here, so that an example of a client needs none of it either.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
TINY = "tiny"


@contextmanager
def private_server() -> Iterator[dict[str, str]]:
    """Run a server whose base model ``tiny`` has random weights; gone when the block ends.

    Yields:
        Its ready line: ``grpc`` is ``host:port``, ``http`` a URL; and its folders, ``models_dir``
        and ``base_models_dir``.

    Raises:
        RuntimeError: If it does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        bases = Path(folder) / "bases"
        maker = [sys.executable, str(HERE / "tiny_model.py"), str(bases / TINY)]
        subprocess.run(maker, check=True, stdout=subprocess.DEVNULL)
        settings = {
            "BASE_MODELS_DIR": str(bases),
            "RUNTIME_LOCAL_MODELS_DIR": str(Path(folder) / "models"),
            "RUNTIME_HTTP_PORT": "0",
            "RUNTIME_GRPC_PORT": "0",
            "LOG_LEVEL": "warning",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "luthier.runtime"],
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                line = process.stdout.readline() if process.stdout else ""
                if not line:
                    raise RuntimeError("the server did not start")
                yield {
                    **json.loads(line),
                    "models_dir": settings["RUNTIME_LOCAL_MODELS_DIR"],
                    "base_models_dir": settings["BASE_MODELS_DIR"],
                }
            finally:
                process.terminate()
