"""End-to-end recipe cases: `python -m tests.golden.recipes FOLDER`.

A folder holds models and one sub-folder per case with a `recipe.yml` and what must come of it: `expected.json`, and
`expected.safetensors` where the merge must succeed. Every recipe runs through the command line with the folder as the
working directory.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from consilience.cli.app import run
from consilience.merging.mergekit_methods import METHODS
from consilience.merging.method import method_names
from tests.golden.recipe_checks import chat_problems, compare_statistics, compare_tensors, read_vocabulary
from tests.golden.runner import Outcome, report


@dataclass(frozen=True)
class Run:
    """What one call of the command line did."""

    code: int
    said: str
    out: Path


def find_cases(folder: Path) -> Iterator[Path]:
    """Yield the folder of every case."""
    yield from (path.parent for path in sorted(folder.glob("*/expected.json")) if (path.parent / "recipe.yml").exists())


def merge(folder: Path, case: Path, out: Path) -> Run:
    """Run `consilience merge CASE/recipe.yml --out OUT` with `folder` as the working directory."""
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = run(["merge", f"{case.name}/recipe.yml", "--out", str(out), "--threads", "2"])
        except Exception:  # a crash is a result here: the case fails with its traceback
            said.write(traceback.format_exc())
            code = 70
    return Run(code, said.getvalue(), out)


def absent_methods(case: Path, expected: Mapping[str, Any]) -> list[str]:
    """Return the methods a case needs that are not here."""
    written = re.findall(r"^merge_method:\s*(\w+)", (case / "recipe.yml").read_text(), re.MULTILINE)
    needed = expected.get("needs", [method for method in written if method in METHODS])
    return [method for method in needed if method not in method_names()]


def run_case(folder: Path, case: Path) -> Outcome:
    """Run one case and compare with what must come of it."""
    expected = json.loads((case / "expected.json").read_bytes())
    absent = absent_methods(case, expected)
    if absent:
        return Outcome(case.name, "skipped", f"method(s) {', '.join(absent)} not here")
    place = Path(tempfile.mkdtemp(prefix="recipe-"))
    try:
        done = merge(folder, case, place / "out")
        kind = expected.get("kind", "invalid" if expected.get("refused") else "valid")
        problems = _said(done, expected)
        if kind == "invalid":
            problems += _refused(done, expected)
        elif done.code != 0:
            problems.append(f"exit code {done.code}: {done.said.strip()[-600:]}")
        else:
            problems += _output(folder, case, done, expected, place)
    finally:
        shutil.rmtree(place)
    if problems and expected.get("informative"):
        return Outcome(case.name, "skipped", f"informative ({expected.get('reason')}): {'; '.join(problems)}")
    return Outcome(case.name, "failed" if problems else "passed", "; ".join(problems))


def _said(done: Run, expected: Mapping[str, Any]) -> list[str]:
    groups = expected.get("must_say") or [[word] for word in expected.get("message_names", ())]
    said = done.said.lower()
    problems = [f"says nothing of {' or '.join(g)}" for g in groups if not any(word.lower() in said for word in g)]
    if problems:
        problems.append(f"it said: {done.said.strip()[-600:]}")
    if "Traceback" in done.said:
        problems.append("a traceback was shown: " + done.said.strip()[-600:])
    return problems


def _refused(done: Run, expected: Mapping[str, Any]) -> list[str]:
    problems = []
    if done.code not in expected.get("exit_codes", [2]):
        problems.append(f"exit code {done.code}: {done.said.strip()[-600:]}")
    left = [str(path.relative_to(done.out.parent)) for path in done.out.parent.rglob("*")]
    if left:
        problems.append(f"a refused recipe left {left}")
    return problems


def _load(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def _output(folder: Path, case: Path, done: Run, expected: Mapping[str, Any], place: Path) -> list[str]:
    ours, theirs = _load(done.out), load_file(case / "expected.safetensors")
    vocabulary = read_vocabulary(done.out)
    if expected.get("compare") == "statistics":
        base = _load(folder / expected["statistics"]["base"])
        problems = compare_statistics(ours, theirs, base, expected["statistics"])
        again = merge(folder, case, place / "again")
        if again.code != 0 or any((a.read_bytes() != (done.out / a.name).read_bytes()) for a in _weights(again.out)):
            problems.append("two runs gave different bytes")
    else:
        problems = compare_tensors(ours, theirs, expected, vocabulary)
    problems += _config(done.out, expected)
    wanted = (expected.get("tokenizer") or {}).get("size")
    if wanted is not None and len(vocabulary) != wanted:
        problems.append(f"the tokenizer has {len(vocabulary)} tokens, not {wanted}")
    absent = sorted(set(expected.get("tokens") or ()) - set(vocabulary))
    if absent:
        problems.append(f"the tokenizer lacks {absent[:5]}")
    for entry in expected.get("side_files", ()):
        written, source = done.out / entry["path"], entry.get("same_as")
        if not written.is_file():
            problems.append(f"{entry['path']} is missing")
        elif source is not None and written.read_bytes() != (folder / source).read_bytes():
            problems.append(f"{entry['path']} differs from {source}")
    if expected.get("chat"):
        problems += chat_problems(done.out, expected["chat"])
    return problems


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _config(out: Path, expected: Mapping[str, Any]) -> list[str]:
    config = json.loads((out / "config.json").read_bytes())
    problems = [
        f"config {key} is {config.get(key)!r}, not {value!r}"
        for key, value in (expected.get("config") or {}).items()
        if config.get(key) != value
    ]
    stored = expected.get("weights_dtype")
    if stored is not None and config.get("torch_dtype", config.get("dtype", stored)) != stored:
        problems.append(f"config says {config.get('torch_dtype', config.get('dtype'))}, the weights are {stored}")
    return problems


def run_folder(folder: Path) -> list[Outcome]:
    """Run every case of a folder."""
    return [run_case(folder, case) for case in find_cases(folder)]


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m tests.golden.recipes FOLDER   (models and recipe cases)", file=sys.stderr)
        return 2
    return report(run_folder(Path(arguments[0]).resolve()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
