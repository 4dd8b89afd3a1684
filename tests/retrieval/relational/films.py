"""Rows of films, their directors by reference, and a text, as reading a database makes them."""

from __future__ import annotations

from pathlib import Path

from consilience.data.documents import Document
from consilience.retrieval.index import Index

FILMS: list[tuple[str, int, tuple[str, ...], float, str]] = [
    ("Solaris", 1972, ("Drama", "Science Fiction"), 8.1, "1"),
    ("Stalker", 1979, ("Drama", "Science Fiction"), 8.0, "1"),
    ("Heat", 1995, ("Action", "Crime"), 8.3, "2"),
    ("Collateral", 2004, ("Crime",), 7.5, "2"),
    ("Moon", 2009, ("Science Fiction",), 7.8, "3"),
]
DIRECTORS = {
    "1": ("Andrei Tarkovsky", "Russia"),
    "2": ("Michael Mann", "United States"),
    "3": ("Duncan Jones", "England"),
}


def filled(place: Path) -> Index:
    index = Index.create(place)
    rows = [
        Document(
            f"films.db#movies.{number}",
            f"{title}. A film of {year}.",
            title=title,
            fields={
                "table": "movies",
                "year": year,
                "genres": genres,
                "rating": rating,
                "references": (f"director -> films.db#directors.{director}",),
            },
            source="films.db",
        )
        for number, (title, year, genres, rating, director) in enumerate(FILMS, 1)
    ]
    rows += [
        Document(
            f"films.db#directors.{key}",
            name,
            title=name,
            fields={"table": "directors", "country": country},
            source="films.db",
        )
        for key, (name, country) in DIRECTORS.items()
    ]
    index.add(
        [*rows, Document("notes.md", 'The words "I do two things in this city" are from a film.', source="notes.md")]
    )
    return index
