r"""Instructions as text: one fixed layout that can be read back, whatever the fields contain.

    Instruction: Definition: D, Prompt: P, Positive Examples: [[input: I, output: O, explanation: E], [...]];
    Instance: input: X, output: ?

on one line. A field in which a part of the layout occurs is escaped: a backslash before it (and before backslashes).
Source: In-BoXBART, arXiv 2204.07600, the layout of its README; the place of the prompt and the escapes are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from consilience.errors import DataError, Problems, did_you_mean

__all__ = ["FIELDS", "Demonstration", "Instruction", "parse", "render"]

FIELDS = ("definition", "prompt", "examples")

_DEFINITION, _PROMPT, _EXAMPLES = "Definition: ", "Prompt: ", "Positive Examples: [["
_INPUT, _OUTPUT, _EXPLANATION = "input: ", ", output: ", ", explanation: "
_NEXT, _LAST, _INSTANCE, _END = "], [", "]]", "; Instance: input: ", ", output: ?"
_START = "Instruction: "
_MARKS = (_OUTPUT, _EXPLANATION, _NEXT, _LAST, _INSTANCE, f", {_PROMPT}", f", {_EXAMPLES}", _END, "\\")
_BEGINS = re.compile(f"(?={'|'.join(map(re.escape, _MARKS))})")


def _squeezed(text: str) -> str:
    return " ".join(text.split())


@dataclass(frozen=True)
class Demonstration:
    """A solved example of a task; white space is squeezed."""

    input: str
    output: str
    explanation: str = ""

    def __post_init__(self) -> None:
        for name in ("input", "output", "explanation"):
            object.__setattr__(self, name, _squeezed(getattr(self, name)))


@dataclass(frozen=True)
class Instruction:
    """What a task asks for: a definition, a short prompt, positive examples; white space is squeezed.

    >>> Instruction("Say  yes\\nor no.").definition
    'Say yes or no.'

    Raises DataError with every field that is missing: a definition or a prompt has to be there, and every example
    needs input and output.
    """

    definition: str = ""
    prompt: str = ""
    examples: tuple[Demonstration, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("definition", "prompt"):
            object.__setattr__(self, name, _squeezed(getattr(self, name)))
        problems = Problems()
        if not (self.definition or self.prompt):
            problems.add("it has neither a definition nor a prompt")
        for place, example in enumerate(self.examples):
            if not (example.input and example.output):
                problems.add(f"example {place} has no {'output' if example.input else 'input'}")
        problems.raise_if_any(DataError, "instruction")


def render(
    instruction: Instruction,
    text: str,
    *,
    fields: Sequence[str] = ("definition", "examples"),
    examples: int | None = None,
) -> str:
    """Return the input of a model: the instruction's `fields`, then the instance's text, on one line.

    >>> asked = Instruction("Is it alive?", examples=(Demonstration("a dog", "yes", "dogs live"),))
    >>> render(asked, "a stone")
    'Instruction: Definition: Is it alive?, Positive Examples: [[input: a dog, output: yes, explanation: dogs live]]; \
Instance: input: a stone, output: ?'
    >>> render(asked, "a stone", fields=())
    'a stone'

    fields: any of "definition", "prompt", "examples", always in this order; none leaves the text alone, without an
    instruction. examples: at most as many. Parts that the instruction does not have are left out; DataError when
    nothing of it would be left.
    """
    unknown = [name for name in fields if name not in FIELDS]
    if unknown:
        raise DataError(f"field {unknown[0]!r} is unknown{did_you_mean(unknown[0], FIELDS)}")
    text = _squeezed(text)
    if not fields:
        return text
    parts: list[tuple[str, str]] = []
    if "definition" in fields and instruction.definition:
        parts.append((_DEFINITION, instruction.definition))
    if "prompt" in fields and instruction.prompt:
        parts.append((_PROMPT, instruction.prompt))
    if not parts:
        raise DataError(f"of the fields {', '.join(fields)} the instruction has none but examples: nothing is asked")
    shown = instruction.examples[:examples] if "examples" in fields else ()
    marks = [_START + parts[0][0], *(f", {mark}" for mark, _ in parts[1:])]
    values = [value for _, value in parts]
    for place, one in enumerate(shown):
        marks += [(_NEXT if place else f", {_EXAMPLES}") + _INPUT, _OUTPUT]
        values += [one.input, one.output]
        if one.explanation:
            marks, values = [*marks, _EXPLANATION], [*values, one.explanation]
    marks.append((_LAST if shown else "") + _INSTANCE)
    values.append(text)
    written = (
        mark + _escaped(value, after) for mark, value, after in zip(marks, values, [*marks[1:], _END], strict=True)
    )
    return "".join(written) + _END


def _escaped(value: str, after: str) -> str:
    """Put a backslash wherever a mark begins, also one that only the text after the value completes."""
    begun = [found.start() for found in _BEGINS.finditer(value + after) if found.start() < len(value)]
    edges = [0, *begun, len(value)]
    return "\\".join(value[start:stop] for start, stop in pairwise(edges))


def parse(text: str) -> tuple[Instruction, str]:
    """Return the instruction and the instance's text of what `render` wrote with an instruction.

    >>> parse("Instruction: Definition: Is it alive?; Instance: input: a stone, output: ?")[1]
    'a stone'

    Raises DataError for a text of another layout, with the place.
    """
    reader = _Reader(text)
    reader.take(_START)
    definition = prompt = ""
    examples: list[Demonstration] = []
    shown = f", {_EXAMPLES}"
    if reader.next_is(_DEFINITION):
        reader.take(_DEFINITION)
        definition = reader.until(f", {_PROMPT}", shown, _INSTANCE)
        if reader.next_is(f", {_PROMPT}"):
            reader.take(", ")
    if reader.next_is(_PROMPT):
        reader.take(_PROMPT)
        prompt = reader.until(shown, _INSTANCE)
    more = reader.next_is(shown)
    reader.take(shown if more else "")
    while more:
        reader.take(_INPUT)
        given = reader.until(_OUTPUT)
        reader.take(_OUTPUT)
        output, explanation = reader.until(_EXPLANATION, _NEXT, _LAST), ""
        if reader.next_is(_EXPLANATION):
            reader.take(_EXPLANATION)
            explanation = reader.until(_NEXT, _LAST)
        examples.append(Demonstration(given, output, explanation))
        more = reader.next_is(_NEXT)
        reader.take(_NEXT if more else _LAST)
    reader.take(_INSTANCE)
    instance = reader.until(_END)
    reader.take(_END)
    reader.finish()
    return Instruction(definition, prompt, tuple(examples)), instance


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def next_is(self, mark: str) -> bool:
        return self.text.startswith(mark, self.place)

    def take(self, mark: str) -> None:
        if not self.next_is(mark):
            raise DataError(f"rendered instruction: expected {mark!r} at {self.place}, found {self._rest()!r}")
        self.place += len(mark)

    def until(self, *marks: str) -> str:
        """Return the text up to the first of the marks, escapes undone."""
        found: list[str] = []
        while self.place < len(self.text) and not self.text.startswith(marks, self.place):
            self.place += self.text[self.place] == "\\"
            found.append(self.text[self.place : self.place + 1])
            self.place += 1
        return "".join(found)

    def finish(self) -> None:
        if self.place != len(self.text):
            raise DataError(f"rendered instruction: {self._rest()!r} is left after its end")

    def _rest(self) -> str:
        return self.text[self.place : self.place + 30]
