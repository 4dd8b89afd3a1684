"""What an opened checkpoint or adapter is: plain data about weights on disk, without any weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import xxhash

from consilience.checkpoints.files import read_into
from consilience.checkpoints.sources import Source, Stored
from consilience.core.hashing import fingerprint

__all__ = ["Adapter", "Checkpoint", "LowRankPair", "WeightFile"]

_WHOLE_BYTES = 32 << 20
_SAMPLES = 32
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of weights as it was when opened."""

    path: Path
    size: int
    header_hash: str
    mtime_ns: int

    def identity(self) -> list[Any]:
        """Return what tells this file's weights from others.

        Files up to 32 MiB are hashed whole. Larger ones are told apart by size, header, time of change and 32 samples
        of 4 KiB, so that asking costs no pass over the weights.
        """
        digest = xxhash.xxh3_64()
        if self.size <= _WHOLE_BYTES:
            starts, length, extra = range(0, self.size, 1 << 20), 1 << 20, []
        else:
            step = (self.size - _SAMPLE_BYTES) // (_SAMPLES - 1)
            starts, length, extra = range(0, step * _SAMPLES, step), _SAMPLE_BYTES, [self.mtime_ns]
        for start in starts:
            buffer = bytearray(min(length, self.size - start))
            read_into(self.path, start, memoryview(buffer))
            digest.update(buffer)
        return [self.path.name, self.size, self.header_hash, digest.hexdigest(), *extra]


class LowRankPair(NamedTuple):
    """The two factors of one changed module, and the factor their product is scaled by."""

    a: Stored
    b: Stored
    scale: float
    kind: Literal["linear", "embedding", "conv"]


@dataclass(frozen=True)
class Adapter:
    """An opened LoRA adapter.

    `pairs` maps names of modules, as the adapter's maker saw them, to their factors; `replaced` maps names of tensors
    to those that stand in for the model's own (modules saved whole, biases).
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, LowRankPair]
    replaced: Mapping[str, Stored]
    base_model: str | None
    files: tuple[WeightFile, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of stored elements."""
        factors = sum(pair.a.numel + pair.b.numel for pair in self.pairs.values())
        return factors + sum(stored.numel for stored in self.replaced.values())

    @cached_property
    def fingerprint(self) -> str:
        """Checksum of what the adapter does; equal for equal files wherever they lie."""
        scales = {name: [pair.scale, pair.kind] for name, pair in self.pairs.items()}
        return fingerprint({"files": [file.identity() for file in self.files], "scales": scales})


@dataclass(frozen=True)
class Checkpoint:
    """An opened model: where every tensor is, and what else belongs to it.

    `reference` is as written; `folder` is where the side files are. `tensors` is in file order; tensors of a component
    in a sub-folder are named "unet/...". `tied` maps names that the files leave out to the stored tensor they share.
    `components` are the sub-folders with weights ("" is the folder itself), `weight_names` the file name of each.
    """

    reference: str
    name: str
    folder: Path
    tensors: Mapping[str, Source]
    config: Mapping[str, Any] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    adapters: tuple[Adapter, ...] = ()
    components: tuple[str, ...] = ("",)
    side_files: tuple[str, ...] = ()
    files: tuple[WeightFile, ...] = ()
    weight_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of stored elements; tied names count once."""
        return sum(source.numel for source in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors when stored."""
        return sum(source.nbytes for source in self.tensors.values())

    @cached_property
    def fingerprint(self) -> str:
        """Checksum of the weights' identity and the config, adapters included; computed when first asked for."""
        return fingerprint(
            {
                "files": [file.identity() for file in self.files],
                "config": self.config,
                "adapters": [adapter.fingerprint for adapter in self.adapters],
            }
        )
