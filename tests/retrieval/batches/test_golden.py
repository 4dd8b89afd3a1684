"""Golden cases of batch hybrid search."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from tests.golden.translations.batch_search import CHECKS

PATHS = sorted((Path(__file__).parents[2] / "golden" / "cases" / "hqi").glob("*.json"))


def test_there_are_two_cases() -> None:
    assert len(PATHS) == 2


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    assert CHECKS["hqi"](json.loads(path.read_bytes())) == []


@pytest.mark.parametrize("name", ["steps", "leaves", "query_matrix_groups", "exact_filtered_top5", "cost_final"])
def test_a_changed_number_is_noticed(name: str) -> None:
    case = copy.deepcopy(json.loads(PATHS[0].read_bytes()))
    expected = case["expected"]
    if name == "cost_final":
        expected[name] += 1
    elif name == "exact_filtered_top5":
        expected[name][3][2][1] += 1e-3
    else:
        expected[name][-1], expected[name][-2] = expected[name][-2], expected[name][-1]
    assert [problem for problem in CHECKS["hqi"](case) if name in problem or name.startswith("exact")] != []
