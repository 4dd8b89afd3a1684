"""Adapters: the LoRA adapter of each expert, as its files are, beside the base that all share.

Nothing is lost and nothing is computed when the bundle is made; an expert's weights are those of BASE+ADAPTER bit for
bit. Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from consilience.bundles.residuals.protocol import Creation
from consilience.bundles.weights import Given
from consilience.checkpoints.adapter import apply_adapter
from consilience.checkpoints.model import Adapter, Checkpoint
from consilience.checkpoints.open import open_adapter
from consilience.core.atomic import storage_error
from consilience.errors import Problems

__all__ = ["KIND", "LoraAdapter"]


class LoraAdapter:
    """LoRA adapters; every expert is named BASE+ADAPTER."""

    kind: ClassVar[str] = "adapter"
    shares_base: ClassVar[bool] = True

    def settings(self) -> dict[str, Any]:
        """Return nothing: there is nothing to set."""
        return {}

    def check(self, base: Given, experts: Mapping[str, Given], problems: Problems) -> None:
        """Report experts that are no adapter of this base."""
        for name, expert in experts.items():
            adapters = expert.checkpoint.adapters if expert.checkpoint is not None else ()
            if len(adapters) != 1:
                found = f"{len(adapters)} adapters" if adapters else "no adapter"
                problems.add(f"experts.{name}: {expert.reference or 'a state dict'} has {found}; name BASE+ADAPTER")
            elif base.checkpoint is None or _weight_files(expert.checkpoint) != _weight_files(base.checkpoint):
                problems.add(f"experts.{name}: {expert.reference} is an adapter of other weights than the base's")

    def write(self, creation: Creation) -> dict[str, Any]:
        """Copy the adapters' files."""
        files: dict[str, list[str]] = {}
        for place, (name, expert) in enumerate(creation.experts.items()):
            creation.job.check()
            assert expert.checkpoint is not None
            adapter: Adapter = expert.checkpoint.adapters[0]
            target = creation.folder / f"experts/{place}"
            kept = [adapter.folder / "adapter_config.json", *(file.path for file in adapter.files)]
            try:
                target.mkdir(parents=True, exist_ok=True)
                for path in kept:
                    shutil.copyfile(path, target / path.name)
            except OSError as error:
                raise storage_error(target, error) from error
            files[name] = [(target / path.name).relative_to(creation.folder).as_posix() for path in kept]
        return {"files": files}

    @staticmethod
    def open(folder: Path, record: Mapping[str, Any], expert: str, shared: Checkpoint) -> Checkpoint:
        """Return the base with the adapter applied."""
        place = (folder / record["files"][expert][0]).parent
        return apply_adapter(shared, open_adapter(place))


KIND = LoraAdapter


def _weight_files(checkpoint: Checkpoint | None) -> list[Any]:
    return [] if checkpoint is None else [file.identity() for file in checkpoint.files]
