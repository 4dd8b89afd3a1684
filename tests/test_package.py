"""The public surface, the price of importing it, and every example in a docstring."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import consilience
from consilience.merging.method import find_method, method_names

MODULES = [
    m.name for m in pkgutil.walk_packages(consilience.__path__, "consilience.") if not m.name.endswith("__main__")
]


def test_public_names_are_pinned():
    assert consilience.__all__ == [
        "__version__",
        "Bundle",
        "ConsilienceError",
        "Document",
        "Index",
        "Plan",
        "Recipe",
        "RetrievalData",
        "Searcher",
        "Suite",
        "create_bundle",
        "evaluate",
        "extract_adapter",
        "gather_statistics",
        "load_encoder",
        "load_recipe",
        "make_mixture",
        "merge_state_dicts",
        "methods",
        "open_checkpoint",
        "pipeline",
        "search_pareto",
        "train_encoder",
        "tune_recipe",
    ]
    for name in consilience.__all__:
        assert getattr(consilience, name) is not None
    assert set(dir(consilience)) == set(consilience.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        consilience.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "statement", ["import consilience", "from consilience.cli.app import app", "import consilience.merging.plan"]
)
def test_start_up_imports_nothing_heavy(statement):
    heavy = "torch transformers peft pandas pyarrow numba scipy sklearn huggingface_hub ir_measures"
    heavy += " tantivy faiss openai bs4"
    code = f"import sys; {statement}; print(*[m for m in {heavy.split()!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("name", method_names())
def test_examples_of_methods_run(name):
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder(recurse=False).find(find_method(name).function, name, globs={}):
        runner.run(example)
    assert runner.tries and not runner.failures
