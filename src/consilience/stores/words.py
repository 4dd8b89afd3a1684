"""How texts become words, in every store alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from consilience.errors import RequestError, did_you_mean

__all__ = ["LANGUAGES", "MOST_WORDS", "analyser", "check_language", "rarities", "telling_words"]

LANGUAGES = (
    "arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek", "hungarian", "italian",
    "norwegian", "portuguese", "romanian", "russian", "spanish", "swedish", "tamil", "turkish",
)  # fmt: skip
MOST_WORDS = 1024
"""Different words of a query that are searched."""

_LONGEST = 200  # bytes of a word
_EMPTY = (
    "a an and are as at be but by can could did do does for from had has have how i if in into is it its me my no not "
    "of on or our shall should so some such than that the their them then there these they this to was we were what "
    "when where which who whom whose why will with would you your"
)  # English words that say nothing of a query's subject


def check_language(language: str | None) -> None:
    """Report a language without a stemmer. Raises RequestError."""
    if language is not None and language not in LANGUAGES:
        raise RequestError(f"language {language!r} has no stemmer{did_you_mean(language, LANGUAGES)}")


def analyser(language: str | None) -> Any:
    """Return tantivy's analyser: letters and digits, in lower case, without accents, stemmed where there is a language.

    >>> analyser("english").analyze("Sorting the Größen")
    ['sort', 'the', 'grossen']
    """
    import tantivy

    check_language(language)
    builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    builder = builder.filter(tantivy.Filter.remove_long(_LONGEST)).filter(tantivy.Filter.lowercase())
    builder = builder.filter(tantivy.Filter.ascii_fold())
    if language is not None:
        builder = builder.filter(tantivy.Filter.stemmer(language))
    return builder.build()


def telling_words(words: Iterable[str], language: str | None) -> list[str]:
    """Return the words of a query, as the analyser of a language makes them, that say something of its subject.

    >>> telling_words(analyser("english").analyze("Who likes the quokkas?"), "english")
    ['like', 'quokka']
    """
    empty = _empty_words(language)
    return [word for word in words if word not in empty][:MOST_WORDS]


@cache
def _empty_words(language: str | None) -> frozenset[str]:
    return frozenset(analyser(language).analyze(_EMPTY))


def rarities(having: Mapping[str, int], documents: int) -> dict[str, float]:
    """Return the inverse document frequency of words, as BM25 has it; having: word -> documents that have it.

    >>> {word: round(value, 2) for word, value in rarities({"quokka": 1, "like": 9}, 10).items()}
    {'quokka': 1.99, 'like': 0.15}
    """
    return {word: math.log1p((documents - count + 0.5) / (count + 0.5)) for word, count in having.items()}
