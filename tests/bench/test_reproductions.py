"""The rules that reproductions keep: short, public names only, nothing of their own that a result could hide in."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from consilience.data.reserved import default_data_folder

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "reproductions").glob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_reproduction_is_short_and_uses_public_names(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 150
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        assert not isinstance(node, ast.ClassDef | ast.AsyncFunctionDef), "models and loaders belong to a family"
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("consilience") for alias in node.names), "name what is imported"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("consilience"):
            public = importlib.import_module(node.module).__all__
            assert {alias.name for alias in node.names} <= set(public), node.module
        if isinstance(node, ast.ImportFrom | ast.Import):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert not re.match(r"torch\.(nn|optim|utils)|transformers|sklearn", module or ""), "no model, no trainer"
        if isinstance(node, ast.Attribute):
            assert not (node.attr.startswith("_") and not node.attr.startswith("__")), f"private: {node.attr}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_seeds_are_constants_and_the_command_line_is_the_common_one(path):
    text = path.read_text()
    assert re.search(r"^SEEDS = \(", text, re.MULTILINE)
    assert re.search(r"run\(main, seeds=SEEDS\)", text)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_reproduction_runs_in_its_smallest_size(path, tmp_path):
    if not default_data_folder().is_dir():
        pytest.skip(f"public data are not here: {default_data_folder()} (set CONSILIENCE_DATA)")
    command = [sys.executable, "-m", f"reproductions.{path.stem}", "--quick", "--out", str(tmp_path / "report")]
    done = subprocess.run(
        [*command, "--cache", str(tmp_path / "cache")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "A quick run" in (tmp_path / "report" / "report.md").read_text()
    assert "| claim | verdict | numbers |" in done.stdout
