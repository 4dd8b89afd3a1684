"""The rules that reproductions keep: short, public names only, nothing of their own that a result could hide in."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from consilience.data.reserved import default_data_folder

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "reproductions").glob("*.py") if path.stem != "__init__")
LINES = 150
ALLOWED = {"consilience", "numpy", "safetensors", "torch", "reproductions"}
each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@each
def test_it_is_short_and_has_no_classes(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LINES
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.ClassDef | ast.AsyncFunctionDef), "models and loaders belong to a family"


@each
def test_it_uses_public_names_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert not (node.attr.startswith("_") and not node.attr.startswith("__")), f"private: {node.attr}"
        if isinstance(node, ast.Import):
            modules = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [(str(node.module), alias.name) for alias in node.names]
        else:
            continue
        for module, name in modules:
            root = module.split(".")[0]
            assert root in ALLOWED or root in sys.stdlib_module_names, f"{module} is not for reproductions"
            if root == "consilience":
                assert name is not None, f"name what is imported of {module}"
                assert not any(part.startswith("_") for part in (*module.split("."), name)), f"{module}.{name}"
                assert name in import_module(module).__all__, f"{name} is no public name of {module}"


@each
def test_it_trains_nothing_itself_fixes_its_seeds_and_names_its_paper(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"torch\.(nn|optim|utils)|backward\(", text), "networks and training belong to a family"
    assert re.search(r"^SEEDS = \(", text, re.MULTILINE)
    assert re.search(r"run\(main, seeds=SEEDS\)", text), "the common command line"
    assert re.search(r"arXiv|20\d\d", ast.get_docstring(ast.parse(text)) or ""), "the docstring names the paper"
    assert ".claim(" in text or ".difference(" in text
    assert ".finish(" in text


@pytest.mark.slow
@each
def test_it_runs_in_its_smallest_size(path: Path, tmp_path: Path) -> None:
    if not default_data_folder().is_dir():
        pytest.skip(f"public data are not here: {default_data_folder()} (set CONSILIENCE_DATA)")
    command = [sys.executable, "-m", f"reproductions.{path.stem}", "--quick", "--out", str(tmp_path / "report")]
    done = subprocess.run(
        [*command, "--cache", str(tmp_path / "cache")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "A quick run" in (tmp_path / "report" / "report.md").read_text()
    assert "| claim | verdict | numbers |" in done.stdout
