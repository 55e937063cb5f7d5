"""The command ``luthier``: one file per command, and one line for whatever goes wrong."""

from __future__ import annotations

import sys

from luthier.cli.app import app
from luthier.cli.failures import run_command


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_command(app, sys.argv[1:]))


if __name__ == "__main__":
    main()
