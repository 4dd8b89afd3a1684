"""Text-to-text tasks on the same generated sentences, and small encoder-decoders for them.

A stand-in for instruction tuning of a pretrained BART on biomedical tasks, whose data and weights are not public here:
sentences of a small grammar; tasks that differ in their instruction alone; a base trained in the run to restore
masked words of other sentences, as BART was.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from consilience.bench.experiments.scores import Scores
from consilience.bench.experiments.store import load_or_make
from consilience.bench.experiments.workbench import CACHE
from consilience.core.hashing import fingerprint
from consilience.core.randomness import stream_key
from consilience.data.instructions import InstructionData, InstructionTask, TaskInstance
from consilience.data.prompting import Prompting
from consilience.data.rendering import Demonstration, Instruction, render

if TYPE_CHECKING:
    from consilience.bench.experiments.family import Split, State
    from consilience.models.seq2seq import Seq2SeqModel

__all__ = ["InstructedTexts"]

_VERSION = 1
_MASK = "<mask>"
_CONFIG = {"model_type": "t5", "d_model": 64, "num_layers": 2, "num_decoder_layers": 2, "dropout_rate": 0.0}

_PERSONS = ("anna", "boris", "clara", "david", "elena", "frank", "greta", "hugo", "irene", "jonas", "karla", "leo")
_CITIES = (
    "paris",
    "london",
    "berlin",
    "madrid",
    "vienna",
    "oslo",
    "rome",
    "athens",
    "lima",
    "prague",
    "dublin",
    "bern",
)
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
_VERBS = ("bought", "sold", "found", "lost")
_THINGS = {
    "food": ("apples", "pears", "cakes", "loaves", "plums", "pies"),
    "animal": ("horses", "goats", "ducks", "cows", "hens", "pigs"),
    "vehicle": ("cars", "trucks", "boats", "bikes", "trains", "vans"),
    "tool": ("hammers", "saws", "drills", "spades", "rakes", "axes"),
}
_MOODS = {
    "good": ("wonderful", "great", "lovely", "superb", "splendid", "fine"),
    "bad": ("awful", "terrible", "poor", "nasty", "dreadful", "grim"),
}
_FRAMES = (
    "{person} {verb} {number} {thing} in {city} : {mood}",
    "in {city} {person} {verb} {number} {mood} {thing}",
    "{mood} : {number} {thing} that {person} {verb} in {city}",
)

Words = Mapping[str, str]


class _Task(NamedTuple):
    definition: str
    answer: Callable[[Words], str]
    metric: str = "exact"
    labels: tuple[str, ...] = ()


def _more(words: Words) -> bool:
    return _NUMBERS.index(words["number"]) > _NUMBERS.index("five")


# As in the published collection, several tasks need the same knowledge: whom or what a word names.
_TASKS: Mapping[str, _Task] = {
    "entities": _Task(
        "tag all entities with their types",
        lambda words: f"{words['person']} <PERSON> , {words['city']} <CITY>",
        "entity_f1",
    ),
    "item": _Task("copy number and thing", lambda words: f"{words['number']} {words['thing']}", "rouge_l"),
    "many": _Task("compare with five", lambda words: "more" if _more(words) else "less", labels=("more", "less")),
    "topic": _Task("classify the thing", lambda words: words["topic"], labels=tuple(_THINGS)),
    "edible": _Task(
        "can people eat it", lambda words: "yes" if words["topic"] == "food" else "no", labels=("yes", "no")
    ),
    "thing": _Task(
        "write the thing followed by its kind", lambda words: f"{words['thing']} <{words['topic']}>", "entity_f1"
    ),
    "tone": _Task("judge the mood as good or bad", lambda words: words["tone"], labels=tuple(_MOODS)),
    "mood": _Task("find the word of mood and tag it", lambda words: f"{words['mood']} <{words['tone']}>", "entity_f1"),
}


def _sentence(draw: random.Random) -> dict[str, str]:
    topic, tone = draw.choice(list(_THINGS)), draw.choice(list(_MOODS))
    words = {
        "person": draw.choice(_PERSONS),
        "city": draw.choice(_CITIES),
        "number": draw.choice(_NUMBERS),
        "verb": draw.choice(_VERBS),
        "topic": topic,
        "thing": draw.choice(_THINGS[topic]),
        "tone": tone,
        "mood": draw.choice(_MOODS[tone]),
    }
    return {**words, "text": draw.choice(_FRAMES).format(**words)}


class InstructedTexts:
    """Tasks, models and scores.

    train, dev, test: sentences of each split; all tasks have the same ones, so that only an instruction can tell what
    is asked. pretrain: sentences without tasks, apart from the others. pretrain_steps, batch, learning_rate: of the
    training. `prompting` is what models read of an instruction (the definition). The sentences are the same for all
    seeds; a seed decides the base's weights, the order of examples and the few that are drawn.
    """

    def __init__(
        self,
        *,
        train: int = 1000,
        dev: int = 100,
        test: int = 100,
        pretrain: int = 3000,
        pretrain_steps: int = 500,
        batch: int = 32,
        learning_rate: float = 2e-3,
        prompting: Prompting | None = None,
        cache: str | Path | None = None,
    ) -> None:
        self.prompting = prompting or Prompting(("definition",))
        self.sizes = {"train": train, "dev": dev, "test": test, "pretrain": pretrain}
        self.settings: dict[str, Any] = {"batch": batch, "learning_rate": learning_rate}
        self.pretrain_steps = pretrain_steps
        read = [list(self.prompting.fields), self.prompting.examples]
        key = [_VERSION, _CONFIG, self.sizes, self.settings, pretrain_steps, read, self.data.content_hash]
        self.cache = Path(CACHE if cache is None else cache) / "instructed-texts" / fingerprint(key)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._first: Seq2SeqModel | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(_TASKS)

    @cached_property
    def _sentences(self) -> dict[str, list[dict[str, str]]]:
        draw, seen = random.Random(stream_key(7, "sentences")), set[str]()
        parts: dict[str, list[dict[str, str]]] = {"shown": []}
        for part, size in {"shown": 1, **self.sizes}.items():
            parts[part] = []
            while len(parts[part]) < size:
                words = _sentence(draw)
                if words["text"] not in seen:
                    seen.add(words["text"])
                    parts[part].append(words)
        return parts

    @cached_property
    def data(self) -> InstructionData:
        """The tasks with their instructions and instances."""
        (shown,) = self._sentences["shown"]
        tasks = []
        for name, task in _TASKS.items():
            splits = {
                split: [TaskInstance(words["text"], (task.answer(words),)) for words in self._sentences[split]]
                for split in ("train", "dev", "test")
            }
            instruction = Instruction(task.definition, examples=(Demonstration(shown["text"], task.answer(shown)),))
            tasks.append(InstructionTask(name, instruction, splits, task.metric, task.labels))
        return InstructionData.of("instructed texts", tasks)

    def model(self, state: Mapping[str, Any] | None = None, *, seed: int = 0) -> Seq2SeqModel:
        """Return a model with the weights of a state, or with the initial weights of a seed."""
        from consilience.models.seq2seq_loading import create_seq2seq, word_tokenizer

        if self._first is None:
            shown = [render(task.instruction, task.instances("train")[0].input) for task in self.data.tasks.values()]
            words = [words["text"] for words in self._sentences["pretrain"]]
            answers = [task.answer(words) for task in _TASKS.values() for words in self._sentences["train"]]
            self._tokenizer = word_tokenizer([*shown, *words, *answers, _MASK], max_tokens=128)
            self._folder = tempfile.TemporaryDirectory()
            place = Path(self._folder.name) / "model"
            self._first = create_seq2seq(place, _CONFIG, self._tokenizer, device="cpu")
        if state is None:
            with tempfile.TemporaryDirectory() as folder:
                return create_seq2seq(Path(folder) / "m", _CONFIG, self._tokenizer, seed=seed, device="cpu")
        model = copy.copy(self._first)
        model.module = copy.deepcopy(self._first.module)
        model.load(state)
        return model

    def base(self, seed: int) -> State:
        """Return the base of a seed: trained to restore sentences of which three words in ten are masked."""
        from consilience.training.seq2seq_steps import fit_seq2seq

        def make() -> State:
            draw, pairs = random.Random(stream_key(seed, "masks")), []
            for words in self._sentences["pretrain"] * 3:
                text = words["text"]
                masked = " ".join(_MASK if draw.random() < 0.3 else word for word in text.split())
                pairs.append((masked, text))
            model = self.model(seed=seed)
            fit_seq2seq(model, pairs, steps=self.pretrain_steps, seed=seed, **self.settings)
            return model.state()

        return load_or_make(self.cache / f"seed-{seed}" / "base", {"base": seed}, make)

    def learn(
        self, seed: int, *, steps: int, tasks: Sequence[str] = (), instructed: bool = True, shots: int | None = None
    ) -> State:
        """Return the base trained on tasks (none named: all), with or without instructions, on few instances or all."""
        from consilience.training.seq2seq_steps import fit_seq2seq, task_examples

        chosen = tuple(tasks) or self.tasks
        asked = {"tasks": chosen, "instructed": instructed, "shots": shots, "steps": steps, "seed": seed}

        def make() -> State:
            data = self.data.only(*chosen)
            model = self.model(self.base(seed))
            examples = task_examples(model, data, data.training().few(shots, seed=seed), self._prompting(instructed))
            fit_seq2seq(model, examples.pairs, steps=steps, seed=seed, **self.settings)
            return model.state()

        return load_or_make(self.cache / f"seed-{seed}" / fingerprint(asked), asked, make)

    def _prompting(self, instructed: bool) -> Prompting:
        return self.prompting if instructed else Prompting(fields=())

    def scores(
        self,
        state: Mapping[str, Any],
        *,
        tasks: Sequence[str] = (),
        instructed: bool = True,
        swapped: bool = False,
        split: Split = "test",
    ) -> Scores:
        """Return the score of every instance; `swapped` gives each task the instruction of the one before."""
        from dataclasses import replace

        from consilience.training.seq2seq_steps import answer_tasks

        data = self.data.only(*(tasks or self.tasks))
        if swapped:
            held = list(data.tasks.values())
            moved = [replace(task, instruction=held[place - 1].instruction) for place, task in enumerate(held)]
            data = InstructionData.of(data.name, moved)
        found = answer_tasks(self.model(state), data, split=split, prompting=self._prompting(instructed), new_tokens=8)
        return Scores({name: np.asarray(scores.scores) for name, scores in found.items()})
