"""The model card of a merge: what it is made of and under which licence, for people and for a model hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from consilience.merging.plan import Plan

__all__ = ["combined_licence", "model_card"]


def _front_matter(folder: Path) -> dict[str, Any]:
    """Return the metadata block at the head of a folder's README, empty where there is none."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return {}
    try:
        head = yaml.safe_load(text.split("---", 2)[1])
    except yaml.YAMLError:
        return {}
    return head if isinstance(head, dict) else {}


def combined_licence(licences: Mapping[str, str | None]) -> str | None:
    """Return the one licence that all inputs state, "other" where they differ, None where one says nothing.

    >>> combined_licence({"a": "mit", "b": "mit"}), combined_licence({"a": "mit", "b": "apache-2.0"})
    ('mit', 'other')
    """
    known = {licence for licence in licences.values() if licence}
    if len(known) > 1:
        return "other"
    return known.pop() if known and all(licences.values()) else None


def model_card(plan: Plan, manifest: Mapping[str, Any]) -> str:
    """Return the README of a merged model."""
    licences = {name: _front_matter(model.folder).get("license") for name, model in plan.models.items()}
    licence = combined_licence({k: str(v) if v else None for k, v in licences.items()})
    head: dict[str, Any] = {
        "base_model": [model.reference for model in plan.models.values()],
        "tags": ["merge", "consilience"],
    }
    donor = _front_matter(plan.donor.folder)
    for key in ("library_name", "pipeline_tag", "language"):
        if key in donor:
            head[key] = donor[key]
    if licence:
        head["license"] = licence
    rows = "\n".join(
        f"| {name} | {'base' if name == plan.request.base else 'expert'} | `{model.reference}` | "
        f"{licences[name] or 'not stated'} |"
        for name, model in plan.models.items()
    )
    notices = "".join(f"- {notice}\n" for notice in plan.notices)
    error = manifest.get("truncation_error")
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"
        f"# Merge by `{plan.request.method}`\n\n"
        f"Made with consilience {manifest['consilience']}. {manifest['parameters']:,} parameters; checksum of all "
        f"tensors `{manifest['checksum']}`, seed {manifest['seed']}; the same recipe gives the same bytes.\n\n"
        + (f"Relative truncation error of the adapter: {error:.4f}.\n\n" if error is not None else "")
        + f"| model | role | reference | licence |\n|---|---|---|---|\n{rows}\n\n"
        + (f"## Notices\n\n{notices}\n" if notices else "")
        + f"## Recipe\n\n```yaml\n{plan.request.text.strip()}\n```\n"
    )
