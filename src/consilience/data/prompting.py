"""From tasks to what a model reads: instances under their task's instruction, shortened where a limit asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consilience.data.rendering import FIELDS, render
from consilience.errors import DataError, Problems, did_you_mean

if TYPE_CHECKING:
    from consilience.data.instructions import InstructionTask, TaskInstance

__all__ = ["Prompting", "Prompts"]

Counter = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True)
class Prompts:
    """Inputs of a model in the order of their instances; how many lost examples of the instruction, or text."""

    texts: tuple[str, ...] = field(repr=False)
    fewer_examples: int = 0
    cut_inputs: int = 0


@dataclass(frozen=True)
class Prompting:
    """Which parts of an instruction a model reads: `fields` of `render`, and at most `examples` of its examples.

    >>> from consilience.data.instructions import InstructionTask, TaskInstance
    >>> from consilience.data.rendering import Instruction
    >>> task = InstructionTask("alive", Instruction("Is it alive?"), {})
    >>> words = lambda texts: [len(text.split()) for text in texts]
    >>> Prompting().prompts(task, [TaskInstance("a dog of my old friend", ("yes",))], words, 11).texts
    ('Instruction: Definition: Is it alive?; Instance: input: a dog, output: ?',)
    >>> Prompting(fields=()).prompts(task, [TaskInstance("a dog", ("yes",))], words, 11).texts
    ('a dog',)

    `fields=()` is no instruction. Raises DataError with everything that is wrong.
    """

    fields: tuple[str, ...] = ("definition", "examples")
    examples: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple(self.fields))
        problems = Problems()
        for name in self.fields:
            if name not in FIELDS:
                problems.add(f"field {name!r} is unknown{did_you_mean(name, FIELDS)}")
        if self.fields and not {"definition", "prompt"} & set(self.fields):
            problems.add("an instruction of examples alone asks nothing; add definition or prompt")
        if self.examples is not None and self.examples < 0:
            problems.add(f"examples is {self.examples}; use 0 or more, or None for all")
        problems.raise_if_any(DataError, "prompting")

    def prompts(self, task: InstructionTask, instances: Sequence[TaskInstance], count: Counter, limit: int) -> Prompts:
        """Return the text of every instance, none longer than `limit` by `count`.

        A text that is too long loses its instruction's last examples first, then words at the end of the instance's
        input; never its question or the definition. Raises DataError naming the task where that is not enough.
        """
        texts = [self._text(task, one.text, self._most(task)) for one in instances]
        fewer = cut = 0
        for place, length in enumerate(count(texts)):
            if length > limit:
                texts[place], shorter = self._fitted(task, instances[place], count, limit)
                fewer, cut = fewer + bool(self._most(task)), cut + shorter
        return Prompts(tuple(texts), fewer, cut)

    def _most(self, task: InstructionTask) -> int:
        if "examples" not in self.fields:
            return 0
        held = len(task.instruction.examples)
        return held if self.examples is None else min(held, self.examples)

    def _text(self, task: InstructionTask, text: str, examples: int) -> str:
        try:
            return render(task.instruction, text, fields=self.fields, examples=examples)
        except DataError as error:
            raise DataError(f"task {task.name}: {error}") from error

    def _fitted(self, task: InstructionTask, instance: TaskInstance, count: Counter, limit: int) -> tuple[str, bool]:
        for examples in range(self._most(task) - 1, -1, -1):
            text = self._text(task, instance.text, examples)
            if count([text])[0] <= limit:
                return text, False
        words, low, best = instance.input.split(), 0, ""
        high = len(words)
        while low < high:  # the longest start of the input that fits
            middle = (low + high) // 2
            kept = " ".join([instance.question, *words[:middle]]).strip()
            text = self._text(task, kept, 0)
            if kept and count([text])[0] <= limit:
                best, low = text, middle + 1
            elif kept:
                high = middle
            else:
                low = middle + 1
        if not best:
            least = count([self._text(task, instance.question or (words or [""])[0], 0)])[0]
            raise DataError(
                f"task {task.name}: its instruction takes {least} tokens with the least of an instance, the model "
                f"{limit}; shorten the definition, or leave out fields (now {', '.join(self.fields) or 'none'})"
            )
        return best, True
