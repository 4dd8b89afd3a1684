"""The benchmark of encoding runs from end to end, and both sides find the same vectors."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_both_sides_are_measured_and_agree(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "encode_speed.py"), "--smoke", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "encode_speed.json").read_text())["rows"]
    assert row["least cosine between the two"] > 0.9999 and row["texts per CPU second"]["here"] > 0
