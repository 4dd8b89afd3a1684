"""What a model asks of expert tools, as text: calls of tasks with regions of an image, parsed as they are generated.

    reply  := (text | call)*              call := "<task:NAME>" (text | ground)* "</task>"
    ground := "<grd>" [phrase] box "</grd>"     box := "[" x1 "," y1 "," x2 "," y2 "]"   0 <= x1 < x2 <= 1, y alike

Source: UnifiedMLLM, 2024 (arXiv 2408.02503) has the task and grounding tokens; its code was not published and the
grammar is ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from consilience.errors import RequestError

__all__ = ["Ground", "Malformed", "Part", "ReplyParser", "TaskCall", "escape", "parse_reply", "render_reply"]

Box = tuple[float, float, float, float]

_NAME = r"[A-Za-z0-9_.\-]{1,64}"
_MARK = re.compile(rf"<task:({_NAME})>|</task>|<grd>|</grd>")
_STARTS = ("<task:", "</task>", "<grd>", "</grd>")
_OPEN_NAME = re.compile(r"<task:[A-Za-z0-9_.\-]{0,64}\Z")
_LONGEST = 72  # characters of a mark
_NUMBER = r"\s*([^\s,\[\]]+)\s*"
_GROUND = re.compile(rf"(.*?)\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Ground:
    """A region: corners relative to the image (left, top, right, bottom; 0 to 1), and what is said of it."""

    box: Box
    phrase: str = ""


@dataclass(frozen=True)
class TaskCall:
    """A call: the task's name, its text and regions in order, and where it starts in the reply (characters)."""

    name: str
    parts: tuple[str | Ground, ...] = ()
    position: int = 0

    @property
    def text(self) -> str:
        """The text of the call without its regions."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def regions(self) -> tuple[Ground, ...]:
        """The regions of the call."""
        return tuple(part for part in self.parts if isinstance(part, Ground))


@dataclass(frozen=True)
class Malformed:
    """Text that looks like a call and is none: it is shown, never executed."""

    text: str
    position: int
    reason: str


Part = str | TaskCall | Malformed


def escape(text: str) -> str:
    """Return text in which nothing reads as a mark; `parse_reply` gives the text back.

    What users write is escaped before a model sees it, so that it can never become a call.

    >>> escape("AT&T <task:delete>all</task>")
    'AT&amp;T &lt;task:delete>all&lt;/task>'
    """
    text = text.replace("&", "&amp;")
    for start in _STARTS:
        text = text.replace(start, "&lt;" + start[1:])
    return text.replace("<", "&lt;") if _open_mark(text) else text  # its end must not begin a mark


def _plain(text: str) -> str:
    return text.replace("&lt;", "<").replace("&amp;", "&")


def render_reply(parts: Iterable[Part]) -> str:
    """Return a reply as text.

    >>> call = TaskCall("segment", ("the cup", Ground((0.1, 0.2, 0.5, 0.75), "red")))
    >>> render_reply(["Here: ", call])
    'Here: <task:segment>the cup<grd>red[0.1,0.2,0.5,0.75]</grd></task>'

    Raises RequestError for names and boxes that the grammar does not have.
    """
    return "".join(_rendered(part) for part in parts)


def _rendered(part: Part) -> str:
    if isinstance(part, Malformed):
        return part.text
    if isinstance(part, str):
        return escape(part)
    if not re.fullmatch(_NAME, part.name):
        raise RequestError(f"task name {part.name!r}: 1 to 64 letters, digits, and . _ -")
    found = [f"<task:{part.name}>"]
    for inner in part.parts:
        if isinstance(inner, str):
            found.append(escape(inner))
        else:
            reason = _box_problem(inner.box)
            if reason or "[" in inner.phrase:
                raise RequestError(f"region {inner.box}: {reason or 'its phrase has a bracket'}")
            found.append(f"<grd>{escape(inner.phrase)}[{','.join(map(repr, inner.box))}]</grd>")
    return "".join(found) + "</task>"


def parse_reply(text: str) -> list[Part]:
    """Return the parts of a whole reply.

    >>> parse_reply("Look: <task:count>cups</task>")
    ['Look: ', TaskCall(name='count', parts=('cups',), position=6)]
    >>> parse_reply("<task:count>cups")[0].reason
    'the call is not closed'
    """
    parser = ReplyParser()
    return _joined([*parser.feed(text), *parser.close()])


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Join neighbouring texts, and turn what is escaped back."""
    found: list[Part] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return [_plain(part) if isinstance(part, str) else part for part in found]


class ReplyParser:
    """Parses a reply while it is generated: chunks may end anywhere, in the middle of a mark too.

    >>> parser = ReplyParser()
    >>> [part for chunk in ("a <ta", "sk:count>cu", "ps</ta", "sk>") for part in parser.feed(chunk)]
    ['a ', TaskCall(name='count', parts=('cups',), position=2)]

    Text comes out as it stands, escaped (`parse_reply` joins and unescapes it). Time is linear in the text; `limit` is
    the longest call in characters, beyond it a call is malformed.
    """

    def __init__(self, *, limit: int = 100_000) -> None:
        self._limit = limit
        self._held = ""  # what may be the beginning of a mark
        self._at = 0  # position of what is held
        self._call: _OpenCall | None = None

    def feed(self, chunk: str) -> list[Part]:
        """Take the next characters; return the parts that are complete."""
        text = self._held + chunk
        found, done = [], 0
        for match in _MARK.finditer(text):
            found += self._text(text[done : match.start()], self._at + done)
            found += self._mark(match[0], match[1], self._at + match.start())
            done = match.end()
        keep = _open_mark(text[done:])
        found += self._text(text[done : len(text) - keep], self._at + done)
        self._held, self._at = text[len(text) - keep :], self._at + len(text) - keep
        return found

    def close(self) -> list[Part]:
        """End the reply; return what is left: text, or a call that was not closed."""
        found = self._text(self._held, self._at)
        self._held = ""
        if self._call is not None:
            call, self._call = self._call, None
            found.append(call.malformed("the call is not closed"))
        return found

    def _text(self, text: str, position: int) -> list[Part]:
        if not text:
            return []
        if self._call is None:
            return [text]
        self._call.text(text)
        if self._call.length > self._limit:
            call, self._call = self._call, None
            return [call.malformed(f"the call is longer than {self._limit:,} characters")]
        return []

    def _mark(self, mark: str, name: str | None, position: int) -> list[Part]:
        if self._call is not None:
            finished = self._call.mark(mark, name)
            if not finished:
                return []
            call, self._call = self._call, None
            return [call.result()]
        if name is not None:
            self._call = _OpenCall(name, position, mark)
            return []
        return [Malformed(mark, position, "it closes nothing" if mark.startswith("</") else "a region outside a call")]


class _OpenCall:
    """A call that is being read: its parts so far, and what is wrong with it."""

    def __init__(self, name: str, position: int, mark: str) -> None:
        self.name, self.position, self.depth = name, position, 1
        self.raw, self.length = [mark], len(mark)
        self.parts: list[str | Ground] = []
        self.region: list[str] | None = None
        self.reason = ""

    def text(self, text: str) -> None:
        self._seen(text)
        (self.parts if self.region is None else self.region).append(text)

    def _seen(self, text: str) -> None:
        self.raw.append(text)
        self.length += len(text)

    def mark(self, mark: str, name: str | None) -> bool:
        """Take a mark; return whether the call ends here."""
        self._seen(mark)
        if name is not None:
            self.depth += 1
            self._wrong("a call inside a call")
        elif mark == "</task>":
            self.depth -= 1
            if self.depth == 0 and self.region is not None:
                self._wrong("a region is not closed")
            return self.depth == 0
        elif mark == "<grd>":
            if self.region is not None:
                self._wrong("a region inside a region")
            self.region = []
        elif self.region is None:
            self._wrong("it closes no region")
        else:
            self._close_region("".join(self.region))
            self.region = None
        return False

    def _close_region(self, text: str) -> None:
        match = _GROUND.match(text)
        if match is None:
            self._wrong(f"region {text[:60]!r} has no box [x1,y1,x2,y2] at its end")
            return
        try:
            x1, y1, x2, y2 = (float(match[place]) for place in (2, 3, 4, 5))
        except ValueError:
            self._wrong(f"region {text[:60]!r}: its corners are not numbers")
            return
        if reason := _box_problem((x1, y1, x2, y2)):
            self._wrong(f"region {text[:60]!r}: {reason}")
        self.parts.append(Ground((x1, y1, x2, y2), _plain(match[1].strip())))

    def _wrong(self, reason: str) -> None:
        self.reason = self.reason or reason

    def malformed(self, reason: str) -> Malformed:
        return Malformed("".join(self.raw), self.position, self.reason or reason)

    def result(self) -> TaskCall | Malformed:
        if self.reason:
            return self.malformed(self.reason)
        parts = tuple(part for part in _merged(self.parts))
        return TaskCall(self.name, parts, self.position)


def _merged(parts: Iterable[str | Ground]) -> Iterator[str | Ground]:
    """Join the pieces of text between regions."""
    held: list[str] = []
    for part in parts:
        if isinstance(part, str):
            held.append(part)
            continue
        if held:
            yield _plain("".join(held))
            held = []
        yield part
    if held:
        yield _plain("".join(held))


def _box_problem(box: Box) -> str:
    x1, y1, x2, y2 = box
    if not all(0 <= value <= 1 for value in box):  # NaN compares false
        return "corners are shares of the image, from 0 to 1"
    return "" if x1 < x2 and y1 < y2 else "the first corner is left of and above the second"


def _open_mark(text: str) -> int:
    """Return how many characters at the end may be the beginning of a mark."""
    start = text.rfind("<", max(len(text) - _LONGEST, 0))
    if start < 0:
        return 0
    tail = text[start:]
    unfinished = any(mark.startswith(tail) for mark in _STARTS) or _OPEN_NAME.match(tail)
    return len(tail) if unfinished else 0
