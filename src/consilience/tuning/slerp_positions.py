"""Iterated SLERP of task vectors as coefficients: every point it reaches is a linear combination, known by angles.

Source: Self Positioning, 2024 (Improving General Text Embedding Model: Tackling Task Conflict and Data Imbalance
through Model Merging); a reconstruction, as no code was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from consilience.errors import Problems, RequestError
from consilience.tuning.shelf import Shelf

__all__ = ["SlerpPositions", "angle", "fold"]

_PARALLEL = 1e-6  # sine of an angle below which two directions are one


def angle(gram: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the angle (radians) between two combinations of vectors with inner products `gram`.

    >>> round(float(angle(torch.eye(2), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))), 4)
    0.7854
    """
    lengths = (first @ gram @ first).sqrt() * (second @ gram @ second).sqrt()
    return torch.arccos((first @ gram @ second / lengths).clamp(-1 + 1e-15, 1 - 1e-15))


def fold(gram: Tensor, a: Tensor) -> Tensor:
    """Return the coefficients (N,) of V_(1..N): SLERP from left to right, not normalised; gradients flow to `a`.

    >>> fold(torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)).round(decimals=4).tolist()
    [0.7071, 0.7071]

    gram: inner products (N, N) of the vectors. a: positive weights (N,); the larger one, the closer to its vector. The
    result depends on the order. Nearly parallel vectors are interpolated linearly; opposite ones raise RequestError.
    """
    count = len(a)
    unit = torch.eye(count, dtype=gram.dtype)
    whole = unit[0]
    for k in range(1, count):
        beta = a[k] / (a[:k].mean() + a[k])
        between = angle(gram, whole, unit[k])
        sine = torch.sin(between)
        if float(sine.detach()) >= _PARALLEL:
            whole = (torch.sin((1 - beta) * between) * whole + torch.sin(beta * between) * unit[k]) / sine
        elif float(between.detach()) < 1:
            whole = (1 - beta) * whole + beta * unit[k]
        else:
            raise RequestError(
                f"the task vector of expert {k + 1} points opposite to those before it: there is no unique direction "
                "between them; leave it out or change the order"
            )
    return whole


class SlerpPositions:
    """A base and task vectors; coefficients of every reachable position, and the parameters there.

    >>> base = {"w": torch.zeros(2)}
    >>> positions = SlerpPositions(base, {"a": {"w": torch.tensor([2.0, 0])}, "b": {"w": torch.tensor([0, 2.0])}})
    >>> values = positions.coefficients(torch.ones(2), torch.tensor(0.5))
    >>> [round(x, 4) for x in positions.parameters(values)["w"].tolist()]
    [0.7071, 0.7071]

    All float tensors count as one vector; with `per_tensor` every tensor has its own angles. Tensors that no expert
    changes take no part. Task vectors are in memory, or with `scratch` in a file there that is mapped. Raises
    RequestError naming every expert whose tensors do not fit, are not finite, or whose task vector is zero.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        experts: Mapping[str, Mapping[str, Tensor]],
        *,
        per_tensor: bool = False,
        scratch: Path | None = None,
    ) -> None:
        self.base, self.experts, self.per_tensor = base, tuple(experts), per_tensor
        names = [name for name, value in base.items() if value.is_floating_point()]
        problems = Problems()
        if not experts:
            problems.add("no experts are given")
        if broken := [n for n in names if not bool(torch.isfinite(base[n]).all())]:
            problems.add(f"the base: NaN or infinity in {', '.join(broken[:3])}")
        for expert, state in experts.items():
            wrong = [n for n in names if n not in state or state[n].shape != base[n].shape]
            extra = [n for n in state if n not in base]
            if wrong or extra:
                shown = ", ".join([*wrong, *extra][:3])
                problems.add(f"expert {expert!r}: {len(wrong) + len(extra)} tensors do not fit the base ({shown})")
            elif broken := [n for n in names if not bool(torch.isfinite(state[n]).all())]:
                problems.add(f"expert {expert!r}: NaN or infinity in {', '.join(broken[:3])}")
        problems.raise_if_any(RequestError, "self-positioning")
        shelf = Shelf(scratch)
        self.vectors: dict[str, list[Tensor]] = {}
        for n in names:
            held = [state[n].detach() - base[n].detach() for state in experts.values()]
            if any(bool(v.any()) for v in held):
                self.vectors[n] = [shelf.put(v) for v in held]
        for place, expert in enumerate(self.experts):
            if not any(bool(held[place].any()) for held in self.vectors.values()):
                problems.add(f"expert {expert!r} has a zero task vector: it is the base; leave it out")
        problems.raise_if_any(RequestError, "self-positioning")
        self.tensors = tuple(self.vectors)
        self.grams = [_gram(self.vectors[n]) for n in self.tensors]
        self.gram = torch.stack(self.grams).sum(dim=0)

    def coefficients(self, a: Tensor, norm: Tensor) -> Tensor:
        """Return norm x the coefficients of V_(1..N): (experts,), or (experts, tensors) with `per_tensor`."""
        if not self.per_tensor:
            return norm * fold(self.gram, a.to(self.gram.dtype))
        return norm * torch.stack([_fold_some(gram, a.to(gram.dtype)) for gram in self.grams], dim=1)

    def parameters(self, values: Tensor) -> dict[str, Tensor]:
        """Return base + sum of coefficients x task vectors of every tensor that takes part."""
        out = {}
        for place, name in enumerate(self.tensors):
            column = values[:, place] if self.per_tensor else values
            held = self.vectors[name]
            total = self.base[name].detach()
            for value, vector in zip(column, held, strict=True):
                total = total + value.to(vector.dtype) * vector
            out[name] = total
        return out

    def angles(self, values: Tensor) -> dict[str, float]:
        """Return the angle in degrees between the merged task vector and that of every expert."""
        whole = values if self.per_tensor else values[:, None].expand(-1, len(self.tensors))
        squares = sum(float(column @ gram @ column) for column, gram in zip(whole.T, self.grams, strict=True))
        found = {}
        for place, expert in enumerate(self.experts):
            inner = sum(float(gram[place] @ column) for column, gram in zip(whole.T, self.grams, strict=True))
            cosine = inner / max((squares * float(self.gram[place, place])) ** 0.5, 1e-300)
            found[expert] = float(torch.rad2deg(torch.arccos(torch.tensor(min(max(cosine, -1.0), 1.0)))))
        return found


def _gram(vectors: list[Tensor]) -> Tensor:
    flat = [vector.reshape(-1).to(torch.float64) for vector in vectors]
    return torch.stack([torch.stack([a @ b for b in flat]) for a in flat])


def _fold_some(gram: Tensor, a: Tensor) -> Tensor:
    """Fold the vectors of a tensor that are not zero; the others get 0."""
    there = torch.diagonal(gram) > 0
    whole = torch.zeros(len(a), dtype=gram.dtype)
    if not bool(there.any()):
        return whole
    return whole.masked_scatter(there, fold(gram[there][:, there], a[there]))
