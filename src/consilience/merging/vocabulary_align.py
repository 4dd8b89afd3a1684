"""Which rows make each row of the output vocabulary, for every model: tokens are matched by their text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from consilience.errors import Problems
from consilience.merging.request import TokenizerRule, TokenRule
from consilience.merging.tokenizer_files import TokenizerContent, added_entry
from consilience.merging.tokenizer_output import Additions
from consilience.merging.vocabulary_rows import AVERAGE, PADDING, ZERO, RowMap

__all__ = ["Alignment", "TokenTable", "align"]


class TokenTable(Protocol):
    """The tokens of one model and how many rows its embedding has."""

    @property
    def rows(self) -> int:
        """Rows of the input embedding."""

    @property
    def content(self) -> TokenizerContent:
        """Tokens, ids and added tokens."""


@dataclass(frozen=True)
class Alignment:
    """The output vocabulary and where its rows come from.

    `models` are those that rows can come from, in the order that the numbers of a RowMap count; `maps` has one entry
    per merged model. `additions` is what the lead's tokenizer gains.
    """

    lead: str
    models: tuple[str, ...]
    tokens: Mapping[str, int]
    rows: int
    maps: Mapping[str, RowMap]
    additions: Additions
    notices: tuple[str, ...]


def align(
    rule: TokenizerRule,
    vocabularies: Mapping[str, TokenTable],
    base: str | None,
    order: Sequence[str],
    problems: Problems,
) -> Alignment:
    """Return the output vocabulary that a rule asks for, and the rows of every merged model.

    `order` are the merged models, `vocabularies` may hold others that the rule refers to. A token's row in a model is
    its own; else what the rule says of the token; else the row of the only model that has the token; zeros where none
    has it; the base's; the mean of all there are. `force` puts the rule before the own row. Rows without a token are
    the mean of all rows with one.

    Records tokens that a rule expects of a model that lacks them.
    """
    first = base if base is not None and base in order else order[0]
    lead = first if rule.source in ("union", "base") else rule.source
    notices: list[str] = []
    others = [name for name in order if name != lead] if rule.source == "union" else []
    additions = _additions(rule, vocabularies, lead, others, notices)
    tokens = {**vocabularies[lead].content.tokens, **additions.tokens}
    rows = _row_count(rule, tokens, vocabularies[lead].rows)
    models = tuple(dict.fromkeys((*order, *vocabularies)))
    choice = _Choice(rule, vocabularies, models, base if base in order else None, order, problems)
    maps = {name: choice.map_of(name, tokens, rows) for name in order}
    notices.extend(choice.notices(tokens))
    return Alignment(lead, models, tokens, rows, maps, additions, tuple(notices))


def _row_count(rule: TokenizerRule, tokens: Mapping[str, int], lead_rows: int) -> int:
    """Return the number of output rows: the lead's padding is kept unless the rule pads by itself."""
    count = max(tokens.values(), default=-1) + 1
    multiple = rule.pad_to_multiple_of
    return -(-count // multiple) * multiple if multiple else max(count, lead_rows)


def _additions(
    rule: TokenizerRule,
    vocabularies: Mapping[str, TokenTable],
    lead: str,
    others: Sequence[str],
    notices: list[str],
) -> Additions:
    """Return what the lead's tokenizer gains: tokens of the others, then added ones, then those only the rule names."""
    own = vocabularies[lead].content
    new = Additions()
    following = max(own.tokens.values(), default=-1) + 1

    def add(token: str) -> None:
        nonlocal following
        new.tokens[token] = following
        following += 1

    contents = {name: vocabularies[name].content for name in others}
    for name, content in contents.items():
        for token, number in sorted(content.tokens.items(), key=lambda item: item[1]):
            if (
                token in content.added
                or token in own.tokens
                or token in new.tokens
                or number >= vocabularies[name].rows
            ):
                continue
            add(token)
            new.scores[token] = content.scores.get(token, 0.0)
        if content.kind == own.kind == "BPE":
            _add_merges(content, own, new)
        elif content.kind != own.kind and new.tokens:
            notices.append(
                f"tokenizers are of different kinds ({own.kind} in {lead!r}, {content.kind} in {name!r}): tokens are "
                "matched by their text, and the merged tokenizer may never produce those of the second"
            )
    for name, content in contents.items():
        for token in sorted(content.added, key=lambda t: content.tokens[t]):
            entry = content.added[token]
            if token in own.added or token in new.added or content.tokens[token] >= vocabularies[name].rows:
                _note_flags(token, entry, own.added.get(token) or new.added.get(token), notices)
                continue
            if token in own.tokens and not entry.get("special"):
                continue
            if token not in own.tokens and token not in new.tokens:
                add(token)
            new.added[token] = added_entry(token, new.tokens.get(token, own.tokens.get(token, 0)), entry)
    for token in rule.tokens:
        if token not in own.tokens and token not in new.tokens:
            add(token)
            new.added[token] = added_entry(token, new.tokens[token])
    if not own.scores:
        new.scores.clear()
    return new


def _add_merges(content: TokenizerContent, own: TokenizerContent, new: Additions) -> None:
    known = {*own.merges, *new.merges}
    for left, right in content.merges:
        made = (left, right, left + right)
        if (left, right) not in known and all(token in own.tokens or token in new.tokens for token in made):
            new.merges.append((left, right))


def _note_flags(token: str, entry: Mapping[str, Any], first: Mapping[str, Any] | None, notices: list[str]) -> None:
    if first is None:
        return
    differing = [
        key for key in ("special", "normalized", "lstrip", "rstrip") if bool(entry.get(key)) != bool(first.get(key))
    ]
    if differing:
        notices.append(f"the added token {token!r} has different settings ({', '.join(differing)}); the first are kept")


class _Choice:
    """Chooses the row of a token for models that lack it, once per token, and counts what was chosen."""

    def __init__(
        self,
        rule: TokenizerRule,
        vocabularies: Mapping[str, TokenTable],
        models: tuple[str, ...],
        base: str | None,
        order: Sequence[str],
        problems: Problems,
    ) -> None:
        self.rule = rule
        self.models = models
        self.base = base
        self.order = order
        self.problems = problems
        self.rows = {name: vocabularies[name].rows for name in models}
        self.tokens = {name: vocabularies[name].content.tokens for name in models}
        self.averages: list[tuple[tuple[int, int], ...]] = []
        self.chosen: dict[str, tuple[int, int]] = {}
        self.lacking: dict[str, dict[str, list[str]]] = {}
        self.nowhere: list[str] = []

    def own(self, model: str, token: str) -> int | None:
        """Return a model's own row of a token; tokens beyond the rows have none."""
        number = self.tokens[model].get(token)
        return number if number is not None and number < self.rows[model] else None

    def map_of(self, model: str, tokens: Mapping[str, int], rows: int) -> RowMap:
        """Return where the rows of one model come from."""
        origin = np.full(rows, PADDING, np.int32)
        row = np.zeros(rows, np.int64)
        index = self.models.index(model)
        own, limit = self.tokens[model], self.rows[model]
        forced = {token for token, asked in self.rule.tokens.items() if asked.force}
        lacking = self.lacking.setdefault(model, {})
        for token, number in tokens.items():
            mine = own.get(token, limit)
            if mine < limit and token not in forced:
                origin[number], row[number] = index, mine
                continue
            if token not in self.chosen:
                self.chosen[token] = self._choose(token)
            origin[number], row[number] = self.chosen[token]
            if mine >= limit:
                lacking.setdefault(self._words(self.chosen[token]), []).append(token)
        return RowMap(origin, row, tuple(self.averages))

    def _choose(self, token: str) -> tuple[int, int]:
        asked = self.rule.tokens.get(token)
        if asked is not None and asked.kind != "default":
            return self._asked(token, asked)
        having = {name: row for name in self.order if (row := self.own(name, token)) is not None}
        if not having:
            self.nowhere.append(token)
            return ZERO, 0
        if len(having) == 1:
            name = next(iter(having))
        elif self.base is not None and self.base in having:
            name = self.base
        else:
            self.averages.append(tuple((self.models.index(name), row) for name, row in having.items()))
            return AVERAGE, len(self.averages) - 1
        return self.models.index(name), having[name]

    def _asked(self, token: str, asked: TokenRule) -> tuple[int, int]:
        """Return the row that a rule names."""
        where = f"tokenizer.tokens.{token}"
        if asked.kind == "zero":
            return ZERO, 0
        if asked.model not in self.models:
            self.problems.add(f"{where}: {asked.model!r} is no model of this merge; models: {', '.join(self.models)}")
            return ZERO, 0
        name = str(asked.model)
        if asked.kind == "token" and asked.token_id is not None:
            row: int | None = asked.token_id if 0 <= asked.token_id < self.rows[name] else None
            wanted = f"row {asked.token_id} (it has {self.rows[name]})"
        else:
            other = asked.token if asked.kind == "token" and asked.token is not None else token
            row, wanted = self.own(name, other), f"a row for the token {other!r}"
        if row is None:
            self.problems.add(f"{where}: model {name!r} has no {wanted}")
            return ZERO, 0
        return self.models.index(name), row

    def _words(self, chosen: tuple[int, int]) -> str:
        if chosen[0] >= 0:
            return f"comes from {self.models[chosen[0]]!r}"
        return {ZERO: "is zero", AVERAGE: "is the mean of the models that have it"}[chosen[0]]

    def notices(self, tokens: Mapping[str, int]) -> list[str]:
        """Return what was invented, model by model."""
        found = []
        for model, kinds in self.lacking.items():
            for words, names in kinds.items():
                shown = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
                found.append(f"{model!r} has no row for {len(names)} of {len(tokens)} tokens; each {words} ({shown})")
        if self.nowhere:
            shown = ", ".join(repr(name) for name in self.nowhere[:5]) + (", ..." if len(self.nowhere) > 5 else "")
            found.append(f"no model has a row for {len(self.nowhere)} token(s), which become zeros ({shown})")
        return found
