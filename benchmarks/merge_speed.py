"""Speed and memory of merging: this project, mergekit and the floor, in one run on the same files.

`python benchmarks/merge_speed.py` (or `make bench`) writes synthetic checkpoints of 0.5 billion parameters below
build/bench, makes mergekit's environment there, measures whole processes, and prints a table; the figures go to
merge_speed.json. CPU seconds (user and system) are what to compare: wall times depend on what else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _agreement import agreement
from _checkpoints import SIZES, Size, make_checkpoints
from _measure import Figures, middle, run
from _peers import PEERS, mergekit, models_of, versions, write_recipes

_HERE = Path(__file__).parent
_ONCE_ABOVE = 60.0  # CPU seconds; a peer slower than this runs once
_LIMITS = {"linear": 3.0, "task_arithmetic": 3.0}  # of the floor's CPU
_PRIVATE_LIMIT = 256e6
_JUDGED = ("base", "large")  # sizes at which start-up is a small part; the bars on speed are for them
_HELP_LIMIT, _IMPORT_LIMIT = 0.3, 0.2

_COMPILED = ("linear", "task_arithmetic", "ties", "dare_ties")  # whose first merge on a machine is measured too

Row = dict[str, Any]


def main() -> None:
    """Measure, print, save."""
    options = _options()
    if options.clean:
        shutil.rmtree(options.folder, ignore_errors=True)
        return
    folder, size = options.folder.resolve(), SIZES[options.size]
    folder.mkdir(parents=True, exist_ok=True)
    models = make_checkpoints(folder / options.size, size)
    recipes = write_recipes(folder / "recipes" / options.size, models)
    chosen = [name for name in recipes if options.methods is None or name in options.methods]
    peer = mergekit(folder / "mergekit-venv") if options.mergekit else None
    warm = write_recipes(folder / "recipes" / "tiny", make_checkpoints(folder / "tiny", SIZES["tiny"]))
    compiling = {name: _compile_seconds(folder, warm[name]) for name in chosen if name in _COMPILED}
    for name in chosen:
        _merge(warm[name], folder / "out-tiny", folder)
    shutil.rmtree(folder / "out-tiny", ignore_errors=True)
    rows: list[Row] = []
    agreements: dict[str, Any] = {}
    for name in chosen:
        rows += _measure(name, recipes[name], models, size, folder, options.runs, peer, agreements)
    start = _start_up(folder, options.runs)
    report = {
        "size": options.size,
        "parameters": size.parameters,
        "machine": {"processor": _processor(), "processors": os.cpu_count(), "load": os.getloadavg()},
        "python": platform.python_version(),
        "mergekit": versions(folder / "mergekit-venv") if peer else None,
        "rows": rows,
        "agreement": agreements,
        "compile_cpu": compiling,
        "start_up": start,
        "bars": _bars(rows, start, options.size),
    }
    (folder / options.json).write_text(json.dumps(report, indent=1) + "\n")
    _print(report)
    print(f"saved {folder / options.json}")
    if not options.keep:
        shutil.rmtree(folder / options.size)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--size", choices=SIZES, default="base", help="base: 0.5 B parameters, medium: 0.1 B, large: 1.5 B"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument("--runs", type=int, default=3, help="runs of which the median counts")
    parser.add_argument("--methods", nargs="+", help="measure only these")
    parser.add_argument("--mergekit", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--keep", action=argparse.BooleanOptionalAction, default=True, help="keep the checkpoints")
    parser.add_argument("--clean", action="store_true", help="delete everything below the folder and stop")
    parser.add_argument("--json", default="merge_speed.json", help="name of the file of figures")
    return parser.parse_args()


def _merge(recipe: Path, out: Path, folder: Path, **environment: str) -> Figures:
    for old in (out, out.with_name(f"{out.name}.partial")):
        shutil.rmtree(old, ignore_errors=True)
    command = [sys.executable, "-m", "consilience", "merge", str(recipe), "--out", str(out)]
    return run(command, folder / "logs" / "consilience.log", environment=environment)


def _measure(
    name: str,
    recipe: Path,
    models: dict[str, Path],
    size: Size,
    folder: Path,
    runs: int,
    peer: Path | None,
    agreements: dict[str, Any],
) -> list[Row]:
    """Measure one recipe: floor and ours in turns, then the peer."""
    ours, theirs = folder / "out-consilience", folder / "out-mergekit"
    inputs = [str(models[model]) for model in models_of(name)]
    floor_command = [sys.executable, str(_HERE / "_floor.py"), str(folder / "floor.bin"), str(2 * size.parameters)]
    floors, merges, peers = [], [], []
    for _ in range(runs):
        floors.append(run([*floor_command, *inputs], folder / "logs" / "floor.log"))
        merges.append(_merge(recipe, ours, folder))
        _show(name, "consilience", merges[-1])
    if peer is not None and "," not in name:
        while len(peers) < runs and (not peers or peers[0].cpu <= _ONCE_ABOVE):
            shutil.rmtree(theirs, ignore_errors=True)
            command = [str(peer), str(recipe), str(theirs), "--no-copy-tokenizer", "--out-shard-size", "150M"]
            peers.append(run(command, folder / "logs" / "mergekit.log"))
            _show(name, "mergekit", peers[-1])
        agreements[name] = agreement(name, size, models, ours, theirs)
    for out in (ours, theirs):
        shutil.rmtree(out, ignore_errors=True)
    floor = middle(floors)
    rows = [_row(name, "floor", floor, floors, floor), _row(name, "consilience", middle(merges), merges, floor)]
    return [*rows, _row(name, "mergekit", middle(peers), peers, floor)] if peers else rows


def _row(recipe: str, tool: str, figures: Figures, runs: list[Figures], floor: Figures) -> Row:
    return {
        "recipe": recipe,
        "tool": tool,
        "runs": len(runs),
        "cpu": figures.cpu,
        "wall": figures.wall,
        "private": figures.private,
        "over_floor": figures.cpu / floor.cpu,
        "all_cpu": [round(r.cpu, 3) for r in runs],
    }


def _compile_seconds(folder: Path, recipe: Path) -> float:
    """Return the CPU seconds that compiling adds to the first merge."""
    out = folder / "out-tiny"
    with tempfile.TemporaryDirectory() as empty:
        cold = _merge(recipe, out, folder, NUMBA_CACHE_DIR=empty)
    _merge(recipe, out, folder)
    warm = _merge(recipe, out, folder)
    shutil.rmtree(out)
    return cold.cpu - warm.cpu


def _start_up(folder: Path, runs: int) -> dict[str, float]:
    commands = {"--help": ["-m", "consilience", "--help"], "import": ["-c", "import consilience"]}
    log = folder / "logs" / "start.log"
    return {
        name: middle([run([sys.executable, *arguments], log) for _ in range(runs)]).cpu
        for name, arguments in commands.items()
    }


def _bars(rows: list[Row], start: dict[str, float], size: str) -> list[dict[str, Any]]:
    """Compare with the bars of the project; those on speed are for the size they were set for."""
    by = {(row["recipe"], row["tool"]): row for row in rows}
    bars = []
    for (name, tool), row in by.items():
        if tool != "consilience":
            continue
        if size in _JUDGED and name in _LIMITS:
            bars.append((f"{name}: CPU over the floor's", row["over_floor"], "<=", _LIMITS[name]))
        if size in _JUDGED and (name, "mergekit") in by:
            share = by[name, "mergekit"]["cpu"] / row["cpu"]
            bars.append((f"{name}: mergekit's CPU over ours", share, ">=", PEERS[name].bar))
        bars.append((f"{name}: private memory, MB", row["private"] / 1e6, "<=", _PRIVATE_LIMIT / 1e6))
    bars.append(("--help: CPU seconds", start["--help"], "<=", _HELP_LIMIT))
    bars.append(("import consilience: CPU seconds", start["import"], "<=", _IMPORT_LIMIT))
    return [
        {"bar": text, "value": value, "limit": f"{sign} {limit:g}", "holds": (value <= limit) == (sign == "<=")}
        for text, value, sign, limit in bars
    ]


def _verdicts(rows: list[Row]) -> list[str]:
    """Return the lines of the table that sets each method beside the peer's."""
    by = {(row["recipe"], row["tool"]): row for row in rows}
    lines = [f"{'method':<20}{'ours, CPU s':>12}{'mergekit':>10}{'ratio':>8}{'bar':>6}  verdict"]
    for (name, tool), row in by.items():
        if tool == "mergekit":
            ours = by[name, "consilience"]["cpu"]
            share, bar = row["cpu"] / ours, PEERS[name].bar
            verdict = "holds" if share >= bar else "DOES NOT HOLD"
            lines.append(f"{name:<20}{ours:>12.2f}{row['cpu']:>10.2f}{share:>8.1f}{bar:>6g}  {verdict}")
    return lines


def _processor() -> str:
    found = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout.splitlines()
    return next((line.split(":")[1].strip() for line in found if line.startswith("Model name")), platform.machine())


def _show(name: str, tool: str, figures: Figures) -> None:
    print(f"{time.strftime('%H:%M:%S')} {name}: {tool} {figures.cpu:.2f} CPU s, {figures.wall:.2f} s", flush=True)


def _print(report: dict[str, Any]) -> None:
    print(f"\n{report['parameters']:,} parameters, bfloat16, base and three experts; medians of whole processes")
    print(f"{'recipe':<20}{'tool':<13}{'runs':>4}{'CPU s':>9}{'wall s':>9}{'private MB':>12}{'CPU / floor':>13}")
    for row in report["rows"]:
        print(
            f"{row['recipe']:<20}{row['tool']:<13}{row['runs']:>4}{row['cpu']:>9.2f}{row['wall']:>9.2f}"
            f"{row['private'] / 1e6:>12.0f}{row['over_floor']:>13.1f}"
        )
    print("\n".join(_verdicts(report["rows"])))
    compiling = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report["compile_cpu"].items())
    print(f"compiling, once per machine, CPU s: {compiling}")
    for name, tensors in report["agreement"].items():
        worst = max(tensors, key=lambda found: found["relative_rms"])
        ties = f", {worst['at_threshold']:.2%} at the threshold" if "at_threshold" in worst else ""
        print(
            f"agreement, {name}, worst of {len(tensors)}, {worst['tensor']}: {worst['differ']:.2%} of elements differ"
            f"{ties}; difference {worst['relative_rms']:.3f} of the task vector; norm ratio {worst['norm_ratio']:.4f}"
        )
    for bar in report["bars"]:
        print(f"{'holds' if bar['holds'] else 'DOES NOT HOLD':<14}{bar['bar']}: {bar['value']:.2f} ({bar['limit']})")


if __name__ == "__main__":
    main()
