"""Every method merges a tensor far larger than the memory it may take."""

import json
import subprocess
import sys

import numpy as np
import pytest

from consilience.checkpoints.writer import CheckpointWriter, OutputTensor, plan_shards
from consilience.merging.method import method_names

SHAPE = (4096, 8192)  # 67 MB in bfloat16
PIECE = 1 << 20
CEILING = 24e6  # private bytes beyond what the same process needs for a merge of a few kilobytes

MERGE_ALL = """
import json, re, sys, threading
from pathlib import Path
from consilience.merging.method import find_method
from consilience.merging.recipe import Recipe
from tests.merging.laws import sample_parameters

root, methods = Path(sys.argv[1]), sys.argv[2:]

def private():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def merge(method, values, folder):
    found = find_method(method)
    experts = ["a", "b"][: found.max_experts or 2]
    values = {**sample_parameters(method, experts, 1), **values}
    base = {} if found.base == "none" else {"base": str(root / folder / "base")}
    recipe = Recipe(method=method, experts={e: str(root / folder / e) for e in experts}, parameters=values, **base)
    recipe.run(root / "out", workers=1, progress=False)
    assert (root / "out" / "model.safetensors").stat().st_size == (root / folder / "a/model.safetensors").stat().st_size

cases = [(m, {}) for m in methods] + [("ties", {"scope": "global"})]
for method, values in cases:
    merge(method, values, "small")
for method, values in cases:
    merge(method, values, "small")
    before, peak, stop = private(), [0], threading.Event()
    def watch():
        while not stop.wait(0.003):
            peak[0] = max(peak[0], private())
    watcher = threading.Thread(target=watch)
    watcher.start()
    merge(method, values, "large")
    stop.set()
    watcher.join()
    print(json.dumps([method, values, peak[0] - before]), flush=True)
"""


def write_models(folder, shape):
    """A base and two experts near it, one bfloat16 tensor each, written piece by piece."""
    random = np.random.default_rng(0)
    values = random.normal(size=PIECE).astype(np.float32)
    for name in ("base", "a", "b"):
        model = folder / name
        writer = CheckpointWriter(model, plan_shards([OutputTensor("w", "BF16", shape)]))
        writer.create()
        total = shape[0] * shape[1]
        for start in range(0, total, PIECE):
            noise = np.roll(values, start // PIECE + len(name)) * np.float32(0 if name == "base" else 0.01)
            raw = ((values + noise).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
            writer.write("w", 2 * start, raw[: min(PIECE, total - start)])
        writer.finish()
        (model / "config.json").write_text("{}")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="private memory is read from /proc")
def test_a_tensor_larger_than_the_ceiling_with_every_method(tmp_path):
    write_models(tmp_path / "small", (64, 128))
    write_models(tmp_path / "large", SHAPE)
    command = [sys.executable, "-c", MERGE_ALL, str(tmp_path), *method_names()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    taken = [json.loads(line) for line in done.stdout.splitlines()]
    assert {method for method, _, _ in taken} == set(method_names())
    assert SHAPE[0] * SHAPE[1] * 2 / 2.5 > CEILING
    above = [f"{method} {values}: {size / 1e6:.1f} MB" for method, values, size in taken if size > CEILING]
    assert not above, above
