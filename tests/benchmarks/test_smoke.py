"""The benchmark runs from end to end on checkpoints of a few megabytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_benchmark_measures_and_reports(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "merge_speed.py"), "--size", "small", "--runs", "1"]
    options = ["--no-mergekit", "--methods", "dare_ties", "--folder", str(tmp_path), "--no-keep"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "merge_speed.json").read_text())
    assert [(row["recipe"], row["tool"]) for row in report["rows"]] == [
        ("dare_ties", "floor"),
        ("dare_ties", "consilience"),
    ]
    floor, ours = report["rows"]
    assert 0 < floor["cpu"] < ours["cpu"]
    assert floor["private"] < ours["private"] < 256e6
    assert {bar["bar"] for bar in report["bars"]} >= {"dare_ties: private memory, MB", "--help: CPU seconds"}
    assert "dare_ties" in done.stdout and "consilience" in done.stdout
    assert not (tmp_path / "small").exists() and not (tmp_path / "out-consilience").exists()


def test_synthetic_checkpoints_are_whole_and_near_their_base(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from _checkpoints import EXPERTS, SIZES, make_checkpoints, read_tensor\n"
        "from consilience.checkpoints import open_checkpoint\n"
        "assert SIZES['base'].parameters == 494_859_520\n"
        "models = make_checkpoints(Path(sys.argv[2]), SIZES['tiny'])\n"
        "for name, folder in models.items():\n"
        "    assert open_checkpoint(folder).parameters == SIZES['tiny'].parameters\n"
        "tensor = 'model.layers.1.mlp.up_proj.weight'\n"
        "base = read_tensor(models['base'], tensor)\n"
        "assert abs(base.std() / 0.02 - 1) < 0.05\n"
        "for name, deviation in EXPERTS.items():\n"
        "    assert abs((read_tensor(models[name], tensor) - base).std() / deviation - 1) < 0.05\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_comparison_of_methods_runs_from_end_to_end(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "all_methods.py"), "images", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--methods", "linear", "task_arithmetic", "fisher", "slerp"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["method"]: row for row in json.loads((tmp_path / "images.json").read_text())["rows"]}
    assert rows["linear"]["difference"] == 0 and rows["task_arithmetic"]["trials"] == 3
    assert rows["fisher"]["score"] > rows["base"]["score"] - 0.05
    assert "at most 1 expert" in rows["slerp"]["reason"]


@pytest.mark.slow
def test_everything_on_one_set_of_experts_runs_from_end_to_end(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks/composition.py"), "demo", "--quick", "--out", str(tmp_path)]
    for _ in range(2):  # the second time everything is read again
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "demo.json").read_text())
    kinds = {row["kind"] for row in record["rows"]}
    assert kinds == {"base", "expert", "merge", "learner", "bundle", "oracle"} and record["quick"]
    assert {row["name"] for row in record["rows"]} >= {"task_arithmetic", "best static", "atlas", "evolution"}
    assert len(record["routers"]) == 3
