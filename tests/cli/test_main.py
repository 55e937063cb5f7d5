"""The real entry point, in a process of its own."""

import subprocess
import sys

import luthier

#: What would make ``luthier --help`` slow.
HEAVY = ("torch", "transformers", "caikit", "peft", "numpy", "fastapi", "grpc", "httpx")


def luthier_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "luthier.cli", *arguments],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", **environment},
        timeout=60,
    )


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from luthier.cli.app import app; from luthier.cli.failures import run_command;"
        "code = run_command(app, ['train', '--help']);"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr


def test_version_is_the_packages() -> None:
    done = luthier_process("--version")
    assert (done.returncode, done.stdout) == (0, f"luthier {luthier.__version__}\n")


def test_unknown_command_is_one_line_with_a_suggestion() -> None:
    done = luthier_process("generat")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "Did you mean 'generate'" in done.stderr


def test_failure_is_one_line_and_shows_no_traceback() -> None:
    done = luthier_process("models", "list", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr == (
        "luthier: no server answers at http://127.0.0.1:9; "
        "start a server with 'luthier serve', or name yours with --url\n"
    )


def test_traceback_is_shown_if_it_is_asked_for() -> None:
    done = luthier_process("models", "list", "--url", "http://127.0.0.1:9", LUTHIER_TRACEBACK="1")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr


def test_reader_that_goes_away_early_causes_no_noise() -> None:
    command = f"{sys.executable} -m luthier.cli doctor --quick --json | head -c 1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "["
    assert done.stderr == ""
