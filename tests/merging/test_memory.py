"""Every method merges a tensor far larger than the memory it may take; matrix methods hold a few copies of it."""

import json
import subprocess
import sys

import numpy as np
import pytest

from consilience import methods
from consilience.checkpoints.writer import CheckpointWriter, OutputTensor, plan_shards
from tests.merging.laws import sample_aux, write_aux

MATRIX = [entry["name"] for entry in methods() if entry["matrix"]]
STREAMING = [entry["name"] for entry in methods() if not entry["matrix"]]
SHAPE = (4096, 8192)  # 67 MB in bfloat16
SQUARE = (2048, 2048)  # 17 MB in float32, the precision of matrix methods
PIECE = 1 << 20
CEILING = 24e6  # private bytes beyond what the same process needs for a merge of a few kilobytes
MATRIX_CEILING = 256e6 + 4 * 4 * SQUARE[0] * SQUARE[1]

MERGE_ALL = """
import ctypes, gc, json, re, sys, threading
from pathlib import Path
from consilience.merging.method import find_method
from consilience.merging.recipe import Recipe
from tests.merging.laws import sample_parameters

root, methods = Path(sys.argv[1]), sys.argv[2:]
aux = json.loads((root / "aux.json").read_text())

def private():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def merge(method, values, folder):
    found = find_method(method)
    experts = ["a", "b"][: found.max_experts or 2]
    values = {**sample_parameters(method, experts, 1), **values}
    keys = {} if found.base == "none" else {"base": str(root / folder / "base")}
    if found.aux:
        keys["aux"] = aux[folder][method]
    recipe = Recipe(method=method, experts={e: str(root / folder / e) for e in experts}, parameters=values, **keys)
    recipe.run(root / "out", workers=1, progress=False)
    assert (root / "out" / "model.safetensors").stat().st_size == (root / folder / "a/model.safetensors").stat().st_size

cases = [(m, {}) for m in methods] + ([("ties", {"scope": "global"})] if "ties" in methods else [])
for method, values in cases:
    merge(method, values, "small")
for method, values in cases:
    merge(method, values, "small")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier merges left to the allocator would hide what this one takes
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


def peaks(folder, shape, names):
    """Return (method, parameters, bytes beyond a small merge) of every method."""
    aux = {}
    for size, of in (("small", (64, 128)), ("large", shape)):
        write_models(folder / size, of)
        models = {name: {"w": np.zeros(of, np.float32)} for name in ("a", "b")}
        drawn = {name: sample_aux(name, models, 0) for name in names}
        aux[size] = {m: write_aux(folder / size / "aux" / m, made, m) for m, made in drawn.items() if made}
    (folder / "aux.json").write_text(json.dumps(aux))
    command = [sys.executable, "-c", MERGE_ALL, str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    taken = [json.loads(line) for line in done.stdout.splitlines()]
    assert {method for method, _, _ in taken} == set(names)
    return taken


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="private memory is read from /proc")


@linux
def test_a_tensor_larger_than_the_ceiling_with_every_streaming_method(tmp_path):
    assert SHAPE[0] * SHAPE[1] * 2 / 2.5 > CEILING
    taken = peaks(tmp_path, SHAPE, STREAMING)
    above = [f"{method} {values}: {size / 1e6:.1f} MB" for method, values, size in taken if size > CEILING]
    assert not above, above


@linux
@pytest.mark.slow
def test_matrix_methods_hold_four_copies_of_a_tensor_and_a_quarter_of_a_gigabyte(tmp_path, capsys):
    taken = peaks(tmp_path, SQUARE, MATRIX)
    with capsys.disabled():
        print("\nprivate memory of matrix methods, MB:", {method: round(size / 1e6) for method, _, size in taken})
    above = [f"{method} {values}: {size / 1e6:.1f} MB" for method, values, size in taken if size > MATRIX_CEILING]
    assert not above, above
