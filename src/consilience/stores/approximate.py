"""Approximate search of vectors by faiss: an index beside the segments, with its recall against exact search."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.core.atomic import storage_error, sync_folder
from consilience.core.hashing import file_xxh3
from consilience.errors import RequestError, VerificationError, did_you_mean
from consilience.stores.segments import Arrays, open_segment, remove_segment, write_segment
from consilience.stores.vectors import Found, merge_found, rows_of, search_vectors

__all__ = ["APPROXIMATE_KINDS", "Approximate", "ApproximateKind", "Approximates", "kept", "known"]

ApproximateKind = Literal["hnsw", "ivfflat", "ivfpq", "none"]
APPROXIMATE_KINDS: tuple[ApproximateKind, ...] = ("hnsw", "ivfflat", "ivfpq", "none")

_LINKS, _BUILD_DEPTH, _DEPTH = 32, 100, 128  # of hnsw: neighbours of a vector, candidates while building and searching
_PROBED = 0.1  # share of the lists of an inverted file that are looked at, at least _PROBES of them
_PROBES = 8
_KEY = "approximate "  # before the space, in what the commit keeps
_CODES = 4  # dimensions behind a byte of a product quantiser
_RESCORED = 10  # times k candidates of quantised vectors are compared exactly
_LEAST = {"hnsw": 1, "ivfflat": 1_000, "ivfpq": 10_000}  # documents that it takes


@dataclass
class Approximate:
    """An opened index of a space: the rows of `index` are the documents `numbers`, all below `covered`."""

    kind: str
    index: Any
    numbers: NDArray[np.int64]
    covered: int
    _state: tuple[NDArray[np.bool_], Any, NDArray[np.bool_] | None] | None = field(default=None, repr=False)

    def search(
        self, segments: Sequence[Arrays], queries: NDArray[np.float32], k: int, live: NDArray[np.bool_]
    ) -> list[Found]:
        """Return the nearest live documents: those that it covers approximately, newer ones exactly."""
        count = min(k * (_RESCORED if self.kind == "ivfpq" else 1), len(self.numbers))
        selected, newer = self._of(live)
        scores, rows = self.index.search(queries, count, params=self._parameters(count, selected))
        numbers = np.where(rows >= 0, self.numbers[rows], -1)
        scores = np.where(rows >= 0, scores, -np.inf).astype(np.float32)
        if self.kind == "ivfpq":
            scores = _exact_scores(segments, queries, numbers)
        if newer is not None:
            exact = search_vectors(segments, queries, k, newer)
            found = [
                (np.concatenate([own, more.numbers]), np.concatenate([values, more.scores]))
                for own, values, more in zip(numbers, scores, exact, strict=True)
            ]
            return [merge_found(own[None], values[None], k)[0] for own, values in found]
        return merge_found(numbers, scores, k)

    def _of(self, live: NDArray[np.bool_]) -> tuple[Any, NDArray[np.bool_] | None]:
        """Return which rows may be found, None for all, and which documents it does not cover; kept for a commit."""
        state = self._state
        if state is None or state[0] is not live:
            there, newer = live[self.numbers], live.copy()
            newer[: self.covered] = False
            selected = None if there.all() else _faiss().IDSelectorBitmap(np.packbits(there, bitorder="little"))
            state = self._state = live, selected, newer if newer.any() else None
        return state[1], state[2]

    def _parameters(self, count: int, selected: Any) -> Any:
        faiss = _faiss()
        if self.kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=max(_DEPTH, 2 * count), sel=selected)
        probes = max(_PROBES, int(_PROBED * self.index.nlist))
        made = faiss.SearchParametersIVF if self.kind == "ivfflat" else faiss.IVFPQSearchParameters
        return made(nprobe=probes, sel=selected)


class Approximates:
    """The approximate indexes in the folder of an index, one for a space; which are valid, the commit says."""

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self.folder, self._verify = folder, verify
        self._opened: dict[str, Approximate] = {}
        self._opening = threading.Lock()

    def make(
        self,
        space: str,
        kind: str,
        rows: Mapping[str, NDArray[Any]],
        segments: Sequence[Arrays],
        *,
        generation: int,
        k: int,
        sample: int,
    ) -> dict[str, Any]:
        """Build and write the index of a space, and return what the commit keeps of it, the recall among it.

        rows: numbers and vectors of all documents there are. Raises RequestError for unknown kinds and too few
        documents, StorageError where it cannot be written.
        """
        numbers, vectors = rows["numbers"], rows.get("vectors", np.empty((0, 1), np.float32))
        if kind not in _LEAST:
            raise RequestError(f"approximate index {kind!r} is unknown{did_you_mean(kind, APPROXIMATE_KINDS)}")
        if len(numbers) < _LEAST[kind]:
            raise RequestError(
                f"space {space!r} has {len(numbers)} documents; {kind} takes at least {_LEAST[kind]}, and exact search "
                "is fast with so few"
            )
        built = Approximate(kind, _built(kind, vectors), numbers, int(numbers.max()) + 1)
        drawn = np.random.default_rng(0).permutation(len(numbers))[:sample]
        live = np.zeros(built.covered, bool)
        live[numbers] = True
        found = built.search(segments, vectors[drawn], k, live)
        exact = search_vectors(segments, vectors[drawn], k, live)
        same = [len(np.intersect1d(a.numbers, b.numbers)) for a, b in zip(found, exact, strict=True)]
        recall = sum(same) / max(sum(map(len, exact)), 1)
        name = f"{generation:012d}-{space}"
        files = write_segment(self.folder, name, {"numbers": numbers})
        files["faiss"] = self._write(name, built.index)
        self._opened[name] = built
        return {"kind": kind, "recall": recall, "k": k, "sample": len(drawn), "name": name, "files": files}

    def find(self, space: str, meta: Mapping[str, Any]) -> Approximate | None:
        """Return the index of a space, where the commit has one. Raises VerificationError for a damaged file."""
        facts = known(space, meta)
        if facts is None:
            return None
        name = facts["name"]
        with self._opening:
            if name not in self._opened:
                arrays = dict(facts["files"])
                written = arrays.pop("faiss")
                try:
                    numbers = open_segment(self.folder, name, arrays, verify=self._verify)["numbers"]
                    index = self._read(name, written)
                except FileNotFoundError as error:
                    raise VerificationError(f"{error.filename}: the file is gone; make the index again") from error
                self._opened[name] = Approximate(facts["kind"], index, numbers, int(numbers.max()) + 1)
            return self._opened[name]

    def sweep(self, meta: Mapping[str, Any]) -> None:
        """Delete files that no commit lists."""
        wanted = {facts["name"] for key in meta if (facts := known(key.removeprefix(_KEY), meta)) is not None}
        for path in self.folder.glob("*.*"):
            name = path.name.split(".")[0]
            if name not in wanted:
                path.unlink(missing_ok=True)
                self._opened.pop(name, None)

    def _write(self, name: str, index: Any) -> dict[str, Any]:
        faiss = _faiss()
        path = self.folder / f"{name}.faiss"
        try:
            path.write_bytes(faiss.serialize_index(index).data)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sync_folder(self.folder)
        except OSError as error:
            path.unlink(missing_ok=True)
            remove_segment(self.folder, name)
            raise storage_error(path, error) from error
        return {"bytes": path.stat().st_size, "xxh3": file_xxh3(path)}

    def _read(self, name: str, written: Mapping[str, Any]) -> Any:
        faiss = _faiss()
        path = self.folder / f"{name}.faiss"
        if path.stat().st_size != written["bytes"] or (self._verify and file_xxh3(path) != written["xxh3"]):
            raise VerificationError(f"{path} is not as it was written; make the approximate index again")
        return faiss.read_index(str(path))


def _faiss() -> Any:
    return import_module("faiss")  # its types do not know its search parameters


def known(space: str, meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a commit keeps of the approximate index of a space."""
    kept = meta.get(_KEY + space)
    found: dict[str, Any] | None = json.loads(kept) if kept else None
    return found


def kept(space: str, facts: Mapping[str, Any] | None) -> dict[str, str]:
    """Return facts as a commit keeps them."""
    return {_KEY + space: json.dumps(facts)}


def _built(kind: str, vectors: NDArray[np.float32]) -> Any:
    faiss = _faiss()
    count, dimension = vectors.shape
    metric = faiss.METRIC_INNER_PRODUCT
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, _LINKS, metric)
        index.hnsw.efConstruction = _BUILD_DEPTH
    else:
        lists = min(int(4 * count**0.5), count // 39)
        coarse = faiss.IndexFlatIP(dimension)
        if kind == "ivfflat":
            index = faiss.IndexIVFFlat(coarse, dimension, lists, metric)
        else:
            parts = next(n for n in range(max(dimension // _CODES, 1), 0, -1) if dimension % n == 0)
            index = faiss.IndexIVFPQ(coarse, dimension, lists, parts, 8, metric)
        index.train(vectors)
    index.add(vectors)
    return index


def _exact_scores(
    segments: Sequence[Arrays], queries: NDArray[np.float32], numbers: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the products of every query with its own candidates; minus infinity where there is none."""
    scores = np.full(numbers.shape, -np.inf, np.float32)
    for place, own in enumerate(numbers):
        there = own >= 0
        vectors = rows_of(segments, "", "dense", queries.shape[1], own[there].tolist())
        scores[place, there] = vectors @ queries[place]
    return scores
