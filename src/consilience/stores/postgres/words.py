"""Words of texts, cut and stemmed as in the embedded stores, in the forms that PostgreSQL searches them in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from consilience.stores.words import analyser, telling_words

__all__ = ["Words", "tsquery", "tsvector"]

_MOST_TIMES = 255  # that PostgreSQL counts of a word in a text
_MOST_BYTES = (1 << 20) - 1  # of the words of a text


class Words:
    """The analyser of an index: letters and digits, in lower case, without accents, stemmed.

    PostgreSQL's own configurations leave out stop words, keep accents and cut addresses and hyphens otherwise: they
    would find other documents than the embedded stores.

    >>> dict(Words("english").count("Sorting the sorted Größen"))
    {'sort': 2, 'the': 1, 'grossen': 1}
    """

    def __init__(self, language: str | None) -> None:
        self._analyser, self._language = analyser(language), language

    def telling(self, words: Iterable[str]) -> list[str]:
        """Return the words that say something of a query's subject."""
        return telling_words(words, self._language)

    def count(self, text: str) -> Counter[str]:
        """Return the words of a text and how often each is there."""
        whole = text.encode(errors="replace").decode()
        return Counter(word for word in self._analyser.analyze(whole) if word)


def tsvector(words: Mapping[str, int]) -> str | None:
    """Return words with their counts as a tsvector has them, by as many positions; None for more than it holds.

    >>> tsvector({"sort": 2, "it's": 1})
    "'sort':1,2 'it''s':1"
    """
    counts = {word: min(times, _MOST_TIMES) for word, times in words.items()}
    if sum(len(word.encode()) + 4 + 2 * times for word, times in counts.items()) > _MOST_BYTES:
        return None
    return " ".join(f"{_quoted(word)}:{_PLACES[times]}" for word, times in counts.items())


def tsquery(word: str) -> str:
    """Return a word as a tsquery; all characters are ordinary ones.

    >>> tsquery("it's")
    "'it''s'"
    """
    return _quoted(word)


def _quoted(word: str) -> str:
    return "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"


_PLACES = [",".join(str(place) for place in range(1, times + 1)) for times in range(_MOST_TIMES + 1)]
