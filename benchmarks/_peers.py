"""The other tool of the comparison, in a virtual environment of its own, and the recipes both tools are given.

Every method that the other tool has is measured, on the same files and with the same parameters.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from _checkpoints import EXPERTS

REQUIREMENTS = ("torch==2.13.0", "mergekit==0.1.5", "pydantic==2.10.6")
"""pydantic is pinned because mergekit 0.1.5 fails with later ones."""

WEIGHTS = dict(zip(EXPERTS, (0.4, 0.3, 0.3), strict=True))


@dataclass(frozen=True)
class Peer:
    """How a method is measured: parameters of the merge, of every model, number of experts, and whether with a base.

    `bar` is the least ratio of the other tool's CPU seconds to ours.
    """

    bar: float = 3.0
    shared: Mapping[str, float] = field(default_factory=dict)
    each: Mapping[str, float] = field(default_factory=dict)
    weights: bool = False
    experts: int = 3
    base: bool = True

    def models(self) -> list[str]:
        """Return the names of the models that are read."""
        return [*(["base"] if self.base else []), *list(EXPERTS)[: self.experts]]


PEERS = {
    "linear": Peer(weights=True, base=False),
    "task_arithmetic": Peer(weights=True),
    "ties": Peer(12, each={"density": 0.2}, weights=True),
    "dare_linear": Peer(20, each={"density": 0.3}, weights=True),
    "dare_ties": Peer(20, each={"density": 0.3}, weights=True),
    "della": Peer(12, each={"density": 0.3}, weights=True),
    "della_linear": Peer(each={"density": 0.3}, weights=True),
    "breadcrumbs": Peer(12, each={"density": 0.9, "gamma": 0.01}, weights=True),
    "breadcrumbs_ties": Peer(12, each={"density": 0.9, "gamma": 0.01}, weights=True),
    "sce": Peer(12, shared={"select_topk": 0.2}),
    "slerp": Peer(shared={"t": 0.4}, experts=1),
    "nuslerp": Peer(weights=True, experts=2),
    "multislerp": Peer(weights=True),
    "karcher": Peer(base=False),
    "model_stock": Peer(),
    "passthrough": Peer(each={"scale": 0.9}, experts=1, base=False),
    "nearswap": Peer(shared={"t": 5e-4}, experts=1),
    "arcee_fusion": Peer(experts=1),
    "ram": Peer(shared={"epsilon": 1e-3}),
    "ramplus_tl": Peer(shared={"epsilon": 1e-3, "r": 0.1, "alpha": 0.2}),
}
"""The methods of mergekit 0.1.5, all of them."""

DENSITY = {name: peer.each["density"] for name, peer in PEERS.items() if "density" in peer.each}


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
    texts = {name: _mergekit_recipe(name, peer, models) for name, peer in PEERS.items()}
    texts["dare_ties, inverse"] = _native_recipe(models)
    paths = {}
    for name, text in texts.items():
        paths[name] = folder / f"{name.replace(', ', '-')}.yml"
        paths[name].write_text(text)
    return paths


def models_of(recipe: str) -> list[str]:
    """Return the names of the models that a recipe reads."""
    return PEERS[recipe.split(",")[0]].models()


def _mergekit_recipe(method: str, peer: Peer, models: dict[str, Path]) -> str:
    lines = [f"merge_method: {method}"]
    if peer.base:
        lines.append(f"base_model: {models['base']}")
    lines.append("models:")
    for name in peer.models()[1 if peer.base else 0 :]:
        values = {**peer.each, **({"weight": WEIGHTS[name]} if peer.weights else {})}
        lines.append(f"  - model: {models[name]}")
        if values:
            lines.append(f"    parameters: {{{', '.join(f'{key}: {value:g}' for key, value in values.items())}}}")
    if peer.shared:
        lines.append("parameters:")
        lines += [f"  {key}: {value!r}" for key, value in peer.shared.items()]
    return "\n".join([*lines, "dtype: bfloat16", ""])


def _native_recipe(models: dict[str, Path]) -> str:
    """DARE as published: what is kept is divided by the density, so one pass is enough."""
    experts = ", ".join(f"{name}: {models[name]}" for name in WEIGHTS)
    weights = ", ".join(f"{name}: {weight}" for name, weight in WEIGHTS.items())
    return (
        f"version: 1\nmethod: dare_ties\nbase: {models['base']}\nexperts: {{{experts}}}\n"
        f"parameters: {{density: {DENSITY['dare_ties']}, weight: {{{weights}}}, rescale: inverse}}\n"
    )
