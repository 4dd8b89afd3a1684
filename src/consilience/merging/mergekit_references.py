"""How mergekit's recipes refer to models, and the names that models go by here."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Reference", "ReferenceFault", "model_names", "parse_reference"]


class ReferenceFault(ValueError):
    """What is wrong with a reference, in words."""


@dataclass(frozen=True)
class Reference:
    """A model, and the adapter to apply to it first: `path[@revision][+adapter[@revision]]`.

    `ignored` are keys that have no effect here.
    """

    model: str
    adapter: str | None = None
    ignored: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The reference in the grammar of `open_checkpoint`."""
        return f"{self.model}+{self.adapter}" if self.adapter else self.model

    @property
    def identity(self) -> str:
        """Equal for two spellings of one reference."""
        return "+".join(posixpath.normpath(part) for part in (self.model, self.adapter) if part)

    @property
    def parts(self) -> list[str]:
        """Parts of the path that names it, the adapter's where there is one, without a revision."""
        path = (self.adapter or self.model).split("@")[0].removeprefix("package:")
        return [part for part in posixpath.normpath(path).split("/") if part not in ("", ".")]


def parse_reference(value: Any) -> Reference:
    """Read a reference written as text or as a mapping.

    >>> parse_reference("org/model@v1+some/adapter").adapter
    'some/adapter'
    >>> parse_reference({"model": {"path": "m", "revision": "r"}, "lora": "a"}).text
    'm@r+a'

    Raises ReferenceFault saying what is wrong.
    """
    if isinstance(value, str):
        pieces = value.split("+")
        if len(pieces) > 2:
            raise ReferenceFault(f"{value!r} has more than one '+'; write model+adapter")
        parts = [_path(piece, value) for piece in pieces]
        return Reference(parts[0], parts[1] if len(parts) == 2 else None)
    if not isinstance(value, Mapping):
        raise ReferenceFault(f"{value!r} is not a model; write a path, org/name, or {{model: ..., lora: ...}}")
    if "model" not in value:
        raise ReferenceFault(f"the model mapping has no `model`; found the keys {', '.join(map(str, value))}")
    lora = value.get("lora")
    ignored = tuple(str(key) for key in value if key not in ("model", "lora"))
    return Reference(_part(value["model"]), _part(lora) if lora is not None else None, ignored)


def _part(value: Any) -> str:
    if isinstance(value, str):
        if "+" in value:
            raise ReferenceFault(f"{value!r} names an adapter inside a mapping; use its key `lora`")
        return _path(value, value)
    if isinstance(value, Mapping) and isinstance(value.get("path"), str):
        unknown = [str(key) for key in value if key not in ("path", "revision")]
        if unknown:
            raise ReferenceFault(f"unknown key(s) {', '.join(unknown)}; a part has `path` and `revision`")
        revision = value.get("revision")
        return f"{value['path']}@{revision}" if revision is not None else str(value["path"])
    raise ReferenceFault(f"{value!r} is not a path or {{path: ..., revision: ...}}")


def _path(text: str, whole: str) -> str:
    if text.count("@") > 1:
        raise ReferenceFault(f"{whole!r} has more than one '@' in a part; write path@revision")
    if not text.strip() or text.startswith("@") or text.endswith("@"):
        raise ReferenceFault(f"{whole!r} has an empty part; write path[@revision][+adapter]")
    return text


def model_names(references: Iterable[Reference]) -> dict[str, str]:
    """Return a distinct name for each reference, by its identity: the last part of the path, more where two share it.

    >>> model_names([parse_reference("a/model"), parse_reference("b/model"), parse_reference("c/other")])
    {'a/model': 'a/model', 'b/model': 'b/model', 'c/other': 'other'}
    """
    distinct = {reference.identity: reference for reference in references}
    depth = dict.fromkeys(distinct, 1)
    while True:
        names = {key: "/".join(distinct[key].parts[-depth[key] :]) or key for key in distinct}
        shared: dict[str, list[str]] = {}
        for key, name in names.items():
            shared.setdefault(name, []).append(key)
        clashes = [key for keys in shared.values() if len(keys) > 1 for key in keys]
        if not clashes:
            return names
        if all(depth[key] >= len(distinct[key].parts) for key in clashes):
            return {**names, **{key: key for key in clashes}}
        for key in clashes:
            depth[key] += 1
