"""Tokenizer files as data: which token has which id, and the same files with tokens added. No library is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consilience.core.hashing import file_xxh3, fingerprint
from consilience.errors import CheckpointError

__all__ = ["TokenizerContent", "added_entry", "is_tokenizer_file", "read_tokenizer", "tokenizer_hash"]

_NAMES = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
}
_PIECES = (".model", ".vocab")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def is_tokenizer_file(name: str) -> bool:
    """Whether a file name belongs to a tokenizer.

    >>> is_tokenizer_file("tokenizer.json"), is_tokenizer_file("sentencepiece.bpe.model"), is_tokenizer_file("x.json")
    (True, True, False)
    """
    return name in _NAMES or name.endswith(_PIECES)


@dataclass(frozen=True)
class TokenizerContent:
    """What the files of one tokenizer say.

    `tokens` maps every token to its id, added ones included; `added` maps added tokens to their flags. `merges` are
    those of BPE, `scores` those of Unigram. `kind` is the model's type ("BPE", "WordPiece", "WordLevel", "Unigram").
    """

    kind: str
    tokens: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    merges: Sequence[tuple[str, str]] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


def added_entry(token: str, number: int, flags: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return an added token as tokenizer.json writes it; flags that are absent are false."""
    chosen = flags or {}
    return {"id": number, "content": token, **{flag: bool(chosen.get(flag, False)) for flag in _FLAGS}}


def tokenizer_hash(folder: Path, names: Iterable[str]) -> str:
    """Return a checksum of what decides tokens and ids; "" where there are no such files."""
    present = set(names)
    deciding = ["tokenizer.json"] if "tokenizer.json" in present else ["vocab.json", "vocab.txt", "merges.txt"]
    chosen = [name for name in (*deciding, "added_tokens.json") if name in present]
    if not set(chosen) & {"tokenizer.json", "vocab.json", "vocab.txt"}:
        chosen += sorted(name for name in present if name.endswith(".model"))
        if not any(name.endswith(".model") for name in chosen):
            return ""
    files = {name: file_xxh3(folder / name) for name in chosen}
    return fingerprint([files, _json(folder / "tokenizer_config.json").get("added_tokens_decoder")])


def read_tokenizer(folder: Path, names: Iterable[str]) -> TokenizerContent:
    """Read the tokens of a tokenizer from tokenizer.json, vocab.json or vocab.txt, with what is added to them.

    Raises CheckpointError for tokenizers that are only a sentencepiece model, and for files that are not as expected.
    """
    present = set(names)
    try:
        if "tokenizer.json" in present:
            content = _from_json(_json(folder / "tokenizer.json"))
        elif "vocab.json" in present:
            merges = _merges((folder / "merges.txt").read_text(encoding="utf-8")) if "merges.txt" in present else []
            vocabulary = _json(folder / "vocab.json")
            content = TokenizerContent(
                "BPE" if merges else "WordLevel", {str(t): int(i) for t, i in vocabulary.items()}
            )
            content = TokenizerContent(content.kind, content.tokens, {}, merges)
        elif "vocab.txt" in present:
            lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
            lines = lines[:-1] if lines and not lines[-1] else lines
            content = TokenizerContent("WordPiece", {token.rstrip("\r"): number for number, token in enumerate(lines)})
        else:
            pieces = ", ".join(sorted(name for name in present if name.endswith(".model")))
            raise CheckpointError(
                f"{folder}: its tokenizer is only a sentencepiece model ({pieces or 'no tokenizer files'}), whose ids "
                "depend on the tokenizer class; write it as tokenizer.json first: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) with transformers"
            )
        return _with_added(folder, present, content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: the tokenizer files are not as expected ({error!r})") from error


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    return value if isinstance(value, dict) else {}


def _from_json(data: Mapping[str, Any]) -> TokenizerContent:
    model = data["model"]
    added = {entry["content"]: entry for entry in data.get("added_tokens") or ()}
    scores: dict[str, float] = {}
    if isinstance(model["vocab"], list):
        tokens = {piece: number for number, (piece, _) in enumerate(model["vocab"])}
        scores = {piece: float(score) for piece, score in model["vocab"]}
    else:
        tokens = {str(token): int(number) for token, number in model["vocab"].items()}
    merges = [_pair(merge) for merge in model.get("merges") or ()]
    kind = model.get("type") or ("Unigram" if scores else "BPE" if "merges" in model else "WordPiece")
    return TokenizerContent(kind, {**tokens, **{t: int(e["id"]) for t, e in added.items()}}, added, merges, scores)


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _merges(text: str) -> list[tuple[str, str]]:
    return [_pair(line) for line in text.splitlines() if line.strip() and not line.startswith("#version")]


def _with_added(folder: Path, present: set[str], content: TokenizerContent) -> TokenizerContent:
    """Add what tokenizer_config.json and added_tokens.json say beyond the tokenizer itself."""
    tokens, added = dict(content.tokens), dict(content.added)
    decoder = _json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    for number, entry in decoder.items():
        token = entry["content"]
        if token not in tokens or token not in added:
            tokens.setdefault(token, int(number))
            added[token] = added_entry(token, tokens[token], entry)
    if "added_tokens.json" in present:
        for token, number in _json(folder / "added_tokens.json").items():
            if token not in tokens:
                tokens[token] = int(number)
                added[token] = added_entry(token, int(number))
    return TokenizerContent(content.kind, tokens, added, content.merges, content.scores)
