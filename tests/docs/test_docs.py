"""Every block of README, CONTRIBUTING and docs runs, in order, in a folder of small stand-ins; outputs are compared."""

from __future__ import annotations

import doctest
import io
import re
import runpy
import shlex
import shutil
import tomllib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from consilience import load_recipe, merge_state_dicts, methods
from consilience.cli.app import app, run
from consilience.data import Suite
from tests.docs.workspace import ROOT, make_workspace

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SERVERS = ("postgresql.md", "serve.md")  # their blocks start servers
BLOCK = re.compile(
    r"(?P<mark><!-- test: skip-heavy -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"\]\((?!https?:)(?P<path>[^)#]*)(#(?P<anchor>[^)]*))?\)")


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    skipped: bool
    shows: str | None  # the output that the page gives right after it


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = list(BLOCK.finditer(text))
    blocks = []
    for this, after in zip(found, [*found[1:], None], strict=False):
        follows = after is not None and after["kind"] == "text" and not text[this.end() : after.start()].strip()
        shows = after["text"] if after is not None and follows else None
        blocks.append(Block(this["kind"], this["text"], this["mark"] is not None, shows))
    return blocks


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "workspace"
    folder.mkdir()
    make_workspace(folder)
    return folder


@pytest.fixture
def workspace(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "workspace"
    shutil.copytree(template, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CONSILIENCE_DATA", "no-data")
    monkeypatch.setattr("consilience.core.progress._LINE_EVERY", float("inf"))
    return folder


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page.name in SERVERS else []) for page in PAGES],
    ids=lambda page: page.name,
)
def test_blocks_run(page: Path, workspace: Path) -> None:
    for block in blocks_of(page):
        if not block.skipped:
            RUN[block.kind](block, workspace)


def output_of(action: Callable[[], object], workspace: Path) -> str:
    stream = io.StringIO()
    with redirect_stdout(stream), redirect_stderr(stream):
        action()
    return stream.getvalue().replace(f"{workspace}/", "")


def same(expected: str, found: str, what: str) -> None:
    def plain(text: str) -> str:
        return "".join(line.rstrip() + "\n" for line in text.strip().splitlines() if line.strip())

    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(plain(expected), plain(found), flags), f"{what}\nprinted:\n{found}"


def run_python(block: Block, workspace: Path) -> None:
    file = workspace / "block.py"
    file.write_text(block.text)
    printed = output_of(lambda: runpy.run_path(str(file)), workspace)
    if block.shows is not None:
        same(block.shows, printed, block.text)


def run_yaml(block: Block, workspace: Path) -> None:
    content = yaml.safe_load(block.text)
    if "domains" in content:
        (workspace / "suite.yml").write_text(block.text)
        assert Suite.open("suite.yml").evaluation_sets().keys() == content["domains"].keys()
        return
    (workspace / "recipe.yml").write_text(block.text)
    recipe = load_recipe("recipe.yml", strict=True)
    assert recipe.plan("build/planned").tasks


def command(line: str) -> list[str]:
    """Split a command; training is shortened to what the small data allow."""
    arguments = shlex.split(line, comments=True)
    if arguments[1] == "train" and "--help" not in arguments:
        arguments[arguments.index("--steps") + 1] = "2"
        arguments += ["--batch", "4"]
    return arguments[1:]


def run_console(block: Block, workspace: Path) -> None:
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, _, expected = part.partition("\n")
        same(expected, output_of(lambda line=line: run(command(line)), workspace), line)


def run_bash(block: Block, workspace: Path) -> None:
    for line in filter(None, block.text.splitlines()):
        program, *arguments = shlex.split(line, comments=True)
        if program == "consilience":
            codes: list[int] = []
            printed = output_of(lambda line=line, codes=codes: codes.append(run(command(line))), workspace)
            assert codes == [0], f"{line}\n{printed}"
        elif program == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {argument for argument in arguments if "=" not in argument} <= set(targets), line
        else:
            assert [program, arguments[0]] == ["pip", "install"], f"{line}: no rule for checking this"
            extras = re.search(r"\[(.*)\]", line)
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert extras is None or set(extras[1].split(",")) <= known.keys(), line


RUN = {
    "python": run_python,
    "yaml": run_yaml,
    "console": run_console,
    "bash": run_bash,
    "text": lambda block, workspace: None,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.finditer(page.read_text()):
        target = (page.parent / link["path"]).resolve() if link["path"] else page
        assert target.exists(), f"{page.name}: {link['path']} is not there"
        if link["anchor"]:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert link["anchor"] in {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles}


def test_tables_name_every_verb() -> None:
    for page in (ROOT / "README.md", ROOT / "docs/cli.md"):
        named = re.findall(r"^\| `consilience (\w+)", page.read_text(), re.MULTILINE)
        groups = [group.typer_instance.info.name for group in app.registered_groups]
        assert named == [*(entry.name for entry in app.registered_commands), *groups]


def test_every_page_is_in_the_navigation() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    files = [entry if isinstance(entry, str) else next(iter(entry.values())) for entry in navigation]
    assert sorted(files) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_generated_blocks_are_current() -> None:
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    page = (ROOT / "docs/methods.md").read_text()
    assert page == generate["generated"](page), "run: python docs/generate.py"


def test_every_method_says_when_to_use_it_and_when_not() -> None:
    lacking = [entry["name"] for entry in methods() if not entry["use"] or not entry["avoid"]]
    assert not lacking, "write `Use:` and `Avoid:` paragraphs"


def test_the_method_of_the_contributing_page_works(monkeypatch: pytest.MonkeyPatch) -> None:
    block = next(b for b in blocks_of(ROOT / "CONTRIBUTING.md") if b.kind == "python")
    space: dict[str, Any] = {}
    exec(block.text, space)
    for room in ("memory", "task"):
        monkeypatch.setattr(f"consilience.merging.{room}.find_method", lambda name: space[name])
    base, experts = {"w": np.float32([1, 1])}, {"a": {"w": np.float32([3, 1])}, "b": {"w": np.float32([1, 5])}}
    assert merge_state_dicts("shrink", base, experts, share=0.5)["w"].tolist() == [1.5, 2.0]
    assert merge_state_dicts("shrink", base, experts, weight=0.0)["w"].tolist() == [1.0, 1.0]


def test_keys_of_recipes_and_suites_are_all_described() -> None:
    from consilience.data.suite import _KEYS as SUITE_KEYS
    from consilience.merging.native import KEYS

    for page, keys in (("merging.md", KEYS), ("evaluation.md", set(SUITE_KEYS) - {"version"})):
        text = (ROOT / "docs" / page).read_text()
        cells = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
        missing = [key for key in keys if f"`{key}`" not in cells]
        assert not missing, f"{page} does not describe {missing}"


def test_the_errors_page_draws_the_tree() -> None:
    import consilience.errors as errors

    drawn = re.findall(r"(\w+Error)", (ROOT / "docs/errors.md").read_text().split("```text")[1].split("```")[0])
    assert sorted(drawn) == sorted(name for name in errors.__all__ if name.endswith("Error"))
