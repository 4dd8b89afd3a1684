"""Golden cases of fusion and selection: the published numbers on plain lists and vectors."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from tests.golden.translations.fusion_and_selection import CHECKS

CASES = Path(__file__).parents[1] / "golden" / "cases"
PATHS = [path for system in sorted(CHECKS) for path in sorted((CASES / system).glob("*.json"))]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_case(path: Path) -> None:
    case = json.loads(path.read_bytes())
    assert CHECKS[case["system"]](case) == []


def test_every_system_has_two_cases() -> None:
    assert len(PATHS) == 2 * len(CHECKS) == 6


@pytest.mark.parametrize("system", sorted(CHECKS))
def test_a_changed_number_is_noticed(system: str) -> None:
    case = json.loads(next(p for p in PATHS if p.parent.name == system).read_bytes())

    def leaves(value, place=()):
        if isinstance(value, dict):
            return [leaf for key, part in value.items() for leaf in leaves(part, (*place, key))]
        if isinstance(value, list):
            return [leaf for key, part in enumerate(value) for leaf in leaves(part, (*place, key))]
        return [place] if isinstance(value, float) else []

    places = [place for place in leaves(case["expected"]) if place[0] != "official_unmerged"]
    assert len(places) >= 5
    for place in (places[0], places[-1]):
        changed = copy.deepcopy(case)
        part = changed["expected"]
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] += 1e-3
        assert CHECKS[system](changed) != []
