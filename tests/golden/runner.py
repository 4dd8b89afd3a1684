"""Golden cases: reference outputs on small inputs, merged again by our methods and compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from consilience.errors import ConsilienceError
from consilience.merging.memory import merge_state_dicts
from consilience.merging.method import method_names
from tests.golden.translate import Translation, Untranslated, find_translation, has_translation, translate
from tests.golden.translations import batch_search, benchmarks, fusion_and_selection

Tensors = dict[str, np.ndarray]

CHECKS = {**fusion_and_selection.CHECKS, **benchmarks.CHECKS, **batch_search.CHECKS}
"""System -> what compares one of its cases, which hold no weights, and returns the differences."""


@dataclass(frozen=True)
class Outcome:
    """One case: `status` is "passed", "failed" or "skipped", `detail` says why."""

    case: str
    status: str
    detail: str = ""


def find_cases(folder: Path) -> Iterator[Path]:
    """Yield the .json of every case in a folder of cases, or in a folder of such folders."""
    for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        for path in sorted(place.glob("*.json")):
            facts = json.loads(path.read_bytes())
            if (path.with_suffix(".safetensors").is_file() and "params" in facts) or facts.get("system") in CHECKS:
                yield path


def run_case(path: Path) -> Outcome:
    """Merge the inputs of one case and compare with its result."""
    facts = json.loads(path.read_bytes())
    if facts.get("system") in CHECKS:
        problems = CHECKS[facts["system"]](facts)
        return Outcome(f"{facts['system']}/{path.stem}", "failed" if problems else "passed", "; ".join(problems))
    method = facts.get("method", path.parent.name)
    label = f"{method}/{path.stem}"
    if method not in method_names() and not has_translation(method):
        return Outcome(label, "skipped", f"method {method!r} is not here")
    groups = _grouped(load_file(path.with_suffix(".safetensors")))
    if "merged" not in groups and not _has_checks(method, facts["source"]):
        return Outcome(label, "skipped", "it holds no merge")
    names = sorted((name for name in groups if name.startswith("expert")), key=lambda name: int(name[6:]))
    try:
        translation = find_translation(method, facts["source"])
        parameters = translate(method, facts["source"], facts["params"], len(names))
        merged: Mapping[str, Any] = {}
        problems: list[str] = []
        if "merged" in groups:
            merged = _merged(method, facts, groups, names, parameters, translation)
            problems = differences(merged, groups["merged"], facts, groups.get("base"))
        if translation.extra is not None:
            problems += translation.extra(facts, groups, parameters, merged)
    except (Untranslated, ConsilienceError) as error:
        return Outcome(label, "failed", str(error))
    return Outcome(label, "failed" if problems else "passed", "; ".join(problems))


def _has_checks(method: str, source: str) -> bool:
    """Whether a case without a merge is judged by checks of its own."""
    try:
        return find_translation(method, source).extra is not None
    except Untranslated:
        return False


def _merged(
    method: str,
    facts: Mapping[str, Any],
    groups: Mapping[str, Tensors],
    names: list[str],
    parameters: Mapping[str, Any],
    translation: Translation,
) -> Mapping[str, Any]:
    if translation.merge is not None:
        return translation.merge(facts, groups, names, parameters)
    given: dict[str, Any] = dict(parameters)
    if translation.aux is not None:
        given["aux"] = translation.aux(groups, names)
    if translation.masks:
        given["masks"] = _masks(groups, names)
    experts = {name: groups[name] for name in names}
    return merge_state_dicts(translation.method or method, groups.get("base"), experts, **given)


def _grouped(tensors: Mapping[str, np.ndarray]) -> dict[str, Tensors]:
    groups: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = tensor
    return groups


def _masks(groups: Mapping[str, Tensors], names: list[str]) -> dict[str, Tensors]:
    """Return the supplied draws, by expert and tensor."""
    aux = groups.get("aux", {})
    return {
        name: {key.removeprefix(f"mask.{name}."): mask for key, mask in aux.items() if key.startswith(f"mask.{name}.")}
        for name in names
    }


def differences(
    merged: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    base: Mapping[str, np.ndarray] | None,
) -> list[str]:
    """Return what differs beyond the tolerance; `tolerance_delta` judges the change from the base instead."""
    problems = []
    tolerance = facts.get("tolerance_delta") or facts["tolerance"]
    for name in sorted({*expected, *merged}):
        if name not in merged or name not in expected:
            problems.append(f"tensor {name!r} is only in the {'result' if name in merged else 'reference'}")
            continue
        ours, theirs = np.asarray(merged[name]), expected[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            found = f"{ours.dtype}{list(ours.shape)}, not {theirs.dtype}{list(theirs.shape)}"
            problems.append(f"tensor {name!r} is {found}")
            continue
        ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
        if facts.get("tolerance_delta") and base is not None:
            ours, theirs = ours - base[name], theirs - base[name]
        allowed = tolerance["atol"] + tolerance["rtol"] * np.abs(theirs)
        excess = np.abs(ours - theirs) - allowed
        if not bool((excess <= 0).all()):
            worst = float(np.abs(ours - theirs).max())
            problems.append(f"tensor {name!r}: {int((excess > 0).sum())} of {ours.size} off, by up to {worst:.3g}")
    return problems


def run_folder(folder: Path) -> list[Outcome]:
    """Run every case in a folder of cases, or in a folder of folders."""
    return [run_case(path) for path in find_cases(folder)]


def report(outcomes: list[Outcome]) -> int:
    """Print failures, what was skipped, and the count; return the exit code."""
    for outcome in outcomes:
        if outcome.status != "passed":
            print(f"{outcome.status.upper()} {outcome.case}: {outcome.detail}")
    count = {status: sum(o.status == status for o in outcomes) for status in ("passed", "failed", "skipped")}
    if count["skipped"]:
        print(f"{count['skipped']} skipped")
    if not outcomes:
        print("no cases found")
    print(f"{count['passed']} passed, {count['failed']} failed")
    return 1 if count["failed"] or not outcomes else 0
