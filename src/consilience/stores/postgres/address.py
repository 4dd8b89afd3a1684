"""Addresses of servers: checked before they are used, and shown without their password."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit

from consilience.errors import RequestError

__all__ = ["FORM", "Address", "check_name", "is_address", "read_place"]

FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_SCHEMES = ("postgresql://", "postgres://")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_SHOWN = ("user", "host", "port", "dbname")


@dataclass(frozen=True)
class Address:
    """The parameters of a connection; shown without the password.

    >>> str(Address.read("postgresql://ann:secret@db.example:5433/notes"))
    'postgresql://ann@db.example:5433/notes'
    """

    parameters: Mapping[str, str]

    @classmethod
    def read(cls, url: str) -> Address:
        """Read a URL as libpq does. Raises RequestError, which never repeats what may be a password."""
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict

        try:
            found = conninfo_to_dict(url) if is_address(url) else {}
        except ProgrammingError:
            found = {}
        place = url.partition("://")[2].partition("?")[0]
        port = str(found.get("port") or "5432")
        # a password with a bare @ or / would be read as a host or a port, and be shown as such
        if not found or place.count("@") > 1 or "@" in place.partition("/")[2] or not re.fullmatch(r"[\d,]+", port):
            raise RequestError(
                f"this is no address of a PostgreSQL server; write {FORM}, with the characters @ : / ? # % of a "
                "password as %40 %3A %2F %3F %23 %25 (the address is not repeated here: it may hold a password)"
            )
        return cls({key: str(value) for key, value in found.items()})

    def __str__(self) -> str:
        user, host, port, database = (self.parameters.get(key, "") for key in _SHOWN)
        local = host.startswith("/")
        place = (f"{user}@" if user else "") + ("" if local else host) + (f":{port}" if port else "")
        return f"postgresql://{place}/{database}" + (f"?host={host}" if local else "")

    __repr__ = __str__

    def without_password(self, text: str) -> str:
        """Return a text in which the password is not."""
        password = self.parameters.get("password", "")
        for form in (password, quote(password, safe="")):
            text = text.replace(form, "***") if form else text
        return text


def is_address(place: object) -> bool:
    """Whether a place is the address of a server.

    >>> is_address("postgresql://localhost/notes"), is_address("build/index")
    (True, False)
    """
    return isinstance(place, str) and place.startswith(_SCHEMES)


def read_place(place: str) -> tuple[str, str]:
    """Return the address of the server, and the name of the index that the parameter `index` gives.

    >>> read_place("postgresql://ann@db.example/notes?sslmode=require&index=manuals")
    ('postgresql://ann@db.example/notes?sslmode=require', 'manuals')

    Raises RequestError where no index, or more than one, is named.
    """
    address, _, query = place.partition("?")
    if "#" in place or urlsplit(place).scheme + "://" not in _SCHEMES:
        raise RequestError(f"this is no address of an index; write {FORM}?index=NAME, with # as %23")
    pairs = [one for one in query.split("&") if one]
    named = [value for key, value in parse_qsl(query) if key == "index"]
    if len(named) != 1:
        raise RequestError(
            f"{len(named)} indexes are named in the address; name one: {FORM}?index=NAME (or &index=NAME after others)"
        )
    others = "&".join(one for one in pairs if one.partition("=")[0] != "index")
    return address + (f"?{others}" if others else ""), check_name(named[0])


def check_name(name: str) -> str:
    """Return the name of an index if it can be one: it is the name of a schema.

    >>> check_name("pg_catalog")
    Traceback (most recent call last):
    ...
    consilience.errors.RequestError: index 'pg_catalog': a name has a letter a-z, then at most 62 of a-z, 0-9, _, ...
    """
    taken = name in ("public", "information_schema") or name.startswith("pg_")
    if not _NAME.fullmatch(name) or taken:
        raise RequestError(
            f"index {name!r}: a name has a letter a-z, then at most 62 of a-z, 0-9, _, and is not public, "
            "information_schema or pg_..."
        )
    return name
