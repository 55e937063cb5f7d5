"""Run an experiment in a child process, which loads torch; this one shows what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from luthier.cli.child_settings import add_settings
from luthier.cli.local_runtime import stop_with_parent, wait_or_kill
from luthier.errors import LuthierError, error_class
from luthier.exit_status import cause_of_death

WORKER_MODULE = "luthier.modules.experiments.worker"


def run_in_child(
    command: str,
    options: Mapping[str, Any],
    *,
    base_models_dir: Path | None = None,
    on_event: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    """Let a child process do a command, and wait for it.

    Args:
        command: ``train`` or ``dry_run``.
        options: In groups.
        base_models_dir: Folder of base models; None keeps the environment's.
        on_event: Gets each event but the last.

    Returns:
        The last event.

    Raises:
        LuthierError: Of the class that the child raised, with its message.
        KeyboardInterrupt: After the child has ended.
    """
    environment = dict(os.environ)
    add_settings(
        environment,
        {
            "BASE_MODELS_DIR": base_models_dir,
            "LOG_LEVEL": os.environ.get("LOG_LEVEL", "warning"),
        },
    )
    process = subprocess.Popen(
        [sys.executable, "-m", WORKER_MODULE],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        # Ctrl-C is for us: the child is ended below.
        start_new_session=True,
        preexec_fn=stop_with_parent,
    )
    try:
        return _listen(process, {"command": command, "options": options}, on_event)
    except BaseException as error:
        # After its last word, a child ends by itself.
        if not isinstance(error, LuthierError) and process.poll() is None:
            process.terminate()
        raise
    finally:
        wait_or_kill(process)


def _listen(
    process: subprocess.Popen[str],
    request: Mapping[str, Any],
    on_event: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin as stdin:
        json.dump(request, stdin)
    for line in process.stdout:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "done":
            return event
        if event["event"] == "error":
            raise error_class(event["code"])(event["message"])
        on_event(event)
    raise LuthierError(f"the training's process {cause_of_death(process.wait())}")
