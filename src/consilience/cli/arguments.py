"""What several verbs read from the command line in the same way."""

from __future__ import annotations

from typing import Any

from consilience.errors import Problems

__all__ = ["named_values", "plain_value"]


def named_values(option: str, written: list[str], problems: Problems) -> dict[str, str]:
    """Return name -> text of NAME=VALUE arguments.

    >>> named_values("--set", ["steps=3"], Problems())
    {'steps': '3'}
    """
    found: dict[str, str] = {}
    for text in written:
        name, mark, value = text.partition("=")
        if not mark or not name or not value:
            problems.add(f"{option} {text!r}: write NAME=VALUE")
        elif name in found:
            problems.add(f"{option}: {name!r} stands twice")
        found[name] = value
    return found


def plain_value(text: str) -> Any:
    """Return a value as YAML reads it: a number, a truth value, a list, a text.

    >>> plain_value("0.5"), plain_value("true"), plain_value("tensor")
    (0.5, True, 'tensor')
    """
    import yaml

    return yaml.safe_load(text)
