"""Real `consilience merge` processes killed, starved of space and tampered with: every resume gives the same bytes."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from consilience.checkpoints.header import read_header
from tests.merging.checkpoints import make_family, weight_bytes

pytestmark = pytest.mark.slow

MOMENTS = 36
ANYWHERE = 4  # of them at any time of the process
PREPARING = 4  # at any time since the journal is there; all others since the first tensor is finished
SEED = 20240607


def command(recipe, out):
    return [sys.executable, "-m", "consilience", "merge", str(recipe), "--out", str(out), "--threads", "1"]


def start(recipe, out):
    return subprocess.Popen(command(recipe, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def merge(recipe, out):
    """Run to the end; the output of the process must be there afterwards."""
    done = subprocess.run(command(recipe, out), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def partial(out):
    return out.with_name(out.name + ".partial")


def journal(out):
    return partial(out) / "journal.jsonl"


def wait_until(condition, process, seconds=120):
    """Wait for the condition, or the end of the process."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the merge does not get there"
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    return True


def lines(out):
    return journal(out).read_bytes().count(b"\n") if journal(out).exists() else 0


def state(out):
    if out.exists():
        return "after"
    return "during" if journal(out).exists() else "before"


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()


def write_recipe(folder, models):
    experts = "\n".join(f"  {name}: {models[name]}" for name in "abc")
    recipe = folder / "recipe.yml"
    recipe.write_text(f"version: 1\nmethod: ties\nbase: {models['base']}\nexperts:\n{experts}\n")
    return recipe


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A recipe over four models of 77 MB, the bytes of an undisturbed merge, and how long its parts take."""
    folder = tmp_path_factory.mktemp("crash")
    models = make_family(folder, layers=24, width=704, vocabulary=2000, dtype="bfloat16")
    recipe = write_recipe(folder, models)
    out = folder / "undisturbed"
    merge(recipe, out)  # compiles the kernels where this machine has not yet
    expected = weight_bytes(out)
    times = []
    for number in range(3):
        again = folder / f"timed{number}"
        started = time.monotonic()
        process = start(recipe, again)
        assert wait_until(journal(again).exists, process)
        opened = time.monotonic()
        assert wait_until(lambda out=again: lines(out) > 0, process)
        first = time.monotonic()
        assert wait_until(again.exists, process) or again.exists()
        times.append((opened - started, first - opened, time.monotonic() - first))
        process.communicate()
        assert weight_bytes(again) == expected
    return recipe, expected, tuple(min(found) for found in zip(*times, strict=True))


def test_a_kill_at_any_moment_loses_nothing(setting, tmp_path, capsys):
    recipe, expected, (starting, preparing, writing) = setting
    moments = random.Random(SEED)
    counts = dict.fromkeys(("before", "during", "after"), 0)
    kept = []
    for number in range(MOMENTS):
        out = tmp_path / f"out{number}"
        process = start(recipe, out)
        if number < ANYWHERE:
            time.sleep(moments.random() * (starting + preparing + writing))
        elif number < ANYWHERE + PREPARING:
            wait_until(journal(out).exists, process)
            time.sleep(moments.random() * (preparing + writing))
        else:
            wait_until(lambda out=out: lines(out) > 0, process)
            time.sleep(moments.random() * 0.95 * writing)
        kill(process)
        found = state(out)
        counts[found] += 1
        kept.append(lines(out))
        if out.exists():  # only ever whole
            assert weight_bytes(out) == expected and (out / "consilience.json").is_file()
        text = merge(recipe, out)
        assert weight_bytes(out) == expected, f"kill {number}, {found} writing"
        assert not partial(out).exists()
        assert ("resumed" in text) == (found == "during"), text
        for file in out.iterdir():
            file.unlink()
    with capsys.disabled():
        print(
            f"\n{MOMENTS} kills: {counts['before']} before, {counts['during']} during, {counts['after']} after writing;"
            f" tensors found finished: {sorted(kept)}"
        )
    assert counts["during"] >= 0.8 * MOMENTS
    assert len(set(kept)) > MOMENTS // 4, "the kills came at different points of the work"


def interrupted(recipe, out, finished=5):
    """Kill a merge once the journal has some lines."""
    process = start(recipe, out)
    assert wait_until(lambda: lines(out) >= finished, process)
    kill(process)
    assert state(out) == "during"


def test_two_kills_in_a_row(setting, tmp_path):
    recipe, expected, _ = setting
    out = tmp_path / "out"
    for finished in (5, 20):
        interrupted(recipe, out, finished)
    merge(recipe, out)
    assert weight_bytes(out) == expected


def test_a_changed_byte_in_finished_work_is_healed(setting, tmp_path):
    recipe, expected, _ = setting
    out = tmp_path / "out"
    interrupted(recipe, out)
    entries = [json.loads(line) for line in journal(out).read_bytes().split(b"\n")[:-1]]
    (shard,) = (partial(out) / "work").glob("*.safetensors")
    tensor = read_header(shard).tensors[entries[2]["key"]]
    with shard.open("r+b") as file:
        file.seek(tensor.offset + 11)
        byte = file.read(1)
        file.seek(tensor.offset + 11)
        file.write(bytes([byte[0] ^ 0x10]))
    assert "resumed" in merge(recipe, out)
    assert weight_bytes(out) == expected


def test_a_lost_shard_and_a_torn_journal_line_are_redone(setting, tmp_path):
    recipe, expected, _ = setting
    out = tmp_path / "out"
    interrupted(recipe, out)
    with journal(out).open("ab") as file:
        file.write(b'{"key":"model.layers.3.mlp.do')
    for shard in (partial(out) / "work").glob("*.safetensors"):
        shard.unlink()
    merge(recipe, out)
    assert weight_bytes(out) == expected


def test_an_earlier_result_survives_a_killed_merge_of_another_recipe(setting, tmp_path):
    recipe, expected, _ = setting
    out = tmp_path / "out"
    merge(recipe, out)
    other = tmp_path / "other.yml"
    other.write_text(recipe.read_text() + "parameters: {density: 0.5}\n")
    process = start(other, out)
    assert wait_until(lambda: lines(out) >= 3, process)
    kill(process)
    assert weight_bytes(out) == expected
    merge(other, out)
    assert weight_bytes(out) != expected


def refused(process):
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1, text
    assert "Traceback" not in text
    return text


def test_no_room_from_the_start_is_named_and_the_merge_works_afterwards(setting, tmp_path):
    """A limit on the size of files refuses the preallocation as a full disk does."""
    recipe, expected, _ = setting
    out = tmp_path / "out"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))

    process = subprocess.Popen(
        command(recipe, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=limit
    )
    text = refused(process)
    assert str(partial(out)) in text and "run the same command again" in text
    assert not out.exists()
    merge(recipe, out)
    assert weight_bytes(out) == expected


def test_space_that_runs_out_in_the_middle_loses_nothing(setting, tmp_path):
    recipe, expected, _ = setting
    out = tmp_path / "out"
    process = start(recipe, out)
    assert wait_until(lambda: lines(out) >= 4, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
    text = refused(process)
    assert str(partial(out)) in text and "finished work is kept" in text and "run the same command again" in text
    assert state(out) == "during" and lines(out) >= 4
    assert "resumed" in merge(recipe, out)
    assert weight_bytes(out) == expected


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small disk needs the right to mount: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root; the file size limit tests always run")
def test_a_full_disk(setting, tmp_path):
    recipe, expected, _ = setting
    size = sum(len(data) for data in expected.values())
    with small_disk(tmp_path / "small", size // 2) as disk:
        done = subprocess.run(command(recipe, disk / "out"), capture_output=True, text=True, check=False)
        assert done.returncode in (1, 2) and "free" in done.stderr and "Traceback" not in done.stderr
        assert not (disk / "out").exists()
    with small_disk(tmp_path / "enough", size + (8 << 20)) as disk:
        out = disk / "out"
        process = start(recipe, out)
        assert wait_until(lambda: lines(out) >= 4, process)
        fill(disk / "filler")
        text = refused(process)
        assert "the disk is full" in text and "run the same command again" in text
        assert state(out) == "during"
        (disk / "filler").unlink()
        assert "resumed" in merge(recipe, out)
        assert weight_bytes(out) == expected


def fill(path: Path):
    """Take all that is left of a disk, in smaller and smaller pieces."""
    with path.open("wb", buffering=0) as file:
        for piece in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * piece)
