"""Places of indexes: a folder, or a server's address with the name of an index, `postgresql://...?index=NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.core.jobs import MANIFEST
from consilience.errors import RequestError
from consilience.stores.postgres.address import Address, is_address, read_place
from consilience.stores.protocol import VectorSpace

if TYPE_CHECKING:
    from consilience.stores.embedded import EmbeddedStores
    from consilience.stores.postgres.stores import PostgresStores

__all__ = ["create_stores", "has_stores", "open_stores", "shown_place"]


def create_stores(
    place: str | Path,
    spaces: Sequence[VectorSpace] = (),
    *,
    language: str | None = "english",
    facts: Mapping[str, Any] | None = None,
) -> EmbeddedStores | PostgresStores:
    """Make the empty stores of an index in a folder or in a server, and open them for writing.

    >>> import tempfile
    >>> with create_stores(Path(tempfile.mkdtemp()) / "index") as stores:
    ...     len(stores)
    0

    Raises OutputError where something is there already, RequestError for what cannot be made.
    """
    if _in_server(place):
        from consilience.stores.postgres.stores import PostgresStores

        return PostgresStores.create(*read_place(str(place)), spaces, language=language, facts=facts)
    from consilience.stores.embedded import EmbeddedStores

    return EmbeddedStores.create(place, spaces, language=language, facts=facts)


def open_stores(place: str | Path, *, write: bool = False, verify: bool = True) -> EmbeddedStores | PostgresStores:
    """Open the stores of an index for reading, or for writing.

    verify: compare the checksums of all files of a folder; a server looks after its own. Raises RequestError where
    there is no index, OutputError where another process writes.
    """
    if _in_server(place):
        from consilience.stores.postgres.stores import PostgresStores

        return PostgresStores(*read_place(str(place)), write=write)
    from consilience.stores.embedded import EmbeddedStores

    return EmbeddedStores(place, write=write, verify=verify)


def has_stores(place: str | Path) -> bool:
    """Whether there is an index at a place. Raises RequestError for a server that cannot be asked."""
    if _in_server(place):
        from consilience.stores.postgres.schema import has_index

        url, name = read_place(str(place))
        return has_index(Address.read(url), name)
    return (Path(place) / MANIFEST).is_file()


def shown_place(place: str | Path) -> str:
    """Return a place as it can be printed: without a password.

    >>> shown_place("postgresql://ann:secret@db.example/notes?index=manuals")
    'postgresql://ann@db.example/notes?index=manuals'
    """
    if not _in_server(place):
        return str(place)
    url, name = read_place(str(place))
    shown = str(Address.read(url))
    return f"{shown}{'&' if '?' in shown else '?'}index={name}"


def _in_server(place: str | Path) -> bool:
    """Whether a place is in a server; one that was made a path has lost a slash, and would become a folder."""
    if isinstance(place, Path) and place.parts[:1] in (("postgresql:",), ("postgres:",)):
        raise RequestError("the address of a server was given as a path; give it as a text")
    return is_address(place)
