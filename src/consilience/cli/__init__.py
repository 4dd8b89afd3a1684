"""The command line: one thin file per verb, no logic."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit: 0 done, 1 the work failed, 2 the request was wrong."""
    from consilience.cli.app import run

    sys.exit(run(sys.argv[1:]))
