"""Tokenizer settings and chat template of a recipe in mergekit's language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from consilience.errors import did_you_mean
from consilience.merging.chat_templates import template_problem
from consilience.merging.request import TokenizerRule, TokenRule

if TYPE_CHECKING:
    from consilience.merging.mergekit_document import Document

__all__ = ["TokenizerReader"]

_BLOCK_KEYS = ("source", "pad_to_multiple_of", "tokens")
_KINDS = ("model_token", "zero")

Place = tuple[str | int, ...]


class TokenizerReader:
    """Reads `tokenizer_source`, `tokenizer` and `chat_template`; models are kept by identity until names are known."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems = document.problems
        self.rule = self._rule()
        self.chat_template = self._chat_template()

    def rule_by_name(self, names: Mapping[str, str]) -> TokenizerRule | None:
        """Return the rule with models by their names."""
        if self.rule is None:
            return None
        tokens = {
            token: replace(rule, model=names[rule.model]) if rule.model is not None else rule
            for token, rule in self.rule.tokens.items()
        }
        return replace(self.rule, source=names.get(self.rule.source, self.rule.source), tokens=tokens)

    def _rule(self) -> TokenizerRule | None:
        content = self.document.content
        source, block = content.get("tokenizer_source"), content.get("tokenizer")
        if source is not None and block is not None:
            places = f"{self.document.where('tokenizer_source')} and {self.document.where('tokenizer')}"
            self.problems.add(f"{places} exclude each other; keep `tokenizer`, with the other as its `source`")
            return None
        if source is not None:
            return TokenizerRule(self._source(source, ("tokenizer_source",)))
        if block is None:
            return None
        if not isinstance(block, Mapping):
            self.problems.add(f"{self.document.where('tokenizer')}: expected a mapping, found {block!r}")
            return None
        self.document.unknown_keys(block, _BLOCK_KEYS, ("tokenizer",))
        written = block.get("source")
        name = self._source(written, ("tokenizer", "source")) if written is not None else "union"
        return TokenizerRule(name, self._multiple(block.get("pad_to_multiple_of")), self._tokens(block.get("tokens")))

    def _source(self, value: Any, place: Place) -> str:
        if value in ("union", "base"):
            return str(value)
        return self.document.reference(value, place) or "union"

    def _multiple(self, value: Any) -> int | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            where = self.document.where("tokenizer", "pad_to_multiple_of")
            self.problems.add(f"{where}: {value!r} is not a whole number above 0")
            return None
        return value

    def _tokens(self, value: Any) -> dict[str, TokenRule]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            where = self.document.where("tokenizer", "tokens")
            self.problems.add(
                f"{where}: expected a mapping from tokens to {{source: ..., force: ...}}, found {value!r}"
            )
            return {}
        return {str(token): self._token(rule, ("tokenizer", "tokens", str(token))) for token, rule in value.items()}

    def _token(self, value: Any, place: Place) -> TokenRule:
        where = self.document.where(*place)
        if value is None:
            return TokenRule()
        if not isinstance(value, Mapping):
            self.problems.add(f"{where}: expected {{source: ..., force: ...}}, found {value!r}")
            return TokenRule()
        self.document.unknown_keys(value, ("source", "force"), place)
        force = value.get("force", False)
        if not isinstance(force, bool):
            self.problems.add(f"{self.document.where(*place, 'force')}: {force!r} is not true or false")
            force = False
        source = value.get("source")
        if source is None:
            return TokenRule(force=force)
        if isinstance(source, Mapping) and "kind" in source:
            return self._kind(source, (*place, "source"), force)
        return TokenRule("model", self.document.reference(source, (*place, "source")), force=force)

    def _kind(self, source: Mapping[str, Any], place: Place, force: bool) -> TokenRule:
        kind, where = source["kind"], self.document.where(*place)
        if kind == "zero":
            self.document.unknown_keys(source, ("kind",), place)
            return TokenRule("zero", force=force)
        if kind != "model_token":
            self.problems.add(f"{where}: the kind {kind!r} is unknown{did_you_mean(str(kind), _KINDS)}")
            return TokenRule(force=force)
        self.document.unknown_keys(source, ("kind", "model", "token", "token_id"), place)
        token, number = source.get("token"), source.get("token_id")
        if (token is None) == (number is None):
            self.problems.add(f"{where}: give either `token` or `token_id`, not both")
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
            self.problems.add(f"{where}: token_id {number!r} is not a whole number from 0")
        if "model" not in source:
            self.problems.add(f"{where}: `model` is missing; name the model whose token it is")
            return TokenRule(force=force)
        model = self.document.reference(source["model"], (*place, "model"))
        return TokenRule("token", model, str(token) if token is not None else None, number, force)

    def _chat_template(self) -> str | None:
        value = self.document.content.get("chat_template")
        if value is None:
            return None
        wrong = template_problem(value)
        if wrong:
            self.problems.add(f"{self.document.where('chat_template')}: {wrong}")
            return None
        return str(value)
