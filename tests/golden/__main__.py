"""python -m tests.golden FOLDER: run golden cases and count them."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.golden.runner import report, run_folder


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m tests.golden FOLDER   (a folder of cases, or of folders of cases)", file=sys.stderr)
        return 2
    return report(run_folder(Path(arguments[0])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
