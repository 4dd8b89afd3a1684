"""Recipes in mergekit's language through the command line, against what mergekit writes for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.golden.recipes import absent_methods, find_cases, main, run_case

FOLDER = Path(__file__).parent / "recipe_cases"
CASES = list(find_cases(FOLDER))
HERE = [case for case in CASES if not absent_methods(case, json.loads((case / "expected.json").read_bytes()))]


@pytest.mark.parametrize("case", HERE, ids=lambda case: case.name)
def test_recipe(case: Path) -> None:
    outcome = run_case(FOLDER, case)
    assert (outcome.status, outcome.detail) == ("passed", "")


def test_every_kind_of_case_is_here() -> None:
    assert len(HERE) >= 21
    assert {"tokens-union", "tokens-block", "two-documents", "encoder-task-arithmetic", "dare-random"} <= {
        case.name for case in HERE
    }


def small(target: Path, recipe: str, expected: dict[str, object]) -> Path:
    """One case beside the models of the collection."""
    (target / "models").symlink_to(FOLDER / "models")
    (target / "case").mkdir()
    (target / "case/recipe.yml").write_text(recipe)
    (target / "case/expected.json").write_text(json.dumps(expected))
    return target


LINEAR = "merge_method: linear\nmodels:\n- {model: models/tied-a, parameters: {weight: 1}}\n"


def test_a_recipe_that_should_be_refused_and_runs_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small(tmp_path, LINEAR, {"kind": "invalid", "exit_codes": [2], "must_say": []})
    assert main([str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "exit code 0" in printed and "left" in printed and printed.endswith("0 passed, 1 failed\n")


def test_other_values_are_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small(tmp_path, LINEAR, {"tolerance": {"rtol": 1e-5, "atol": 1e-6}})
    shutil.copy(FOLDER / "two-documents/expected.safetensors", folder / "case/expected.safetensors")
    assert main([str(folder)]) == 1
    assert "elements off" in capsys.readouterr().out


def test_a_missing_side_file_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"tolerance": {"rtol": 1e-5, "atol": 1e-6}, "side_files": [{"path": "modules.json"}]}
    folder = small(tmp_path, LINEAR, expected)
    shutil.copy(FOLDER / "models/tied-a/model.safetensors", folder / "case/expected.safetensors")
    assert main([str(folder)]) == 1
    assert "modules.json is missing" in capsys.readouterr().out
