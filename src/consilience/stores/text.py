"""Full text in tantivy: BM25 over the words of titles and texts, with any filter applied before the top k.

Documents are known by their numbers. Numbers that no snapshot has are passed over, so that what a killed writer left
behind is never found.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.core.atomic import storage_error
from consilience.core.hashing import file_xxh3
from consilience.errors import StorageError, VerificationError
from consilience.stores.vectors import Found, merge_found
from consilience.stores.words import MOST_WORDS, analyser, rarities, telling_words

__all__ = ["TextStore", "damaged_files"]

_ANALYSER = "words"
_HEAP = 64_000_000
_BY_NUMBER = 0.5  # if fewer pass than the root of this times k times all, they are looked up, not picked from the hits
_AHEAD = 1.25  # times as many hits as will not pass, if the filter has nothing to do with the words


class TextStore:
    """The full text of an index, in a folder.

    >>> import tempfile
    >>> store = TextStore.create(Path(tempfile.mkdtemp()) / "text", language="english")
    >>> _ = store.add([(0, "sorting lists"), (1, "opening a file")])
    >>> store.search(["how to sort lists"], 10, np.ones(2, bool))[0].numbers
    array([0])
    """

    def __init__(self, folder: Path, language: str | None) -> None:
        import tantivy

        self.folder, self.language = folder, language
        self._analyser = analyser(language)
        schema = tantivy.SchemaBuilder()
        schema.add_unsigned_field("number", stored=False, indexed=True, fast=True)
        schema.add_text_field("words", stored=False, tokenizer_name=_ANALYSER, index_option="freq")
        self._schema = schema.build()
        try:
            self._index = tantivy.Index(self._schema, path=str(folder), reuse=True)
        except (OSError, ValueError) as error:
            raise VerificationError(f"{folder}: the full text cannot be opened ({error}); compact the index") from error
        self._index.register_tokenizer(_ANALYSER, self._analyser)
        self._index.config_reader(reload_policy="manual")
        self._version: int | None = None

    @classmethod
    def create(cls, folder: Path, *, language: str | None) -> TextStore:
        """Make an empty store. language: of the stemmer; None for words as they are."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, language)

    def add(self, texts: Iterable[tuple[int, str]]) -> dict[str, Any]:
        """Add texts by number; durable when this returns. Returns sizes and checksums of all files."""
        import tantivy

        try:
            writer = self._index.writer(heap_size=_HEAP, num_threads=1)
            for number, text in texts:
                document = tantivy.Document()
                document.add_unsigned("number", number)
                document.add_text("words", text)
                writer.add_document(document)
            writer.commit()
            writer.wait_merging_threads()
            return self.files()
        except OSError as error:
            raise storage_error(self.folder, error) from error
        except ValueError as error:
            raise StorageError(f"{self.folder}: {error}; the last commit stands") from error

    def files(self) -> dict[str, Any]:
        """Return sizes and checksums of the files in use."""
        return {
            path.name: {"bytes": path.stat().st_size, "xxh3": file_xxh3(path)}
            for path in sorted(self.folder.iterdir())
            if re.fullmatch(r"[0-9a-f]{32}\..+", path.name)
        }

    def words(self, text: str) -> list[str]:
        """Return the words of a text as they are searched."""
        return list(self._analyser.analyze(text))

    def search(
        self, queries: Sequence[str], k: int, live: NDArray[np.bool_], *, version: int | None = None
    ) -> list[Found]:
        """Return the `k` best documents for every query, of those that are `live` (bool by number).

        Documents with at least one of the words; BM25 (k1 1.2, b 0.75). All characters are ordinary ones. version: what
        was committed is looked at again only when it changes.
        """
        if version is None or version != self._version:
            self._index.reload()
            self._version = version
        searcher = self._index.searcher()
        passing, every = int(np.count_nonzero(live)), searcher.num_docs
        picked = passing**2 > _BY_NUMBER * k * every
        allowed = None if picked else np.flatnonzero(live)
        ahead = max(int(_AHEAD * k * (every / passing - 1)), 0) if picked else 0  # hits that will not pass
        return [self._one(searcher, query, k, live, allowed, ahead) for query in queries]

    def _one(
        self,
        searcher: Any,
        text: str,
        k: int,
        live: NDArray[np.bool_],
        allowed: NDArray[np.int64] | None,
        ahead: int,
    ) -> Found:
        words = Counter(self.words(text))
        if not words or not k or (allowed is not None and not len(allowed)):
            return Found(np.empty(0, np.int64), np.empty(0, np.float32))
        terms = {word: self._term(word) for word, _ in words.most_common(MOST_WORDS)}
        query = self._query(words, terms)
        if allowed is not None and len(allowed) < searcher.num_docs:
            query = self._among(query, allowed.tolist())
        limit = k + ahead
        while True:
            hits = searcher.search(query, limit, count=False).hits
            values, addresses = zip(*hits, strict=True) if hits else ((), ())
            numbers = np.array(searcher.fast_field_values("number", list(addresses)), np.int64)
            known = numbers < len(live)
            known[known] = live[numbers[known]]
            if len(hits) < limit or np.count_nonzero(known) >= k:
                break
            limit *= 4
        scores = np.array(values, np.float32)
        if not known.all():
            scores[~known] = -np.inf
        found = merge_found(numbers[None], scores[None], k)[0]
        telling = telling_words(terms, self.language)
        if not telling:
            return found
        rare = self._coverage(searcher, {word: terms[word] for word in telling}, found) if len(found) else 0.0
        return replace(found, coverage=rare)

    def _query(self, words: Counter[str], terms: Mapping[str, Any]) -> Any:
        import tantivy

        parts = []
        for word, part in terms.items():
            times = words[word]
            parts.append((tantivy.Occur.Should, part if times == 1 else tantivy.Query.boost_query(part, float(times))))
        return tantivy.Query.boolean_query(parts)

    def _term(self, word: str) -> Any:
        import tantivy

        return tantivy.Query.term_query(self._schema, "words", word, "freq")

    def _coverage(self, searcher: Any, telling: Mapping[str, Any], found: Found) -> float:
        """Return the share of words that the best document has, each with its inverse document frequency."""
        import tantivy

        rarity = rarities({word: searcher.doc_freq("words", word) for word in telling}, searcher.num_docs)
        total = math.fsum(rarity.values())
        if not total:
            return 0.0
        parts = [
            (tantivy.Occur.Should, tantivy.Query.const_score_query(telling[word], rare))
            for word, rare in rarity.items()
            if rare
        ]
        number = tantivy.Query.term_query(self._schema, "number", int(found.numbers[0]))
        only = (tantivy.Occur.Must, tantivy.Query.const_score_query(number, 0.0))
        hits = searcher.search(tantivy.Query.boolean_query([only, *parts]), 1, count=False).hits
        return min(hits[0][0] / total, 1.0) if hits else 0.0

    def _among(self, query: Any, allowed: Sequence[int]) -> Any:
        import tantivy

        numbers = tantivy.Query.term_set_query(self._schema, "number", list(allowed))
        fixed = tantivy.Query.const_score_query(numbers, 0.0)
        return tantivy.Query.boolean_query([(tantivy.Occur.Must, query), (tantivy.Occur.Must, fixed)])


def damaged_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with recorded files that are there; a later commit may have merged some away."""
    return [
        f"{path} is not as it was written; compact the index to make the full text anew"
        for name, facts in files.items()
        if (path := folder / name).is_file()
        and (path.stat().st_size != facts["bytes"] or file_xxh3(path) != facts["xxh3"])
    ]
