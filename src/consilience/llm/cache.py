"""Replies kept in files, by a hash of model and request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from consilience.core.hashing import fingerprint
from consilience.core.records import read_record, write_record
from consilience.errors import RequestError, did_you_mean
from consilience.llm.errors import ReplayError
from consilience.llm.protocol import Reply

__all__ = ["CacheMode", "ReplyCache"]

CacheMode = Literal["off", "read", "write", "replay"]
_KIND, _VERSION = "llm-reply", 1


class ReplyCache:
    """A folder of replies, one file each.

    >>> import tempfile
    >>> cache = ReplyCache(tempfile.mkdtemp())
    >>> cache.put({"model": "m"}, Reply("yes"))
    >>> cache.get({"model": "m"}).text, cache.get({"model": "other"})
    ('yes', None)

    mode: "write" takes what is there and keeps what is new; "read" takes, and keeps nothing new; "replay" only takes,
    and what is missing is a ReplayError; "off" does nothing. Sampling with the same request gives the kept answer
    again: use seeds for several. Files hold requests and replies, never keys.
    """

    def __init__(self, folder: str | Path, mode: CacheMode = "write") -> None:
        if mode not in get_args(CacheMode):
            raise RequestError(f"cache mode {mode!r} is unknown{did_you_mean(str(mode), get_args(CacheMode))}")
        self.folder = Path(folder)
        self.mode = mode

    def _path(self, request: Mapping[str, Any]) -> Path:
        key = fingerprint(request)
        return self.folder / key[:2] / f"{key}.json"

    def get(self, request: Mapping[str, Any]) -> Reply | None:
        """Return the kept reply, or None; ReplayError where the mode is "replay" and there is none."""
        if self.mode == "off":
            return None
        path = self._path(request)
        if path.is_file():
            record = read_record(path, _KIND, _VERSION)
            if fingerprint(record.get("request")) == fingerprint(request):
                return Reply.from_dict(record["reply"])
        if self.mode == "replay":
            raise ReplayError(f"{self.folder}: no reply is kept for this request ({path.name}); run with mode 'write'")
        return None

    def put(self, request: Mapping[str, Any], reply: Reply) -> None:
        """Keep a reply where the mode is "write"."""
        if self.mode == "write":
            path = self._path(request)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_record(path, _KIND, _VERSION, {"request": dict(request), "reply": reply.to_dict()})
