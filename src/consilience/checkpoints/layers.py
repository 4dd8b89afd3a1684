"""Layers of a model, found from the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["LayerScheme", "find_layers"]

_NUMBER = re.compile(r"(?:^|(?<=[./]))\d+(?=\.)")
_COUNT_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
    "depth",
)
_USUAL_NAMES = {"layers", "layer", "h", "block", "blocks", "resblocks"}


@dataclass(frozen=True, slots=True)
class LayerScheme:
    """How layers are numbered in tensor names.

    `containers` maps each prefix before a layer number ("model.layers.") to its number of layers, the main one first.
    """

    containers: Mapping[str, int]

    @property
    def container(self) -> str | None:
        """The main container, None for a model without layers."""
        return next(iter(self.containers), None)

    @property
    def count(self) -> int:
        """Number of layers of the main container."""
        return next(iter(self.containers.values()), 0)

    def split(self, name: str) -> tuple[str, int, str] | None:
        """Return (container, layer, rest of the name), or None for a tensor outside the layers.

        >>> LayerScheme({"h.": 2}).split("h.1.mlp.weight"), LayerScheme({"h.": 2}).split("wte.weight")
        (('h.', 1, 'mlp.weight'), None)
        """
        return next((parts for parts in _numbered_parts(name) if parts[0] in self.containers), None)

    def rename(self, name: str, new_index: int) -> str:
        """Return the name of the same tensor in another layer.

        >>> LayerScheme({"h.": 2}).rename("h.1.mlp.weight", 7)
        'h.7.mlp.weight'

        Raises ValueError for a tensor outside the layers.
        """
        parts = self.split(name)
        if parts is None:
            raise ValueError(
                f"tensor {name!r} is in no layer of {', '.join(self.containers) or 'a model without layers'}"
            )
        return f"{parts[0]}{new_index}.{parts[2]}"


def find_layers(names: Iterable[str], config: Mapping[str, Any] | None = None) -> LayerScheme:
    """Find the layers of a model.

    >>> find_layers(["h.0.w", "h.1.w", "wte.weight"]).containers
    {'h.': 2}

    A container is a prefix whose first number runs from 0 without gaps. It counts when the config (or a nested one)
    has that number of layers, when it has a usual name (layers, layer, h, block, blocks), or when two layers or more
    hold the same tensors. First comes the container the config's number fits, then the longest.
    """
    held: dict[str, dict[int, set[str]]] = {}
    for name in names:
        for container, index, suffix in _numbered_parts(name):
            held.setdefault(container, {}).setdefault(index, set()).add(suffix)
    declared = _declared_counts(config or {})
    found: dict[str, int] = {}
    for container, layers in sorted(held.items(), key=lambda item: len(item[0])):
        count = len(layers)
        if set(layers) != set(range(count)) or _is_inside(container, found):
            continue
        usual = re.split(r"[./]", container.rstrip("."))[-1] in _USUAL_NAMES
        repeats = count > 1 and len({frozenset(suffixes) for suffixes in layers.values()}) == 1
        if usual or repeats or (count in declared and count > 1):
            found[container] = count
    order = sorted(found, key=lambda container: (_rank(found[container], declared), -found[container]))
    return LayerScheme({container: found[container] for container in order})


def _numbered_parts(name: str) -> Iterator[tuple[str, int, str]]:
    """Yield (before, number, after) for every part of a name that is a number, outermost first."""
    for match in _NUMBER.finditer(name):
        yield name[: match.start()], int(match[0]), name[match.end() + 1 :]


def _is_inside(container: str, outer: Container[str]) -> bool:
    """Whether a container belongs to one layer of another, as the experts of a layer do."""
    return any(part[0] in outer for part in _numbered_parts(container))


def _rank(count: int, declared: list[int]) -> int:
    return declared.index(count) if count in declared else len(declared)


def _declared_counts(config: Mapping[str, Any]) -> list[int]:
    """Return the numbers of layers a config names, the text model's first."""
    parts = [config.get("text_config"), config, *config.values()]
    counts: list[int] = []
    for part in parts:
        if isinstance(part, Mapping):
            counts.extend(value for key in _COUNT_KEYS if isinstance(value := part.get(key), int))
    return list(dict.fromkeys(counts))
