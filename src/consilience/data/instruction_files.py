"""Read tasks with instructions from a folder, and report everything that is wrong with its files at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilience.data.instructions import InstructionTask, TaskInstance
from consilience.data.layout import SPLITS
from consilience.data.rendering import Demonstration, Instruction
from consilience.errors import DataError, Problems, did_you_mean

__all__ = ["read_tasks"]

_FILE = "instructions.json"
_KEYS = ("definition", "prompt", "examples", "metric", "labels")
_EXAMPLE_KEYS = ("input", "output", "explanation")
_LINE_KEYS = ("input", "output", "question")


def read_tasks(folder: Path) -> list[InstructionTask]:
    """Return the tasks of a folder in the format of `InstructionData.open`, in the order of their instructions."""
    problems = Problems()
    try:
        entries = json.loads((folder / _FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: {_FILE} cannot be read ({error}); it maps task names to instructions") from error
    if not isinstance(entries, dict):
        raise DataError(f"{folder / _FILE}: a mapping of task names to instructions is expected")
    for place in sorted(folder.iterdir()):
        if place.is_dir() and place.name not in entries:
            problems.add(f"{place.name}/: no instruction of this name in {_FILE}{did_you_mean(place.name, entries)}")
    tasks = [
        task
        for name, entry in entries.items()
        if (folder / name).is_dir() and (task := _task(folder, name, entry, problems)) is not None
    ]
    if not tasks and not problems:
        problems.add(f"none of the {len(entries)} tasks of {_FILE} has a folder with {', '.join(SPLITS)} files")
    problems.raise_if_any(DataError, str(folder))
    return tasks


def _task(folder: Path, name: str, entry: Any, problems: Problems) -> InstructionTask | None:
    if not isinstance(entry, Mapping):
        problems.add(f"{_FILE}, {name}: a mapping with Definition, Prompt and Examples is expected")
        return None
    given = {str(key).lower(): value for key, value in entry.items()}
    for key in entry:
        if str(key).lower() not in _KEYS:
            problems.add(f"{_FILE}, {name}: key {key!r} is unknown{did_you_mean(str(key).lower(), _KEYS)}")
    texts = {key: given.get(key) or "" for key in ("definition", "prompt")}
    for key, value in texts.items():
        if not isinstance(value, str):
            problems.add(f"{_FILE}, {name}: the {key} is no text")
            texts[key] = str(value)
    try:
        instruction = Instruction(**texts, examples=_examples(name, given.get("examples"), problems))
    except DataError as error:
        problems.add(f"{_FILE}, {name}: {error}")
        instruction = Instruction("-")
    labels = given.get("labels") or []
    if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        problems.add(f"{_FILE}, {name}: Labels is a list of texts")
        labels = []
    splits = {
        split: _instances(folder / name / f"{split}.jsonl", problems)
        for split in SPLITS
        if (folder / name / f"{split}.jsonl").is_file()
    }
    if not splits:
        problems.add(f"{name}/: none of {', '.join(f'{split}.jsonl' for split in SPLITS)} is there")
    metric = {"metric": str(given["metric"])} if given.get("metric") else {}
    return InstructionTask(name, instruction, splits, labels=tuple(labels), **metric)


def _examples(name: str, given: Any, problems: Problems) -> tuple[Demonstration, ...]:
    found = []
    for place, one in enumerate(given if isinstance(given, list) else [given] if given else []):
        fits = isinstance(one, Mapping) and set(one) <= set(_EXAMPLE_KEYS)
        if fits and all(isinstance(value, str) for value in one.values()):
            found.append(Demonstration(one.get("input", ""), one.get("output", ""), one.get("explanation", "")))
        else:
            problems.add(f"{_FILE}, {name}: example {place} is no mapping of texts with {', '.join(_EXAMPLE_KEYS)}")
    return tuple(found)


def _instances(path: Path, problems: Problems) -> tuple[TaskInstance, ...]:
    found = []
    where = f"{path.parent.name}/{path.name}"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        problems.add(f"{where}: cannot be read ({error})")
        return ()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            problems.add(f"{where}, line {number}: no JSON ({error})")
            continue
        instance = _instance(entry)
        if instance is None:
            problems.add(f'{where}, line {number}: expected {{"input": text, "output": text or texts}}, "question"')
        else:
            found.append(instance)
    if not found:
        problems.add(f"{where}: holds no instances")
    return tuple(found)


def _instance(entry: Any) -> TaskInstance | None:
    if not isinstance(entry, Mapping) or not set(entry) <= set(_LINE_KEYS):
        return None
    output = entry.get("output")
    answers: list[Any] = output if isinstance(output, list) else [output]
    question = entry.get("question", "")
    fits = answers and all(isinstance(one, str) for one in (*answers, entry.get("input"), question))
    return TaskInstance(entry["input"], tuple(answers), question) if fits else None
