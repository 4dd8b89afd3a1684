"""A pool of checkpoints of one base, read one at a time: linear combinations and scores against a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consilience.errors import Problems, RequestError

__all__ = ["Pool", "Score", "State"]

State = Mapping[str, Tensor]
Score = Literal["cosine", "inner_product"]


class Pool:
    """Models by name, given as states or as functions that read one; no more than one is held at a time.

    >>> base = {"w": torch.zeros(2)}
    >>> pool = Pool(base, {"a": {"w": torch.tensor([1.0, 0.0])}, "b": lambda: {"w": torch.tensor([0.0, 2.0])}})
    >>> pool.combine(np.array([[1.0], [0.5]]))["w"].tolist()
    [1.0, 1.0]

    `tensors` are those of the base that are floating point and take part (`only`: some of them). Every model is read
    once when the pool is made: RequestError names each one whose tensors do not fit the base or are not finite.
    """

    def __init__(
        self,
        base: State,
        models: Mapping[str, State | Callable[[], State]],
        *,
        only: Sequence[str] | None = None,
    ) -> None:
        self.base, self._models = base, dict(models)
        wanted = None if only is None else set(only)
        floats = (name for name, value in base.items() if value.is_floating_point())
        self.tensors = tuple(name for name in floats if wanted is None or name in wanted)
        self.names = tuple(self._models)
        problems = Problems()
        if not self.names or not self.tensors:
            problems.add(
                f"{len(self.names)} models and {len(self.tensors)} tensors to merge; there must be some of both"
            )
        if broken := [t for t in self.tensors if not bool(torch.isfinite(base[t]).all())]:
            problems.add(f"the base: NaN or infinity in {', '.join(broken[:3])}")
        for name in self.names:
            state = self._read(name)
            wrong = [t for t in self.tensors if t not in state or state[t].shape != base[t].shape]
            if wrong:
                found = list(state[wrong[0]].shape) if wrong[0] in state else "missing"
                problems.add(
                    f"model {name!r} does not fit the base: {len(wrong)} tensors differ, such as {wrong[0]} "
                    f"({found}, the base has {list(base[wrong[0]].shape)}); leave it out of the pool"
                )
            elif broken := [t for t in self.tensors if not bool(torch.isfinite(state[t]).all())]:
                problems.add(f"model {name!r}: NaN or infinity in {', '.join(broken[:3])}; leave it out of the pool")
        problems.raise_if_any(RequestError, "pool")

    def _read(self, name: str) -> State:
        model = self._models[name]
        return model() if callable(model) else model

    def __iter__(self) -> Iterator[tuple[str, State]]:
        for name in self.names:
            yield name, self._read(name)

    def combine(self, values: NDArray[np.float64]) -> dict[str, Tensor]:
        """Return base + sum of values[i, p] x (model i - base) of every tensor p; values (models, tensors).

        Sums run in float32 in the order of the pool; models whose values are all 0 are not read.
        """
        out = {name: self.base[name].detach().to(torch.float32).clone() for name in self.tensors}
        for row, name in zip(values, self.names, strict=True):
            if not row.any():
                continue
            state = self._read(name)
            for value, tensor in zip(row.tolist(), self.tensors, strict=True):
                if value:
                    change = state[tensor].detach().to(torch.float32) - self.base[tensor].to(torch.float32)
                    out[tensor].add_(change, alpha=value)
        return out

    def scores(self, gradients: Sequence[State], extra: State | None, score: Score) -> NDArray[np.float64]:
        """Return how well every model descends, float64 (gradients, models, tensors): the lowest is the best.

        cosine: of the gradient and the model's weights; inner_product: of the gradient and the model's change from the
        base. A zero gradient or tensor scores 0. `extra` is a further candidate, the last one.
        """
        rows = [self._scored(state, gradients, score) for _, state in self]
        if extra is not None:
            rows.append(self._scored(extra, gradients, score))
        return np.stack(rows, axis=1)

    def _scored(self, state: State, gradients: Sequence[State], score: Score) -> NDArray[np.float64]:
        out = np.zeros((len(gradients), len(self.tensors)))
        for place, tensor in enumerate(self.tensors):
            weights = state[tensor].detach().to(torch.float64).reshape(-1)
            if score == "inner_product":
                weights = weights - self.base[tensor].to(torch.float64).reshape(-1)
            length = float(weights.norm())
            for row, gradient in enumerate(gradients):
                slope = gradient[tensor].to(torch.float64).reshape(-1)
                found = float(slope @ weights)
                if score == "cosine":
                    scale = length * float(slope.norm())
                    found = found / scale if scale > 0 else 0.0
                out[row, place] = found
        return out

    def picked(self, choice: NDArray[np.int64]) -> list[dict[str, Tensor]]:
        """Return the tensors that picks name, float32; choice (picks, tensors) of indices of models, -1 for none."""
        out: list[dict[str, Tensor]] = [{} for _ in choice]
        for index, name in enumerate(self.names):
            if not (choice == index).any():
                continue
            state = self._read(name)
            for pick, places in zip(out, choice, strict=True):
                for place in np.flatnonzero(places == index).tolist():
                    tensor = self.tensors[place]
                    pick[tensor] = state[tensor].detach().to(torch.float32)
        return out
