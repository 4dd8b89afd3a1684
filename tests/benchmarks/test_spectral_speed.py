"""The benchmark of the spectral methods runs from end to end, and both sides give the same merge."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_both_sides_are_measured_and_agree(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "spectral_speed.py"), "--smoke", "--folder", str(tmp_path)]
    done = subprocess.run([*command, "--methods", "knots"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "spectral_speed.json").read_text())
    assert [row["method"] for row in report["rows"]] == ["knots"]
    for row in report["rows"]:
        assert row["difference"] < 1e-2 and row["ratio"] == row["plain_cpu"] / row["ours_cpu"]
        assert row["method"] in done.stdout
    assert not (tmp_path / "spectral").exists()
