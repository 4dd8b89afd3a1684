"""Entities and relations of English text by rules: capitalised names and a few patterns between them.

    NAME is/was a KIND                  NAME (born ... in PLACE / founded ... in PLACE / located in PLACE)
    NAME was born / died / founded / is located / is based / lives / works in PLACE
    NAME founded / directed / wrote / invented / acquired ... NAME, NAME was founded / directed ... by NAME
    NAME is the capital / author / director / founder ... of NAME
    NAME (ALIAS), NAME, also known as ALIAS

A rule needs both names in one sentence, next to the pattern; a sentence with "not", "if", "would" or a question is
left out. No model: what is not written this way is not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from consilience.data.documents import Document
from consilience.data.ingestion.edges.protocol import Relation, is_row, normal_entity

__all__ = ["extract"]

_LONGEST = 600  # characters of a sentence
_UPPER = r"[A-ZÀ-ÖØ-Þ]"
_WORD = rf"{_UPPER}[\w'’&.-]*[\w]|{_UPPER}\.?"
_SMALL = r"(?:of|the|de|del|della|di|da|du|la|le|van|von|der|den|&)"
_NAME = rf"(?:(?<![\w-])(?:{_WORD})(?:\s+(?:(?:{_SMALL}\s+){{1,2}})?(?:{_WORD}|\d+)){{0,6}})"
_KIND = r"(?:[a-z][\w-]*)(?:\s+[\w-]+){0,5}?"
_PLACE = rf"(?:the\s+)?(?P<tail>{_NAME})"
_HEAD = rf"(?P<head>{_NAME})"
_WHEN = r"(?:on\s+|in\s+|c\.\s*)?(?:\d{1,2}\s+)?(?:[A-Z][a-z]+\s+)?(?:\d{1,2},?\s+)?\d{3,4}"
_IS = r"(?:is|was|are|were)"
_VERBS = "founded|directed|wrote|invented|acquired|discovered|composed|designed|developed|painted|created|married"
_ROLES = "capital|author|director|founder|president|daughter|son|mother|father|wife|husband|mayor|king|queen"
_IN = "born|located|based|situated|headquartered|buried|founded|established"
_ACTIVE_IN = "died|lives|lived|works|worked|lies"

_SHORT = "short for"  # kept as "also known as" where one name is the initials of the other

_PATTERNS: tuple[tuple[re.Pattern[str], str, bool], ...] = tuple(
    (re.compile(pattern), name, swapped)
    for pattern, name, swapped in (
        (rf"{_HEAD}\s+{_IS}\s+(?P<relation>{_IN})\s+(?:{_WHEN}\s+)?in\s+{_PLACE}", "{} in", False),
        (rf"{_HEAD}\s+(?P<relation>{_ACTIVE_IN})\s+(?:{_WHEN}\s+)?in\s+{_PLACE}", "{} in", False),
        (rf"{_HEAD}\s+\((?P<relation>{_IN}|died)\s+(?:{_WHEN},?\s+)?in\s+{_PLACE}[^)]*\)", "{} in", False),
        (rf"{_HEAD}\s+(?P<relation>{_VERBS})\s+(?:the\s+(?:[a-z]+\s+)?)?(?P<tail>{_NAME})", "{}", False),
        (rf"{_HEAD}\s+{_IS}\s+(?P<relation>{_VERBS})\s+by\s+(?:the\s+)?(?P<tail>{_NAME})", "{}", True),
        (rf"{_HEAD}\s+{_IS}\s+the\s+(?P<relation>{_ROLES})\s+of\s+{_PLACE}", "{} of", False),
        (rf"{_HEAD}\s+\((?:also\s+(?:known\s+as|called)|a\.?k\.?a\.?)\s+(?P<tail>{_NAME})\)", "also known as", False),
        (rf"{_HEAD}\s+\((?P<tail>{_NAME})\)", _SHORT, False),
        (
            rf"{_HEAD},?\s+(?:also\s+known\s+as|also\s+called|better\s+known\s+as)\s+(?P<tail>{_NAME})",
            "also known as",
            False,
        ),
    )
)
_IS_A = re.compile(
    rf"{_HEAD}(?:\s+\([^)]*\))?\s+{_IS}\s+an?\s+(?P<tail>{_KIND})"
    r"(?=\s+(?:who|which|that|in|of|from|by|at|for|on|off|near|along|between|under|over|into|with|and|or|to|as|used|made|written|based|located|whose|where)\b"
    r"|[,.;:)]|\s*$)"
)
_SENTENCE = re.compile(r"(?<=[.!?])(?<![A-Z]\.)(?<!Dr\.)(?<!Mr\.)(?<!Mrs\.)(?<!St\.)\s+(?=[\"'“(]?[A-ZÀ-ÖØ-Þ])|\n")
_DOUBT = re.compile(
    r"\b(?:not|never|no|if|would|could|might|may|perhaps|maybe|allegedly|reportedly|claims?|claimed|said|says|neither)\b|n['’]t\b|\?\s*$",
    re.IGNORECASE,
)
_NO_NAME = frozenset(
    {
        "a", "an", "the", "this", "that", "these", "those", "it", "its", "he", "she", "they", "we", "you", "i",
        "his", "her", "their", "our", "my", "your", "there", "here", "what", "who", "which", "when", "where",
        "why", "how", "all", "any", "some", "many", "most", "each", "every", "one", "two", "three", "both",
        "another", "other", "such", "no", "not", "in", "on", "at", "by", "for", "from", "to", "of", "with",
        "as", "after", "before", "during", "while", "since", "until", "although", "though", "because",
        "however", "but", "and", "or", "if", "so", "then", "also", "today", "yesterday", "tomorrow", "monday",
        "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "january", "february", "march",
        "april", "may", "june", "july", "august", "september", "october", "november", "december", "nothing",
        "everything", "something", "someone", "everyone",
    }
)  # fmt: skip
_BEFORE = frozenset(["the", "and", "but", "while", "because", "when", "where", "since", "until", "today", "later"])
"""Words that may stand right before a name that is a subject; after others it belongs to something else."""

_AFTER = frozenset(
    {
        "and", "as", "at", "because", "before", "after", "but", "by", "during", "for", "from", "in", "near", "of", "on",
        "or", "since", "that", "to", "until", "when", "where", "which", "while", "who", "with",
    }
)  # fmt: skip
"""Words that may follow "the" and a name; before others the name only describes."""

_VAGUE = frozenset(
    {
        "bit", "day", "example", "fact", "failure", "friend", "lot", "matter", "member", "mistake", "part", "problem",
        "question", "reason", "result", "shame", "success", "thing", "time", "way", "week", "year",
    }
)  # fmt: skip


def extract(document: Document, pieces: Sequence[Document]) -> Iterator[Relation]:
    """Yield what the sentences of the pieces say; rows are left to `tables`."""
    if is_row(document):
        return
    for piece in pieces:
        for part in piece.parts:
            if part.kind == "text":
                for sentence in _SENTENCE.split(part.text):
                    for head, name, tail in said(sentence):
                        yield Relation(head, name, tail, piece.id)


def said(sentence: str) -> Iterator[tuple[str, str, str]]:
    """Yield (head, relation, tail) of a sentence, entities in their normal form.

    >>> list(said("Dark City was directed by Alex Proyas."))
    [('alex proyas', 'directed', 'dark city')]
    >>> list(said("The International Business Machines Corporation (IBM) is a technology company based in Armonk."))
    ... # doctest: +NORMALIZE_WHITESPACE
    [('international business machines corporation', 'also known as', 'ibm'),
     ('international business machines corporation', 'is a', 'technology company')]
    >>> list(said("She was born in Paris.")), list(said("Bonn is not a village."))
    ([], [])
    """
    if not 8 <= len(sentence) <= _LONGEST or _DOUBT.search(sentence):
        return
    for pattern, name, swapped in _PATTERNS:
        for match in pattern.finditer(sentence):
            head, tail = _entity(match, "head"), _entity(match, "tail")
            if not head or not tail or head == tail:
                continue
            if name == _SHORT:
                if _initials(match["head"], match["tail"]) or _initials(match["tail"], match["head"]):
                    yield head, "also known as", tail
                continue
            relation = name.format(match.groupdict().get("relation", ""))
            yield (tail, relation, head) if swapped else (head, relation, tail)
    for match in _IS_A.finditer(sentence):
        if (head := _entity(match, "head")) and match["tail"].split()[-1] not in _VAGUE:
            yield head, "is a", normal_entity(match["tail"])


def _entity(match: re.Match[str], group: str) -> str:
    """Return the entity of a group, or "" where it is no name, or no subject of its own."""
    words = match[group].rstrip(".").split()
    before = re.search(r"(\w+)\s+$", match.string[: match.start(group)])
    if group == "head" and before and before[1].casefold() not in _BEFORE:
        return ""
    if group == "tail" and re.search(r"\bthe\s+$", match.string[: match.start(group)]):
        after = re.match(r"\s+([a-z]\w*)", match.string[match.end(group) :])
        if after and after[1] not in _AFTER:
            return ""  # the Kansai region is not Kansai
    while len(words) > 1 and _common(words[0]):
        words = words[1:]
    found = normal_entity(" ".join(words))
    return found if len(found) > 1 and not _common(words[0]) else ""


def _common(word: str) -> bool:
    """Return whether a capitalised word is no name, as "The" and "Monday"; WHO and IT are names."""
    return word.casefold() in _NO_NAME and not (word.isupper() and len(word) > 1)


def _initials(short: str, long: str) -> bool:
    letters = "".join(word[0] for word in long.split() if word[0].isupper() and not _common(word))
    return len(short) > 1 and short.isupper() and letters.startswith(short.replace(".", ""))
