"""The benchmark of retrieval runs from end to end, and both sides find the same."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_both_sides_are_measured_and_agree(tmp_path):
    if importlib.util.find_spec("bm25s") is None:
        pytest.skip("bm25s, the peer, is not installed")
    command = [sys.executable, str(ROOT / "benchmarks" / "retrieval_speed.py"), "--smoke", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "retrieval_speed.json").read_text())["rows"]
    assert row["of 10 hits the same"] > 9 and row["milliseconds"]["hybrid"]["p50"] > 0
