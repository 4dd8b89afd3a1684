"""The list of methods as plain data, for tables and help."""

from __future__ import annotations

from typing import Any

from consilience.merging.method import find_method, method_names

__all__ = ["methods"]


def methods() -> list[dict[str, Any]]:
    """Return every method: name, summary, what it needs, parameters with defaults, laws.

    >>> [m["base"] for m in methods() if m["name"] in ("linear", "ties")]
    ['none', 'required']
    """
    return [_entry(name) for name in method_names()]


def _entry(name: str) -> dict[str, Any]:
    method = find_method(name)
    parameters = {
        p.name: {
            "type": p.describe(),
            "per_expert": p.per_expert,
            "default": None if p.required else (p.default[0] if p.per_expert else p.default),
            "required": p.required,
        }
        for p in method.parameters.values()
    }
    return {
        "name": name,
        "summary": method.summary,
        "documentation": method.documentation,
        "base": method.base,
        "experts": [method.min_experts, method.max_experts],
        "parameters": parameters,
        "aux": {kind: {"per_expert": a.per_expert, "shape": a.shape} for kind, a in method.aux.items()},
        "laws": sorted(method.laws),
    }
