"""Comparing checkpoints: what differs, norms, pairwise cosine and sign conflict of their task vectors, streamed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.checkpoints.dtypes import DTYPES
from consilience.checkpoints.layers import find_layers
from consilience.checkpoints.model import Checkpoint
from consilience.errors import CheckpointError
from consilience.merging.kernels import kernels
from consilience.merging.steps import blocks_of
from consilience.merging.task import DEFAULT_CHUNK

__all__ = ["compare_models"]


@dataclass
class _Group:
    """Sums over the tensors of one group (a layer, or the whole model)."""

    count: int
    dots: NDArray[np.float64] = field(init=False)
    elements: int = 0
    changed: NDArray[np.int64] = field(init=False)
    active: int = 0
    conflicts: int = 0

    def __post_init__(self) -> None:
        self.dots = np.zeros((self.count, self.count))
        self.changed = np.zeros(self.count, np.int64)

    def add(self, vectors: NDArray[Any]) -> None:
        sums = np.empty(blocks_of(vectors.shape[1]))
        for i in range(self.count):
            for j in range(i + 1):
                kernels().block_dots(vectors[i], vectors[j], sums)
                self.dots[i, j] += float(sums.sum())
        self.elements += vectors.shape[1]
        self.changed += np.count_nonzero(vectors, axis=1)
        positive, negative = (vectors > 0).any(axis=0), (vectors < 0).any(axis=0)
        self.active += int((positive | negative).sum())
        self.conflicts += int((positive & negative).sum())

    def norm(self, i: int) -> float:
        return math.sqrt(self.dots[i, i])

    def cosine(self, i: int, j: int) -> float:
        scale = self.norm(i) * self.norm(j)
        return float(self.dots[max(i, j), min(i, j)] / scale) if scale else 0.0


def compare_models(
    models: Mapping[str, Checkpoint], base: Checkpoint | None = None, *, per_layer: bool = False
) -> dict[str, Any]:
    """Compare models tensor by tensor; against `base` their task vectors are compared, else the weights themselves.

    Returns plain data: `only_in` and `shapes` (what differs in names and shapes), per model `norms` and the share of
    `changed` weights, the `cosine` matrix, `sign_conflict` (share of the weights that any model moves where two move
    in opposite directions), the same per layer, and `tables` for printing. Reads every weight once.

    Raises CheckpointError when the models share no float tensor of equal shape.
    """
    names = list(models)
    everything = [*models.values(), *([base] if base is not None else [])]
    shared = [t for t in everything[0].tensors if all(t in m.tensors for m in everything)]
    same = [t for t in shared if len({tuple(m.tensors[t].shape) for m in everything}) == 1]
    floats = [t for t in same if DTYPES[everything[0].tensors[t].dtype].kind == "float"]
    if not floats:
        raise CheckpointError(f"{', '.join(names)}: no float tensor of the same name and shape is in all of them")
    scheme = find_layers(floats, everything[0].config)
    groups: dict[str, _Group] = {}
    total = _Group(len(names))
    for tensor in floats:
        place = scheme.split(tensor)
        label = f"layer {place[1]}" if place else "outside the layers"
        group = groups.setdefault(label, _Group(len(names)))
        for vectors in _vectors(tensor, list(models.values()), base):
            total.add(vectors)
            if per_layer:
                group.add(vectors)
    result: dict[str, Any] = {
        "against": base.reference if base is not None else None,
        "tensors": len(floats),
        "only_in": {
            n: sorted(set(m.tensors) - set(shared))[:20] for n, m in models.items() if set(m.tensors) - set(shared)
        },
        "shapes": {t: [list(m.tensors[t].shape) for m in everything] for t in shared if t not in same},
        "norms": {n: total.norm(i) for i, n in enumerate(names)},
        "changed": {n: int(total.changed[i]) / total.elements for i, n in enumerate(names)},
        "cosine": [[total.cosine(i, j) for j in range(len(names))] for i in range(len(names))],
        "sign_conflict": total.conflicts / total.active if total.active else 0.0,
    }
    if per_layer:
        result["layers"] = {label: _summary(group, names) for label, group in groups.items()}
    result["tables"] = _tables(result, names, base is not None)
    return result


def _vectors(tensor: str, models: list[Checkpoint], base: Checkpoint | None) -> Any:
    size = models[0].tensors[tensor].numel
    for start in range(0, size, DEFAULT_CHUNK):
        stop = min(start + DEFAULT_CHUNK, size)
        vectors = np.empty((len(models), stop - start))
        for row, model in zip(vectors, models, strict=True):
            model.tensors[tensor].read(start, stop, row)
        if base is not None:
            reference = np.empty(stop - start)
            base.tensors[tensor].read(start, stop, reference)
            vectors -= reference
        yield vectors


def _summary(group: _Group, names: list[str]) -> dict[str, Any]:
    pairs = [(i, j) for i in range(len(names)) for j in range(i)]
    return {
        "norms": {n: group.norm(i) for i, n in enumerate(names)},
        "mean_cosine": sum(group.cosine(i, j) for i, j in pairs) / len(pairs) if pairs else 1.0,
        "sign_conflict": group.conflicts / group.active if group.active else 0.0,
    }


def _tables(result: Mapping[str, Any], names: list[str], against: bool) -> list[tuple[str, list[str], list[list[str]]]]:
    what = "task vectors" if against else "weights"
    rows = [
        [n, f"{result['norms'][n]:.4g}", f"{result['changed'][n]:.1%}", *(f"{c:.3f}" for c in result["cosine"][i])]
        for i, n in enumerate(names)
    ]
    share = "changed" if against else "non-zero"
    title = f"{what}: norm, {share}, cosine (sign conflict {result['sign_conflict']:.1%})"
    tables = [(title, ["model", "norm", share, *names], rows)]
    if "layers" in result:
        layer_rows = [
            [label, *(f"{v:.4g}" for v in s["norms"].values()), f"{s['mean_cosine']:.3f}", f"{s['sign_conflict']:.1%}"]
            for label, s in result["layers"].items()
        ]
        tables.append((f"{what} by layer", ["", *names, "mean cosine", "sign conflict"], layer_rows))
    differing = [[t, ", ".join(map(str, shapes))] for t, shapes in result["shapes"].items()]
    if differing:
        tables.append(("tensors of different shapes (left out)", ["tensor", "shapes"], differing))
    absent = [[n, ", ".join(t[:6])] for n, t in result["only_in"].items()]
    if absent:
        tables.append(("tensors that not all have (left out)", ["model", "tensors"], absent))
    return tables
