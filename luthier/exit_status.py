"""What the exit status of a process says about how it ended."""

from __future__ import annotations

import signal


def cause_of_death(status: int) -> str:
    """How a process ended that was not asked to.

    Args:
        status: Of ``subprocess``; negative for a signal.

    Returns:
        A clause for a message, after the name of the process.
    """
    if status >= 0:
        return f"ended with exit status {status}"
    number = -status
    name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
    text = f"was killed by signal {number} ({name})"
    if number == signal.SIGKILL:
        text += "; if nobody did that by hand, the machine may have run out of memory"
    return text
