"""The published methods' own numbers, and the runner that compares with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.golden.__main__ import main
from tests.golden.runner import find_cases, run_case, run_folder
from tests.golden.translate import Untranslated, translate

CASES = Path(__file__).parent / "cases"
PATHS = sorted(find_cases(CASES))


@pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_case(path: Path) -> None:
    outcome = run_case(path)
    assert (outcome.status, outcome.detail) == ("passed", "")


def test_every_method_with_cases_here_is_covered() -> None:
    assert len(PATHS) >= 34
    assert {p.parent.name for p in PATHS} >= {
        *("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear"),
        *("nuslerp", "multislerp", "karcher", "model_stock", "breadcrumbs", "breadcrumbs_ties", "sce"),
    }


def test_command_counts_a_folder_of_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CASES)]) == 0
    assert capsys.readouterr().out == f"{len(PATHS)} passed, 0 failed\n"


def test_command_takes_one_folder_of_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CASES / "ties")]) == 0
    assert capsys.readouterr().out == "4 passed, 0 failed\n"


def test_command_without_cases_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no cases found" in capsys.readouterr().out
    assert main([str(tmp_path / "nowhere")]) == 2


def copy_case(target: Path, **changes: object) -> Path:
    """A copy of a case with other facts."""
    source = CASES / "linear/weighted_unnormalized.json"
    facts = {**json.loads(source.read_bytes()), **changes}
    path = target / "case.json"
    path.write_text(json.dumps(facts))
    shutil.copy(source.with_suffix(".safetensors"), path.with_suffix(".safetensors"))
    return path


def test_wrong_values_fail_and_name_the_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy_case(tmp_path)
    tensors = load_file(path.with_suffix(".safetensors"))
    name = "merged.encoder.layer.0.output.dense.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][0, 0] += 1e-3
    save_file(tensors, path.with_suffix(".safetensors"))
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "encoder.layer.0.output.dense.weight" in printed and "1 of 384 off, by up to 0.001" in printed
    assert printed.endswith("0 passed, 1 failed\n")


def test_a_parameter_without_a_rule_fails_its_case(tmp_path: Path) -> None:
    outcome = run_case(copy_case(tmp_path, params={"weight": [1, 1, 1], "surprise": 1}))
    assert outcome.status == "failed" and "surprise" in outcome.detail


def test_a_method_that_is_not_here_is_skipped_not_passed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_case(copy_case(tmp_path, method="quadrature")).status == "skipped"
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["1 skipped", "0 passed, 0 failed"]


def test_switches_that_cannot_be_said_are_refused() -> None:
    with pytest.raises(Untranslated, match="only False"):
        translate("ties", "arcee-ai/mergekit@x:y", {"rescale": True}, 2)
    with pytest.raises(Untranslated, match="no row"):
        translate("ties", "somebody/else@x:y", {}, 2)


def test_folders_without_cases_beside_cases_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.json").write_text("{}")
    (tmp_path / "linear").mkdir()
    copy_case(tmp_path / "linear")
    assert [o.status for o in run_folder(tmp_path)] == ["passed"]
