"""The tokenizer files of a merge whose vocabulary grew: every form the lead tokenizer has, with the new tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consilience.merging.tokenizer_files import TokenizerContent, added_entry

__all__ = ["Additions", "extended_files"]

_BELOW = 10.0


@dataclass
class Additions:
    """What is added to a tokenizer: ids of all new tokens, and how each takes part."""

    tokens: dict[str, int] = field(default_factory=dict)
    added: dict[str, dict[str, Any]] = field(default_factory=dict)
    merges: list[tuple[str, str]] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is anything to add."""
        return bool(self.tokens or self.added)


def extended_files(
    folder: Path, names: Iterable[str], lead: TokenizerContent, additions: Additions
) -> tuple[dict[str, bytes], list[str]]:
    """Return the lead's tokenizer files with the additions, and the files that cannot say them and are left out."""
    present = sorted(names)
    files: dict[str, bytes] = {}
    left_out = [name for name in present if name.endswith((".model", ".vocab"))]
    tokens = {**lead.tokens, **additions.tokens}
    added = {**lead.added, **additions.added}
    merges = [*lead.merges, *additions.merges]
    for name in present:
        path = folder / name
        if name == "tokenizer.json":
            files[name] = _json_bytes(_tokenizer_json(json.loads(path.read_bytes()), lead, additions, tokens, added))
        elif name == "tokenizer_config.json":
            files[name] = _json_bytes(_config(json.loads(path.read_bytes()), additions))
        elif name == "vocab.txt":
            files[name] = _lines(tokens).encode()
        elif name == "vocab.json":
            before = json.loads(path.read_bytes())
            files[name] = _json_bytes({**before, **{t: n for t, n in additions.tokens.items() if t not in added}})
        elif name == "merges.txt":
            files[name] = ("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)).encode()
        elif name == "added_tokens.json":
            before = json.loads(path.read_bytes())
            files[name] = _json_bytes({**before, **{t: tokens[t] for t in additions.added}})
        elif name not in left_out:
            files[name] = path.read_bytes()
    if "tokenizer.json" not in present and "vocab.txt" not in present and "added_tokens.json" not in present:
        files["added_tokens.json"] = _json_bytes({token: tokens[token] for token in additions.added})
    return files, left_out


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _tokenizer_json(
    data: dict[str, Any],
    lead: TokenizerContent,
    additions: Additions,
    tokens: Mapping[str, int],
    added: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return tokenizer.json with the additions.

    Added tokens stand in the model's vocabulary too: readers of the file give those that do not an id of their own,
    counted from its end.
    """
    model = data["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = _pieces(tokens, {**lead.scores, **additions.scores})
    else:
        model["vocab"] = dict(sorted(tokens.items(), key=lambda item: item[1]))
    if additions.merges:
        model["merges"] = _written(model.get("merges") or [], additions.merges)
    data["added_tokens"] = sorted(
        (added_entry(token, tokens[token], entry) for token, entry in added.items()), key=lambda e: int(e["id"])
    )
    return data


def _pieces(tokens: Mapping[str, int], scores: Mapping[str, float]) -> list[list[Any]]:
    """Return Unigram's list, whose places are the ids; tokens without a score come below all others."""
    lowest = min(scores.values(), default=0.0) - _BELOW
    by_id = {number: token for token, number in tokens.items()}
    filled = [by_id.get(number, f"<unused_{number}>") for number in range(max(by_id, default=-1) + 1)]
    return [[token, scores.get(token, lowest)] for token in filled]


def _written(before: Sequence[Any], merges: Sequence[tuple[str, str]]) -> list[Any]:
    """Return all merges in the form the file has; as pairs where a token holds a space."""
    if (before and not isinstance(before[0], str)) or any(" " in left or " " in right for left, right in merges):
        return [*(m.split(" ") if isinstance(m, str) else m for m in before), *([a, b] for a, b in merges)]
    return [*before, *(f"{a} {b}" for a, b in merges)]


def _config(config: dict[str, Any], additions: Additions) -> dict[str, Any]:
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        for token, entry in additions.added.items():
            number = additions.tokens.get(token, entry["id"])
            decoder[str(number)] = {k: v for k, v in added_entry(token, number, entry).items() if k != "id"}
    return config


def _lines(tokens: Mapping[str, int]) -> str:
    """Return vocab.txt: one token a line, in the order of ids; lines without a token are placeholders."""
    by_id = {number: token for token, number in tokens.items()}
    return "".join(f"{by_id.get(number, f'[unused_{number}]')}\n" for number in range(max(by_id, default=-1) + 1))
