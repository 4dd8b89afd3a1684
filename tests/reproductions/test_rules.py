"""Reproductions are short, use public names only, and hold no machinery of their own."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "reproductions").glob("*.py") if path.stem != "__init__")
LINES = 150
ALLOWED = {"consilience", "numpy", "safetensors", "torch", "reproductions"}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_uses_public_names_only(path: Path) -> None:
    import sys

    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            modules = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [(str(node.module), alias.name) for alias in node.names]
        else:
            continue
        for module, name in modules:
            root = module.split(".")[0]
            assert root in ALLOWED or root in sys.stdlib_module_names, f"{module} is not for reproductions"
            if root == "consilience" and name is not None:
                assert not any(part.startswith("_") for part in (*module.split("."), name)), f"{module}.{name}"
                assert name in import_module(module).__all__, f"{name} is no public name of {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_holds_no_machinery_and_fixes_its_seeds(path: Path) -> None:
    tree = parse(path)
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
    text = path.read_text()
    assert not re.search(r"torch\.(nn|optim|utils)|backward\(", text), "networks and training belong to a family"
    assert re.search(r"^SEEDS = ", text, re.MULTILINE)
    assert re.search(r"arXiv|20\d\d", ast.get_docstring(tree) or ""), "the docstring names the paper"
    assert ".claim(" in text or ".difference(" in text
    assert ".finish(" in text
