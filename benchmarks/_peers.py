"""The other tool of the comparison, in a virtual environment of its own, and the recipes both tools are given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from _checkpoints import EXPERTS

REQUIREMENTS = ("torch==2.13.0", "mergekit==0.1.5", "pydantic==2.10.6")
"""pydantic is pinned because mergekit 0.1.5 fails with later ones."""

WEIGHTS = dict(zip(EXPERTS, (0.4, 0.3, 0.3), strict=True))
DENSITY = {"ties": 0.2, "dare_ties": 0.3}


def mergekit(folder: Path) -> Path:
    """Return the command `mergekit-yaml`, installed below `folder` if it is not there yet."""
    command = folder / "bin" / "mergekit-yaml"
    if not command.is_file():
        print(f"installing {', '.join(REQUIREMENTS)} in {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *REQUIREMENTS], check=True)
    return command


def versions(folder: Path) -> dict[str, str]:
    """Return the versions of the packages that matter in that environment."""
    names = ["mergekit", "torch", "transformers", "pydantic", "numpy"]
    code = f"import importlib.metadata as m; print(*[m.version(n) for n in {names}])"
    found = subprocess.run([folder / "bin" / "python", "-c", code], check=True, capture_output=True, text=True)
    return dict(zip(names, found.stdout.split(), strict=True))


def write_recipes(folder: Path, models: dict[str, Path]) -> dict[str, Path]:
    """Write one recipe per measured merge and return their paths; all but the last are in mergekit's language."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {m: _mergekit_recipe(m, models) for m in ("linear", "task_arithmetic", "ties", "dare_ties")}
    texts["dare_ties, inverse"] = _native_recipe(models)
    paths = {}
    for name, text in texts.items():
        paths[name] = folder / f"{name.replace(', ', '-')}.yml"
        paths[name].write_text(text)
    return paths


def _mergekit_recipe(method: str, models: dict[str, Path]) -> str:
    lines = [f"merge_method: {method}"]
    if method != "linear":
        lines.append(f"base_model: {models['base']}")
    lines.append("models:")
    for name, weight in WEIGHTS.items():
        density = f"density: {DENSITY[method]}, " if method in DENSITY else ""
        lines += [f"  - model: {models[name]}", f"    parameters: {{{density}weight: {weight}}}"]
    return "\n".join([*lines, "dtype: bfloat16", ""])


def _native_recipe(models: dict[str, Path]) -> str:
    """DARE as published: what is kept is divided by the density, so one pass is enough."""
    experts = ", ".join(f"{name}: {models[name]}" for name in WEIGHTS)
    weights = ", ".join(f"{name}: {weight}" for name, weight in WEIGHTS.items())
    return (
        f"version: 1\nmethod: dare_ties\nbase: {models['base']}\nexperts: {{{experts}}}\n"
        f"parameters: {{density: {DENSITY['dare_ties']}, weight: {{{weights}}}, rescale: inverse}}\n"
    )
