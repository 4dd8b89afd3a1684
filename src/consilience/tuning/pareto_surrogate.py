"""Quadratic surrogates: what every task would score at coefficients that were not tried.

    m_t(c) = act_t(sum_i A_ii c_i^2 + sum_{i<j} A_ij c_i c_j + sum_i b_i c_i + e)

Source: MAP, ICLR 2025 (arXiv 2406.07529); the activation keeps predictions in the range of the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.errors import MissingExtraError, Problems, RequestError, WorkError, did_you_mean

__all__ = ["ACTIVATIONS", "Activation", "Degree", "Surrogate", "fit_surrogate", "parameter_count", "terms"]

Array = NDArray[np.float64]
Degree = Literal[1, 2]

_CLIP = 1e-4  # shares are kept this far from 0 and 1 before they are inverted
_SPREAD = 1e-9  # a metric whose values differ by less is constant
_POOR = 0.5  # R^2 below which a surrogate is not to be relied on


class Activation(NamedTuple):
    """An activation with its derivative and its inverse."""

    forward: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    inverse: Callable[[Array], Array]


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float64)


def _clipped(share: Array) -> Array:
    return np.clip(share, _CLIP, 1 - _CLIP)


def _inverse_softplus(y: Array) -> Array:
    safe = np.maximum(y, _CLIP)
    return np.asarray(safe + np.log(-np.expm1(-safe)), np.float64)


ACTIVATIONS: Mapping[str, Activation] = {
    "sigmoid": Activation(
        _sigmoid,
        lambda x: _sigmoid(x) * (1 - _sigmoid(x)),
        lambda y: np.log(_clipped(y)) - np.log1p(-_clipped(y)),
    ),
    "softplus": Activation(lambda x: np.logaddexp(0, x), _sigmoid, _inverse_softplus),
    "identity": Activation(lambda x: x, np.ones_like, lambda y: y),
}


def parameter_count(experts: int, degree: Degree = 2) -> int:
    """Return how many parameters a surrogate has: (E+1)(E+2)/2 of degree 2, E+1 of degree 1.

    >>> parameter_count(2), parameter_count(4), parameter_count(4, 1)
    (6, 15, 5)
    """
    return (experts + 1) * (experts + 2) // 2 if degree == 2 else experts + 1


def terms(points: ArrayLike, degree: Degree = 2) -> Array:
    """Return the terms of a surrogate at points (N, E): squares, products (0,1), (0,2), ..., linear terms, 1.

    >>> terms([[2.0, 3.0]]).tolist()
    [[4.0, 9.0, 6.0, 2.0, 3.0, 1.0]]

    float64 (N, P), P as `parameter_count` says.
    """
    c = np.atleast_2d(np.asarray(points, np.float64))
    linear = [c, np.ones((len(c), 1))]
    if degree == 1:
        return np.hstack(linear)
    first, second = np.triu_indices(c.shape[1], 1)
    return np.hstack([c**2, c[:, first] * c[:, second], *linear])


@dataclass(frozen=True)
class Surrogate:
    """Fitted surrogates of all tasks.

    `parameters` is (T, P) in the order of `terms`; a task whose metric did not vary has only its constant. `r2` is the
    share of each metric's variance that is explained at the fitted points (1.0 for constants), `notices` say which fits
    are poor. `activations` has one name per task.
    """

    experts: int
    activations: tuple[str, ...]
    parameters: Array = field(repr=False)
    r2: tuple[float, ...]
    constant: tuple[bool, ...]
    degree: Degree = 2
    notices: tuple[str, ...] = ()

    def predict(self, points: ArrayLike) -> Array:
        """Return predicted metrics, float64 (N, T), at points (N, E)."""
        inner = terms(points, self.degree) @ self.parameters.T
        columns = [
            column if flat else ACTIVATIONS[name].forward(column)
            for column, name, flat in zip(inner.T, self.activations, self.constant, strict=True)
        ]
        return np.stack(columns, axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "experts": self.experts,
            "degree": self.degree,
            "activations": list(self.activations),
            "parameters": self.parameters.tolist(),
            "r2": list(self.r2),
            "constant": list(self.constant),
            "notices": list(self.notices),
        }

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Surrogate:
        """Read what `to_dict` returned."""
        return Surrogate(
            int(content["experts"]),
            tuple(content["activations"]),
            np.asarray(content["parameters"], np.float64),
            tuple(content["r2"]),
            tuple(content["constant"]),
            content["degree"],
            tuple(content["notices"]),
        )


def fit_surrogate(
    points: ArrayLike,
    metrics: ArrayLike,
    *,
    activation: str | Sequence[str] = "sigmoid",
    degree: Degree = 2,
    names: Sequence[str] | None = None,
) -> Surrogate:
    """Fit one surrogate per task by non-linear least squares.

    >>> grid = np.array([[x, y] for x in (0, 0.5, 1) for y in (0, 0.5, 1)])
    >>> surrogate = fit_surrogate(grid, 0.1 + 0.5 * grid[:, :1] ** 2, activation="identity")
    >>> np.allclose(surrogate.parameters[0], [0.5, 0, 0, 0, 0, 0.1])
    True

    points: (N, E) coefficients. metrics: (N, T). activation: sigmoid for shares in [0, 1], softplus for losses,
    identity otherwise; one name, or one per task. degree: 2, or 1 for the linear surrogate that is compared with.
    names: the tasks in messages.

    The fit starts at the linear least-squares fit of the inverted metric, so it does not diverge. A metric that is the
    same at all points becomes a constant. A point with NaN in a metric is left out with a notice. Raises RequestError
    for shapes or activations that do not fit, WorkError where fewer points than parameters are left.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise MissingExtraError("scipy", "fitting") from None
    c, values = np.atleast_2d(np.asarray(points, np.float64)), np.asarray(metrics, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    count = values.shape[1]
    chosen = (activation,) * count if isinstance(activation, str) else tuple(activation)
    labels = [f"task {t}" for t in range(count)] if names is None else list(names)
    problems = Problems()
    if len(c) != len(values):
        problems.add(f"{len(c)} points with metrics of {len(values)}; one row of metrics per point is needed")
    if len(chosen) != count or len(labels) != count:
        problems.add(f"{len(chosen)} activations and {len(labels)} names for {count} tasks; one per task is needed")
    for name in chosen:
        if name not in ACTIVATIONS:
            problems.add(f"activation {name!r} is unknown{did_you_mean(name, ACTIVATIONS)}")
    problems.raise_if_any(RequestError, "surrogate")
    notices = []
    whole = np.isfinite(values).all(axis=1)
    if not whole.all():
        notices.append(f"{int((~whole).sum())} of {len(values)} evaluations were NaN or infinite and are left out")
        c, values = c[whole], values[whole]
    wanted = parameter_count(c.shape[1], degree)
    if len(c) < wanted:
        raise WorkError(f"surrogate: {len(c)} usable evaluations for {wanted} parameters; evaluate more coefficients")
    if len(c) < 1.5 * wanted:
        notices.append(f"{len(c)} evaluations for {wanted} parameters; {int(np.ceil(1.5 * wanted))} or more are better")
    x = terms(c, degree)
    rows, fits, flats = [], [], []
    for label, name, y in zip(labels, chosen, values.T, strict=True):
        flat = bool(np.ptp(y) < _SPREAD)
        if flat:
            row = np.append(np.zeros(wanted - 1), y.mean())
            notices.append(f"{label} scored the same everywhere: it does not constrain the front")
        else:
            act = ACTIVATIONS[name]
            start = np.linalg.lstsq(x, act.inverse(y), rcond=None)[0]

            def error(p: Array, act: Activation = act, y: Array = y) -> Array:
                return act.forward(x @ p) - y

            def gradient(p: Array, act: Activation = act) -> Array:
                return act.slope(x @ p)[:, None] * x

            found = least_squares(error, start, jac=gradient, xtol=1e-14, ftol=1e-14, gtol=1e-14, max_nfev=500)
            row = np.asarray(found.x, np.float64)
        left = 0.0 if flat else float(((ACTIVATIONS[name].forward(x @ row) - y) ** 2).sum())
        r2 = 1.0 if flat else 1 - left / float(((y - y.mean()) ** 2).sum())
        if r2 < _POOR:
            notices.append(f"{label}: the surrogate explains {r2:.2f} of the variance; do not rely on its front")
        rows.append(row)
        fits.append(r2)
        flats.append(flat)
    return Surrogate(c.shape[1], chosen, np.stack(rows), tuple(fits), tuple(flats), degree, tuple(notices))
