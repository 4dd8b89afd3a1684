"""The list of methods as plain data, for tables and help."""

from __future__ import annotations

import re
from typing import Any

from consilience.merging.method import Method, find_method, method_names

__all__ = ["methods"]


def methods() -> list[dict[str, Any]]:
    """Return every method: name, summary, what it needs, parameters with defaults, laws, passes, when to use it.

    >>> [m["base"] for m in methods() if m["name"] in ("linear", "ties")]
    ['none', 'required']

    `passes` counts how often the inputs are read with the defaults; `scope` is where statistics are kept ("tensor",
    "global", or "none"); `matrix` says that whole matrices are decomposed or optimised (PyTorch).
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
    steps = method.build(_example(method))
    return {
        "name": name,
        "summary": method.summary,
        "documentation": method.documentation,
        "use": _paragraph(method, "Use"),
        "avoid": _paragraph(method, "Avoid"),
        "base": method.base,
        "experts": [method.min_experts, method.max_experts],
        "parameters": parameters,
        "aux": {kind: {"per_expert": a.per_expert, "shape": a.shape} for kind, a in method.aux.items()},
        "scope": steps.scope if steps.surveys else "none",
        "passes": 1 + len(steps.surveys),
        "matrix": steps.whole is not None,
        "laws": sorted(method.laws),
    }


def _example(method: Method) -> dict[str, Any]:
    """Return parameters that the method can be built with: its defaults, and 0.5 where there is none."""
    experts = max(method.min_experts, min(2, method.max_experts or 2))
    values = method.defaults(experts)
    for name, parameter in method.parameters.items():
        if parameter.required:
            values[name] = (0.5,) * experts if parameter.per_expert else 0.5
        if parameter.chosen:
            values[name] = -1
    return values


def _paragraph(method: Method, label: str) -> str:
    """Return the text of the paragraph "LABEL: ..." of a method's documentation."""
    found = re.search(rf"^{label}: (.+?)(?=\n\n|\n[A-Z]\w+: |\Z)", method.documentation, re.DOTALL | re.MULTILINE)
    return " ".join(found[1].split()) if found else ""
