import subprocess
import sys
from pathlib import Path

import pytest
import typer

from luthier.cli.failures import run_command
from luthier.errors import (
    BaseModelNotFoundError,
    CancelledError,
    InvalidInputError,
    TrainingFailedError,
)


def app_that_raises(error: BaseException) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TrainingFailedError("the loss is NaN"), 1),
        (InvalidInputError("'seed' must be int"), 2),
        (CancelledError("training 't' was cancelled"), 130),
        (KeyboardInterrupt(), 130),
        (PermissionError(13, "Permission denied", "/data"), 1),
    ],
)
def test_every_kind_of_failure_has_its_exit_code(error: BaseException, code: int) -> None:
    assert run_command(app_that_raises(error), []) == code


def test_message_of_several_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(app_that_raises(InvalidInputError("first\n  second")), [])
    assert capsys.readouterr().err == "luthier: first second\n"


def test_error_comes_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(app_that_raises(BaseModelNotFoundError("no base model 'x'")), [])
    assert capsys.readouterr().err == (
        "luthier: no base model 'x'; 'luthier doctor' shows the base models that are found here\n"
    )


def test_file_that_cannot_be_opened_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(app_that_raises(FileNotFoundError(2, "No such file or directory", "a.yml")), [])
    assert capsys.readouterr().err == "luthier: 'a.yml': No such file or directory\n"


@pytest.mark.parametrize(("variable", "has_traceback"), [("", False), ("1", True)])
def test_bug_of_ours_is_one_line_unless_the_traceback_is_wanted(
    variable: str, has_traceback: bool, tmp_path: Path
) -> None:
    program = tmp_path / "bug.py"
    program.write_text(
        "import typer\n"
        "from luthier.cli.failures import run_command\n"
        "app = typer.Typer(pretty_exceptions_enable=False)\n"
        "@app.command()\n"
        "def fail() -> None:\n"
        "    raise KeyError('oops')\n"
        "run_command(app, [])\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        env={"LUTHIER_TRACEBACK": variable},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("luthier: internal error, KeyError: 'oops'")
    assert ("Traceback" in done.stderr) is has_traceback
