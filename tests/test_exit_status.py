import signal
import subprocess
import sys

import pytest

from luthier.exit_status import cause_of_death


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("raise SystemExit(3)", "ended with exit status 3"),
        ("import os; os.kill(os.getpid(), 11)", "was killed by signal 11 (SIGSEGV)"),
        ("import os; os.kill(os.getpid(), 15)", "was killed by signal 15 (SIGTERM)"),
        (
            "import os; os.kill(os.getpid(), 9)",
            "was killed by signal 9 (SIGKILL); if nobody did that by hand, the machine may have "
            "run out of memory",
        ),
    ],
)
def test_a_status_is_told_in_words(program: str, expected: str) -> None:
    assert cause_of_death(subprocess.run([sys.executable, "-c", program]).returncode) == expected


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    assert cause_of_death(-(int(signal.SIGRTMIN) + 1)).endswith("(unknown)")
