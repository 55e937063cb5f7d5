"""What a command's failure looks like: one line that says what to do, and an exit code.

0    done
1    it went wrong: the server, the training, the network
2    it was asked for wrongly: an option, a file, a value
130  interrupted
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

import typer
from typer.main import get_command

from luthier.errors import (
    BaseModelNotFoundError,
    CancelledError,
    CapacityError,
    EngineDownError,
    InvalidInputError,
    LuthierError,
    ModelNotFoundError,
    ServerUnreachableError,
)

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130

#: Set to 1, it shows Python's traceback after the line.
TRACEBACK_VARIABLE = "LUTHIER_TRACEBACK"

#: What to do about an error; the first class that fits counts.
_ADVICE: tuple[tuple[type[LuthierError], str], ...] = (
    (ServerUnreachableError, "start a server with 'luthier serve', or name yours with --url"),
    (BaseModelNotFoundError, "'luthier doctor' shows the base models that are found here"),
    (ModelNotFoundError, "'luthier models list' shows what is served"),
    (CapacityError, "try again later"),
    (EngineDownError, "try again later"),
)


def run_command(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line.

    Args:
        app: The tree of commands.
        arguments: The command line without the program's name.

    Returns:
        The exit code.
    """
    sys.excepthook = _show_bug
    try:
        result = get_command(app).main(list(arguments), "luthier", standalone_mode=False)
    except typer.TyperException as error:
        return _show_misuse(error)
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        return INTERRUPTED
    except CancelledError as error:
        _show(str(error))
        return INTERRUPTED
    except LuthierError as error:
        _show(_with_advice(error))
        return MISUSED if isinstance(error, InvalidInputError) else FAILED
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not try to flush it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        where = f"'{error.filename}': " if error.filename else ""
        _show(f"{where}{error.strerror or error}")
        return FAILED
    return result if isinstance(result, int) else DONE


def _show_misuse(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "luthier"
    message = error.format_message().rstrip(".")
    # Called without arguments, a group has already shown its help, and has no message.
    if message:
        _show(f"{message}; see '{where} --help'")
    return MISUSED


def _with_advice(error: LuthierError) -> str:
    advice = next((advice for kind, advice in _ADVICE if isinstance(error, kind)), "")
    return f"{error}; {advice}" if advice else str(error)


def _show(message: str) -> None:
    """One line on stderr, and the traceback if it was asked for."""
    _say(f"luthier: {' '.join(message.split())}")
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        traceback.print_exc()


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Replaces ``sys.excepthook``: what gets here is a bug of ours."""
    _say(
        f"luthier: internal error, {kind.__name__}: {error}; "
        f"set {TRACEBACK_VARIABLE}=1 to see where, and please report it"
    )
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        sys.__excepthook__(kind, error, trace)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
