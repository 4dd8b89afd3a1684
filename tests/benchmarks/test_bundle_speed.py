"""The benchmark of bundles runs from end to end."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_bundle_is_measured_beside_the_base(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "bundle_speed.py"), "--smoke", "--folder", str(tmp_path)]
    done = subprocess.run([*command, "--ways", "factored, routed"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "bundle_speed.json").read_text())["rows"]
    assert set(rows) == {"base alone", "factored, routed"}
    assert all(row["cpu"] > 0 and row["private"] > 0 for row in rows.values())
    assert "factored, routed" in done.stdout
