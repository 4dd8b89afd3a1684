"""The benchmark of retrieval quality runs from end to end on bundled data."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_way_is_measured(tmp_path):
    if importlib.util.find_spec("bm25s") is None:
        pytest.skip("bm25s, the peer, is not installed")
    script = str(ROOT / "benchmarks" / "retrieval_quality.py")
    command = [sys.executable, script, "words", "--smoke", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "retrieval_quality" / "words.json").read_text())
    assert {"bm25s", "text", "minilm", "merged", "bundle", "late", "hybrid", "hybrid + rerank"} <= set(found["ways"])
    assert found["queries"] == 4 and found["ways"]["hybrid"]["nDCG@10"] > 0
