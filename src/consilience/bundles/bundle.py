"""Bundles: opened from disk; every expert is a checkpoint whose tensors are computed when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.bundles.format import ROUTER, SHARED, read_bundle, verify_files
from consilience.bundles.residuals.protocol import OTHER_SHAPES, residual_kind
from consilience.bundles.weights import copy_model, is_float, read_state
from consilience.checkpoints.model import Checkpoint, WeightFile
from consilience.checkpoints.open import open_checkpoint
from consilience.core.jobs import MANIFEST, Job
from consilience.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from consilience.bundles.encoding import BundleEncoder
    from consilience.bundles.routers.protocol import Router, Routing

__all__ = ["Bundle"]


@dataclass(frozen=True)
class Bundle:
    """Several experts in one folder: shared weights, a residual each, and perhaps a router. Made by `create_bundle`.

    `folder` is where it is, `record` the content of its consilience.json. See `Bundle.open`.
    """

    folder: Path
    record: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Open a bundle; no weights are read.

        Raises RequestError where the folder is no bundle or of a newer format, CheckpointError where files are missing
        or cut.
        """
        return cls(Path(folder), read_bundle(Path(folder)))

    @property
    def experts(self) -> tuple[str, ...]:
        """The names of the experts, in order."""
        return tuple(self.record["experts"])

    @property
    def kind(self) -> str:
        """The kind of residual."""
        return str(self.record["residual"]["kind"])

    @cached_property
    def shared(self) -> Checkpoint:
        """The model that all experts share, and that is used where none of them fits."""
        return open_checkpoint(self.folder / SHARED)

    def expert(self, name: str) -> Checkpoint:
        """Return an expert as an opened checkpoint; its weights are computed when they are read.

        Whatever takes a checkpoint takes it: `load_encoder`, a recipe's plan, `create_bundle`. Raises RequestError for
        an unknown name.
        """
        self._known(name)
        made = residual_kind(self.kind).open(self.folder, self.record["residual"], name, self.shared)
        behind = [path for path in self._files_behind(name) if not path.startswith(f"{SHARED}/")]
        files = [*self.shared.files, *(self._weight_file(path) for path in behind)]
        return replace(made, reference=f"{self.folder}#{name}", name=name, files=tuple(files))

    def _weight_file(self, relative: str) -> WeightFile:
        """Describe a file so that experts have identities of their own."""
        path, known = self.folder / relative, self.record["files"][relative]
        mark = f"{self.record['identity']} {known['xxh3']}"
        return WeightFile(path, known["bytes"], mark, path.stat().st_mtime_ns)

    def state(self, name: str) -> dict[str, Any]:
        """Return an expert's weights as a state dict of PyTorch tensors. "base" gives the shared weights."""
        return read_state((self.shared if name == "base" else self.expert(name)).tensors)

    def mix(self, weights: Mapping[str, float]) -> dict[str, Any]:
        """Return shared + sum of weight * (expert - shared), tensor by tensor, as a state dict of PyTorch tensors.

        weights: of some experts, any numbers; what they leave of 1 is the shared model's. "base" may be named too.
        Sums are made in float64 and rounded once. Raises RequestError for unknown names, and for experts that have
        shapes of their own.
        """
        for name in weights:
            self._known(name, base=True)
        if any(weight for name, weight in weights.items() if name != "base"):
            self.require_alike()
        shared = self.state("base")
        changes: dict[str, Any] = {}
        for expert, weight in weights.items():
            if expert == "base" or not weight:
                continue
            for name, source in self.expert(expert).tensors.items():
                if is_float(source) and source is not self.shared.tensors.get(name):
                    change = weight * (read_state({name: source})[name].double() - shared[name].double())
                    changes[name] = changes[name] + change if name in changes else change
        return {n: (t.double() + changes[n]).to(t.dtype) if n in changes else t for n, t in shared.items()}

    def require_alike(self) -> None:
        """Raise RequestError where experts have shapes of their own, so that they are used one at a time."""
        if self.kind in OTHER_SHAPES:
            raise RequestError(
                f"bundle {self.folder}: its experts are kept as {self.kind!r} and differ in shape from the shared "
                "model, so they cannot be mixed or stand in for it; open one (Bundle.expert, Bundle.state) or write "
                "it as a model of its own (Bundle.expand)"
            )

    def expand(self, name: str, out: str | Path) -> Path:
        """Write an expert as an ordinary model folder, with the side files, and return the folder.

        Every file it is made of is verified first; what is written is verified too, and an interrupted call resumes.
        Raises RequestError, OutputError, VerificationError, StorageError.
        """
        expert = self.expert(name)
        with Job(Path(out), kind="bundle expert", request={"bundle": self.record["identity"], "expert": name}) as job:
            self.verify(name)
            copy_model(job, job.work, expert.tensors, expert)
            job.publish()
        return Path(out)

    def verify(self, expert: str | None = None) -> None:
        """Read files and compare checksums: those behind one expert, or all. Raises VerificationError."""
        if expert is not None:
            self._known(expert)
        verify_files(self.folder, self.record, self._files_behind(expert))

    def _files_behind(self, expert: str | None) -> list[str]:
        """Return the files that an expert is made of, or all."""
        others = {path for name, own in self._own_files.items() if name != expert for path in own}
        return [path for path in self.record["files"] if expert is None or path not in others]

    @property
    def _own_files(self) -> Mapping[str, list[str]]:
        found: Mapping[str, list[str]] = self.record["residual"]["files"]
        return found

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes: "shared" model, "multi_task" model of masks, each expert's residual ("experts.NAME"), "router", all
        "files" together with the record, and the "full" experts that the bundle stands for.
        """
        known = {path: int(entry["bytes"]) for path, entry in self.record["files"].items()}
        found = {"shared": sum(size for path, size in known.items() if path.startswith(f"{SHARED}/"))}
        multi_task = sum(size for path, size in known.items() if path.startswith("multi_task/"))
        found |= {"multi_task": multi_task} if multi_task else {}
        found |= {f"experts.{name}": sum(known[path] for path in own) for name, own in self._own_files.items()}
        router = sum(path.stat().st_size for path in (self.folder / ROUTER).glob("*"))
        found |= {"router": router} if router else {}
        files = sum(known.values()) + router + (self.folder / MANIFEST).stat().st_size
        return {**found, "files": files, "full": sum(self.record["expert_bytes"].values())}

    def info(self) -> list[tuple[str, int, float]]:
        """Return the table of sizes: what, bytes, share of the full experts' bytes."""
        sizes = self.sizes
        return [(name, size, size / max(sizes["full"], 1)) for name, size in sizes.items()]

    def density(self, name: str) -> float:
        """Return the share of weights that an expert's mask has. Raises RequestError where there are no masks."""
        self._known(name)
        if "masks" not in self.record["residual"]:
            raise RequestError(f"bundle {self.folder}: its experts are kept as {self.kind!r}, without masks")
        masks = self.record["residual"]["masks"]
        weights = sum(self.shared.tensors[tensor].numel for tensor in masks)
        return float(sum(int(found[name][2]) for found in masks.values()) / max(weights, 1))

    @cached_property
    def router(self) -> Router | None:
        """The router in the bundle, or None."""
        from consilience.bundles.routers.protocol import load_router

        return load_router(self.folder / ROUTER) if (self.folder / ROUTER).is_dir() else None

    def set_router(self, router: Router) -> Bundle:
        """Write a router into the bundle, in place of the one there, and return the bundle opened again.

        Raises RequestError where it routes to experts that are not here.
        """
        from consilience.bundles.routers.protocol import save_router

        for name in router.experts:
            self._known(name)
        save_router(router, self.folder / ROUTER)
        return Bundle.open(self.folder)

    @cached_property
    def encoder(self) -> BundleEncoder:
        """The bundle as a text encoder; see `BundleEncoder`."""
        from consilience.bundles.encoding import BundleEncoder

        return BundleEncoder(self)

    def route(self, texts: Sequence[str]) -> Routing:
        """Return, for every text, the weights of the experts and of the base. Raises RequestError without a router."""
        return self.encoder.route(texts)

    def encode(self, texts: Sequence[str], *, prompt: str | None = None) -> NDArray[np.float32]:
        """Return one vector per query: every text is routed, and encoded by its experts; float32 (texts, dimension).

        Raises RequestError where experts have shapes of their own.
        """
        self.require_alike()
        return self.encoder.encode(texts, prompt=prompt)

    def encode_documents(
        self, texts: Sequence[str], *, space: str | None = None, prompt: str | None = None
    ) -> NDArray[np.float32]:
        """Return one vector per document; see `BundleEncoder.encode_documents` about spaces."""
        return self.encoder.encode_documents(texts, space=space, prompt=prompt)

    def _known(self, name: str, *, base: bool = False) -> None:
        names = (*self.experts, *(["base"] if base else []))
        if name not in names:
            hint = did_you_mean(name, names) or f"; there are {', '.join(names)}"
            raise RequestError(f"bundle {self.folder}: no expert {name!r}{hint}")
