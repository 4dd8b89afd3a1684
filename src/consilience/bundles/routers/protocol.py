"""What every router does: vectors of inputs to weights over experts and base; saved and loaded as plain data."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from consilience.checkpoints.header import read_header
from consilience.checkpoints.writer import CheckpointWriter, OutputTensor, plan_shards
from consilience.core.hashing import xxh3_hex
from consilience.core.records import read_record, write_record
from consilience.errors import Problems, RequestError
from consilience.merging.memory import as_source

__all__ = [
    "BASE",
    "Features",
    "Router",
    "Routing",
    "checked_features",
    "load_router",
    "read_arrays",
    "save_router",
    "write_arrays",
]

BASE = "base"
"""What "none of the experts" is called: the shared model."""

Features = NDArray[Any]
"""Vectors of inputs, (inputs, dimension); of texts, those of the bundle's shared encoder."""

_FORMAT = "router"
_VERSION = 1
_TENSORS = "router.safetensors"
_KINDS = {"pilots": "pilots", "centroid": "centroid", "logistic": "classifier", "perceptron": "perceptron"}


@dataclass(frozen=True)
class Routing:
    """Where inputs go. `names` are the experts and, last, "base"; `weights` (inputs, names) float64, rows sum to 1.

    >>> routing = Routing(("law", "health", "base"), np.array([[0.2, 0.7, 0.1], [0.0, 0.0, 1.0]]))
    >>> routing.chosen
    ('health', 'base')
    """

    names: tuple[str, ...]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def chosen(self) -> tuple[str, ...]:
        """The name of the largest weight of every input; of equal ones the first."""
        return tuple(self.names[place] for place in self.weights.argmax(axis=1))

    @property
    def experts(self) -> NDArray[np.float64]:
        """The weights of the experts, (inputs, experts); what they leave of 1 is the base's."""
        return self.weights[:, :-1]

    @property
    def entropy(self) -> NDArray[np.float64]:
        """Entropy of every input's weights, in nats: 0 where one name has all of it."""
        logs = np.log(self.weights, out=np.zeros_like(self.weights), where=self.weights > 0)
        found: NDArray[np.float64] = -(self.weights * logs).sum(axis=1)
        return found

    def hard(self) -> Routing:
        """Return the routing that gives every input to its largest weight alone."""
        one = np.zeros_like(self.weights)
        one[np.arange(len(self)), self.weights.argmax(axis=1)] = 1.0
        return Routing(self.names, one)


class Router:
    """What routers have in common; a subclass gives `scores`, `arrays`, `settings` and `restore`.

    experts: the names it routes to. dimension: length of the vectors it takes. threshold: an input whose confidence is
    below it goes to the base; None: no such rule.
    """

    kind: ClassVar[str]

    def __init__(self, experts: Sequence[str], dimension: int, threshold: float | None = None) -> None:
        if not experts or len(set(experts)) < len(experts) or BASE in experts:
            raise RequestError(f"router: experts {list(experts)}; name at least one, each once, none of them {BASE!r}")
        self.experts = tuple(experts)
        self.dimension = dimension
        self.threshold = threshold

    @property
    def names(self) -> tuple[str, ...]:
        """The experts and, last, the base."""
        return (*self.experts, BASE)

    def scores(self, features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weights (inputs, experts + 1), rows of which sum to 1, and confidences (inputs,)."""
        raise NotImplementedError

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the numbers it is made of."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return what else it is made of, as plain data."""
        raise NotImplementedError

    @classmethod
    def restore(
        cls, experts: Sequence[str], threshold: float | None, settings: Mapping[str, Any], arrays: Mapping[str, Any]
    ) -> Router:
        """Return the router that `arrays` and `settings` describe."""
        raise NotImplementedError

    def route(self, features: Features) -> Routing:
        """Return where inputs go.

        Raises RequestError for vectors of another dimension, and for NaN or infinity among them.
        """
        checked = checked_features(features, self.dimension)
        weights, confidence = self.scores(checked)
        if self.threshold is not None:
            unsure = confidence < self.threshold
            weights[unsure] = 0.0
            weights[unsure, -1] = 1.0
        return Routing(self.names, weights)

    def confidence(self, features: Features) -> NDArray[np.float64]:
        """Return what the threshold is compared with, (inputs,)."""
        return self.scores(checked_features(features, self.dimension))[1]

    def with_threshold(self, threshold: float | None) -> Router:
        """Return the same router with another threshold."""
        return self.restore(self.experts, threshold, self.settings(), self.arrays())

    @property
    def operations(self) -> int:
        """Multiplications and additions per input, beside those that make its vector."""
        return 2 * sum(int(array.size) for array in self.arrays().values() if array.dtype.kind == "f")


def checked_features(features: Features, dimension: int | None = None) -> NDArray[np.float64]:
    """Return vectors as float64 (inputs, dimension); see `Router.route` for what is refused."""
    found = np.asarray(features, np.float64)
    if found.ndim != 2 or (dimension is not None and found.shape[1] != dimension):
        wanted = "dimension" if dimension is None else dimension
        raise RequestError(
            f"router: vectors of shape {list(found.shape)}, expected (inputs, {wanted}); a router takes vectors of the "
            "model it was made with"
        )
    bad = ~np.isfinite(found).all(axis=1)
    if bad.any():
        raise RequestError(f"router: the vector of input {int(np.flatnonzero(bad)[0])} holds NaN or infinity")
    return found


def save_router(router: Router, folder: Path) -> None:
    """Write a router as router.json and router.safetensors, in place of the one in `folder`."""
    staged = folder.parent / f"{folder.name}.partial"
    shutil.rmtree(staged, ignore_errors=True)
    checksums = write_arrays(staged, _TENSORS, router.arrays())
    record = {
        "kind": router.kind,
        "experts": list(router.experts),
        "threshold": router.threshold,
        "settings": router.settings(),
        "tensors": checksums,
    }
    write_record(staged / "router.json", _FORMAT, _VERSION, record)
    shutil.rmtree(folder, ignore_errors=True)
    staged.rename(folder)


def load_router(folder: str | Path) -> Router:
    """Read what `save_router` wrote. Raises RequestError where it is something else, or damaged."""
    place = Path(folder)
    record = read_record(place / "router.json", _FORMAT, _VERSION)
    if record["kind"] not in _KINDS:
        raise RequestError(f"{place}: router {record['kind']!r} is unknown; there are {', '.join(_KINDS)}")
    arrays = read_arrays(place / _TENSORS, record["tensors"])
    made: type[Router] = import_module(f"consilience.bundles.routers.{_KINDS[record['kind']]}").KIND
    return made.restore(record["experts"], record["threshold"], record["settings"], arrays)


def write_arrays(folder: Path, file: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Write arrays as one safetensors file of `folder`, verify it, and return the checksums."""
    sources = {name: as_source(array) for name, array in arrays.items()}
    outputs = [OutputTensor(name, source.dtype, source.shape) for name, source in sources.items()]
    writer = CheckpointWriter(folder, plan_shards(outputs, file_names=file, components=False))
    writer.create()
    for name, source in sources.items():
        writer.write(name, 0, source.raw)
    writer.finish()
    checksums = {name: xxh3_hex(source.raw) for name, source in sources.items()}
    writer.verify(checksums)
    return checksums


def read_arrays(path: Path, checksums: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Read what `write_arrays` wrote. Raises RequestError naming arrays that are not as they were written."""
    problems = Problems()
    arrays = {}
    for name, stored in read_header(path).tensors.items():
        raw = stored.read_raw(0, stored.numel)
        if xxh3_hex(raw) != checksums.get(name):
            problems.add(f"tensor {name!r} is not as it was written")
        arrays[name] = raw.reshape(stored.shape)
    problems.raise_if_any(RequestError, str(path))
    return arrays
