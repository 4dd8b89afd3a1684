"""YAML documents that remember the line of every key, so that problems can name it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from consilience.errors import Problems, RecipeError

__all__ = ["Located", "load_located"]

Path = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads 1e-5 as a number, as YAML 1.2 does."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


@dataclass(frozen=True)
class Located:
    """One document: its plain value, and the line (from 1) where each key or list entry stands."""

    value: Any
    lines: Mapping[Path, int]

    def where(self, *path: str | int) -> str:
        """Return a place in words.

        >>> load_located("models:\\n- weight: 1", "r")[0].where("models", 0, "weight")
        'models[0].weight (line 2)'
        """
        words = ""
        for part in path:
            words += f"[{part}]" if isinstance(part, int) else f".{part}" if words else part
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return f"{words} (line {self.lines[path[:length]]})"
        return words


def load_located(text: str, origin: str) -> list[Located]:
    """Return every document of a text that is not empty.

    >>> load_located("a: 1e-5\\n---\\nb: 2", "r")[0].value
    {'a': 1e-05}

    Raises RecipeError naming `origin` where the text is not YAML or a key stands twice.
    """
    documents = []
    problems = Problems()
    loader = _Loader(text)
    try:
        while loader.check_node():
            walk = _Walk(loader, problems)
            node = loader.get_node()
            value = walk.value(node, ()) if node is not None else None
            if value is not None:
                documents.append(Located(value, walk.lines))
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin}: not valid YAML: {error}") from error
    finally:
        loader.dispose()
    problems.raise_if_any(RecipeError, origin)
    return documents


class _Walk:
    """Turns nodes into plain values; an aliased node becomes one shared value."""

    def __init__(self, loader: _Loader, problems: Problems) -> None:
        self.loader = loader
        self.problems = problems
        self.lines: dict[Path, int] = {}
        self.known: dict[int, Any] = {}
        self.open: set[int] = set()

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if id(node) in self.open:
            self.problems.add(f"line {node.start_mark.line + 1}: an alias refers to the value that contains it")
            return None
        if id(node) not in self.known:
            self.open.add(id(node))
            self.known[id(node)] = self._build(node, path)
            self.open.discard(id(node))
        return self.known[id(node)]

    def _build(self, node: yaml.Node, path: Path) -> Any:
        if isinstance(node, yaml.SequenceNode):
            return [self.value(entry, (*path, index)) for index, entry in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self.loader.construct_object(node, deep=True)
        self._refuse_twice(node)
        self.loader.flatten_mapping(node)
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.loader.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                self.problems.add(f"line {key_node.start_mark.line + 1}: {key!r} cannot be a key; keys are texts")
                continue
            self.lines[(*path, str(key))] = key_node.start_mark.line + 1
            mapping[key] = self.value(value_node, (*path, str(key)))
        return mapping

    def _refuse_twice(self, node: yaml.MappingNode) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if key_node.value in first and key_node.value != "<<":
                self.problems.add(
                    f"line {line}: the key {key_node.value!r} stands twice in one mapping, "
                    f"first in line {first[key_node.value]}; remove one"
                )
            if isinstance(key_node, yaml.ScalarNode):
                first[key_node.value] = line
