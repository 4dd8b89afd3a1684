"""Speed of the spectral methods: merges by this project against the plain formulas, in one run on the same files.

`python benchmarks/spectral_speed.py` writes a model of 12 layers (768 and 3072 wide) and 8 experts in bfloat16 below
build/bench, merges it by each method in whole processes, and prints CPU seconds (user and system), how many
of them starting up takes, and their ratio; the figures go to spectral_speed.json. KnOTS merges LoRA experts of one
layer's attention (rank 16). With `--device cuda` both compute on a GPU: wall seconds count then. `--smoke` takes a
model of a few kilobytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _measure import Figures, middle, run
from safetensors.torch import load_file, save_file

METHODS = ("tsv", "iso_c", "iso_cts", "r_tsvm", "knots")
_HERE = Path(__file__).parent
_RANK = 16


@dataclass(frozen=True)
class Size:
    """A stack of layers of four square matrices, one that widens four times and one that narrows."""

    layers: int
    width: int
    experts: int

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Return the shape of every tensor."""
        width = self.width
        layer = dict.fromkeys(("query", "key", "value", "output"), (width, width))
        layer |= {"up": (4 * width, width), "down": (width, 4 * width)}
        return {f"layers.{i}.{name}.weight": shape for i in range(self.layers) for name, shape in layer.items()}


def main() -> None:
    """Measure, print, save."""
    options = _options()
    size = Size(1, 32, 3) if options.smoke else Size(options.layers, options.width, options.experts)
    folder = options.folder.resolve() / "spectral"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for method in options.methods or METHODS:
        lora = method == "knots"
        kind = "lora" if lora else "full"
        models = make_models(folder / kind, Size(1, size.width, size.experts) if lora else size, lora)
        tiny = make_models(folder / f"tiny-{kind}", Size(1, 32, size.experts), lora)
        rows.append(_measure(method, models, tiny, folder, options))
    report = {"size": vars(size), "device": options.device, "threads": options.threads, "rows": rows}
    report["load"] = os.getloadavg()
    (folder.parent / options.json).write_text(json.dumps(report, indent=1) + "\n")
    _print(report)
    if not options.keep:
        shutil.rmtree(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=1, help="runs of which the median counts")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    parser.add_argument("--keep", action="store_true", help="keep the models")
    parser.add_argument("--json", default="spectral_speed.json", help="name of the file of figures")
    return parser.parse_args()


def make_models(folder: Path, size: Size, lora: bool = False) -> dict[str, Path]:
    """Write a base and experts: updates of decaying spectrum and noise in bfloat16, or LoRA folders."""
    models = {name: folder / name for name in ("base", *(f"expert{i}" for i in range(size.experts)))}
    for seed, (name, model) in enumerate(models.items()):
        model.mkdir(parents=True, exist_ok=True)
        if lora and name != "base":
            _write_lora(model, size, seed)
            continue
        tensors = {}
        for place, (tensor, shape) in enumerate(size.shapes().items()):
            value = 0.03 * torch.randn(shape, generator=torch.Generator().manual_seed(place))
            if name != "base":
                value = value.bfloat16().float() + _update(shape, 1000 * seed + place)
            tensors[tensor] = value.bfloat16()
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        (model / "config.json").write_text('{"model_type": "bert", "torch_dtype": "bfloat16"}')
    return models


def _update(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Return an update as fine-tuning makes them: singular values that fall slowly, over a floor of noise."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(shape) // 2
    left, right = (torch.randn(shape[i], rank, generator=generator) for i in (0, 1))
    strength = torch.arange(1, rank + 1) ** -0.7
    return 2e-3 * (left * strength) @ right.T / rank**0.5 + 5e-4 * torch.randn(shape, generator=generator)


def _write_lora(folder: Path, size: Size, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    adapted = {name: shape for name, shape in size.shapes().items() if shape[0] == shape[1]}
    for name, (rows, columns) in adapted.items():
        prefix = "base_model.model." + name.removesuffix(".weight")
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(_RANK, columns, generator=generator) / columns**0.5
        tensors[f"{prefix}.lora_B.weight"] = 0.05 * torch.randn(rows, _RANK, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted({name.split(".")[-2] for name in adapted})
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 2 * _RANK, "target_modules": modules, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _measure(
    method: str, models: dict[str, Path], tiny: dict[str, Path], folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure both sides on the models, and on tiny ones for what starting up takes."""
    ours, plain, start, plain_start = [], [], [], []
    for _ in range(options.runs):
        for found, command in zip((start, plain_start), _commands(method, tiny, folder, options), strict=True):
            found.append(_run(command, folder, options.threads))
        for found, command in zip((ours, plain), _commands(method, models, folder, options), strict=True):
            found.append(_run(command, folder, options.threads))
    base = load_file(models["base"] / "model.safetensors")
    difference = _difference(base, load_file(folder / "plain.safetensors"), _load(folder / "out"))
    row: dict[str, Any] = {"method": method, "difference": difference}
    for side, runs, starts in (("ours", ours, start), ("plain", plain, plain_start)):
        figures = middle(runs)
        row |= {f"{side}_cpu": figures.cpu, f"{side}_wall": figures.wall, f"{side}_private": figures.private}
        row[f"{side}_start"] = middle(starts).cpu
    row["ratio"] = row["plain_cpu"] / row["ours_cpu"]
    row["ratio_without_start"] = (row["plain_cpu"] - row["plain_start"]) / (row["ours_cpu"] - row["ours_start"])
    print(f"{time.strftime('%H:%M:%S')} {method}: {row['ours_cpu']:.1f} and {row['plain_cpu']:.1f} CPU s", flush=True)
    return row


def _commands(
    method: str, models: dict[str, Path], folder: Path, options: argparse.Namespace
) -> tuple[list[str], list[str]]:
    """Return our command and the plain one."""
    base, *experts = models.values()
    lora = method == "knots"
    recipe = folder / f"{method}-{base.parent.name}.yml"
    lines = ["version: 1", f"method: {method}", f"base: {base}", "experts:"]
    lines += [f"  {expert.name}: {f'{base}+' if lora else ''}{expert}" for expert in experts]
    recipe.write_text("\n".join([*lines, ""]))
    ours = [sys.executable, "-m", "consilience", "merge", str(recipe), "--out", str(folder / "out")]
    ours += ["--threads", str(options.threads), "--device", options.device]
    inputs = [base / "model.safetensors", *(e if lora else e / "model.safetensors" for e in experts)]
    plain = [sys.executable, _HERE / "_plain_spectral.py", method, options.device, folder / "plain.safetensors"]
    return ours, [str(part) for part in (*plain, *inputs)]


def _run(command: list[str], folder: Path, threads: int) -> Figures:
    if "merge" in command:
        shutil.rmtree(folder / "out", ignore_errors=True)
    return run(command, folder / "log", environment={"OMP_NUM_THREADS": str(threads)})


def _load(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def _difference(base: dict[str, torch.Tensor], plain: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> float:
    """Return the distance of the two results, relative to the change from the base."""
    apart = sum(float((ours[n].double() - plain[n].double()).square().sum()) for n in base)
    change = sum(float((plain[n].double() - base[n].double()).square().sum()) for n in base)
    return (apart / change) ** 0.5


def _print(report: dict[str, Any]) -> None:
    size = report["size"]
    print(
        f"\n{size['layers']} layers of {size['width']}, {size['experts']} experts, {report['device']}; whole processes"
    )
    columns = (
        "CPU s",
        "start",
        "plain CPU s",
        "start",
        "ratio",
        "w/o start",
        "wall s",
        "plain wall s",
        "MB",
        "plain MB",
    )
    print(f"{'method':<9}" + "".join(f"{name:>13}" for name in columns) + f"{'difference':>13}")
    for row in report["rows"]:
        figures = [row["ours_cpu"], row["ours_start"], row["plain_cpu"], row["plain_start"]]
        figures += [row["ratio"], row["ratio_without_start"], row["ours_wall"], row["plain_wall"]]
        figures += [row["ours_private"] / 1e6, row["plain_private"] / 1e6]
        print(f"{row['method']:<9}" + "".join(f"{figure:>13.2f}" for figure in figures) + f"{row['difference']:>13.1e}")


if __name__ == "__main__":
    main()
