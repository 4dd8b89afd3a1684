"""The benchmark of batches of hybrid queries runs from end to end."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_way_is_measured_at_the_same_recall(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "batch_search.py"), "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "batch_search.json").read_text())
    ways = report["ways"]
    recalls = [row["recall"] for row in ways.values()]
    assert len(ways) == 9 and min(recalls) > 0.5 and max(recalls) - min(recalls) <= 0.01
    touched, before = report["touched"]
    assert touched < before / 2 and report["shifted"]["right"]
    assert "partitioned and batched" in done.stdout
