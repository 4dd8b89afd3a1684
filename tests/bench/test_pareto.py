"""A front on a suite from the command line: tiny encoders, toy data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from consilience.bench.pareto import SuiteObjective
from consilience.bench.report.front import front_picture
from consilience.cli.app import run
from consilience.data import Suite
from consilience.merging.recipe import load_recipe
from consilience.models import load_encoder
from consilience.tuning.pareto import ParetoFront, search_pareto
from tests.cli.folders import write_dataset
from tests.models.tiny import write_bert
from tests.training.toy import toy_data

FLAGS = ["--suite", "suite", "-o", "out", "--budget", "7", "--front", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pareto")
    for seed, name in enumerate(("base", "red", "blue")):
        write_bert(root / "models" / name, seed=seed, width=8, layers=1)
    for seed, name in enumerate(("warm", "cold")):
        data = toy_data(seed=seed, counts={"train": 2, "dev": 6, "test": 8})
        write_dataset(root / "suite" / name, data)
    (root / "recipes").mkdir()
    text = "version: 1\nmethod: task_arithmetic\nbase: ../models/base\n"
    (root / "recipes/two.yml").write_text(f"{text}experts: {{red: ../models/red, blue: ../models/blue}}\n")
    return root


@pytest.fixture(autouse=True)
def here(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(template)
    monkeypatch.setenv("CONSILIENCE_DATA", str(template / "no-data"))


@pytest.fixture(scope="module")
def record(template: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(template)
        patch.setenv("CONSILIENCE_DATA", str(template / "no-data"))
        assert run(["pareto", "recipes/two.yml", *FLAGS]) == 0
    return dict(json.loads((template / "out/pareto.json").read_text()))


def test_coefficients_are_merged_as_the_engine_merges_them(tmp_path: Path) -> None:
    recipe = load_recipe("recipes/two.yml")
    objective = SuiteObjective(recipe, Suite.open("suite"))
    scores = objective.scores([0.3, 0.9], "dev")
    assert {name: len(values) for name, values in scores.items()} == {"cold": 6, "warm": 6}
    text = yaml.safe_dump(objective.content([0.3, 0.9]))
    (Path("recipes") / "fixed.yml").write_text(text)
    load_recipe("recipes/fixed.yml").run(tmp_path / "merged")
    whole = load_encoder(tmp_path / "merged")
    ours = objective._merged([0.3, 0.9])
    assert all(np.array_equal(v.detach(), whole.parameters()[n].detach()) for n, v in ours.parameters().items())


def test_the_record_counts_evaluations_and_measures_what_is_held_out(record: dict[str, Any]) -> None:
    assert record["evaluations"] == {"search": 7, "front": len(record["points"]) + len(record["dominated"])}
    assert (record["tasks"], record["experts"]) == (["cold", "warm"], ["red", "blue"])
    assert set(record["references"]) == {"base", "red", "blue"}
    for held in (*record["references"].values(), *(point["held_out"] for point in record["points"])):
        assert all(0 <= low <= value <= high <= 1 for value, low, high in held)


def test_a_finished_front_is_read_again_and_turned_into_a_recipe(
    record: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SuiteObjective, "scores", None)  # nothing is evaluated
    command = ["pareto", "recipes/two.yml", *FLAGS]
    assert run([*command, "--prefer", "warm=0.7,cold=0.3", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["chosen"]["recipe"] == "out/recipe.yml"
    written = yaml.safe_load(Path("out/recipe.yml").read_text())
    assert list(written["parameters"]["weight"].values()) == shown["chosen"]["coefficients"]
    assert written["experts"] == {"red": "../models/red", "blue": "../models/blue"}
    assert load_recipe("out/recipe.yml").plan().tasks
    assert run([*command, "--require", "warm>=0", "--recipe", "elsewhere/deep/r.yml"]) == 0
    assert "7 evaluations to find it" in capsys.readouterr().out
    assert yaml.safe_load(Path("elsewhere/deep/r.yml").read_text())["base"] == "../../models/base"
    assert run([*command, "--require", "warm>=1.01"]) == 1
    assert "no point of the front keeps all bounds" in capsys.readouterr().err


def test_requests_that_cannot_be_done(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["pareto", "recipes/two.yml", *FLAGS]
    for more, message in (
        (["--prefer", "wram=1"], "did you mean 'warm'"),
        (["--require", "warm=1"], "write TASK>=NUMBER"),
        (["--budget", "5", "-o", str(tmp_path / "o")], "use 6 or more"),
    ):
        assert run([*command, *more]) == 2
        assert message in capsys.readouterr().err
    text = Path("recipes/two.yml").read_text()
    for change, message in (
        ("method: slerp", "no weight per expert"),
        ("parameters: {normalize: true}\nmethod: task_arithmetic", "normalised weights"),
    ):
        Path("recipes/wrong.yml").write_text(text.replace("method: task_arithmetic", change))
        assert run(["pareto", "recipes/wrong.yml", *FLAGS]) == 2
        assert message in capsys.readouterr().err
    Path("suite.yml").write_text("version: 1\nsplit: dev\ndomains: {warm: suite/warm}\n")
    assert run([*command, "--suite", "suite.yml"]) == 2
    assert "its split is dev" in capsys.readouterr().err


def test_pictures_show_every_point(record: dict[str, Any]) -> None:
    svg = Path("out/pareto.svg").read_text()
    names = [node.attrib.get("class") for node in ElementTree.fromstring(svg).iter()]
    assert names.count("point") == len(record["points"])
    assert names.count("reference") == 3 and "sample" not in names

    def evaluate(c: Any) -> list[float]:
        return [0.2 + 0.6 * c[i] - 0.3 * c[i - 1] for i in range(len(c))]

    for count, planes in ((1, 0), (2, 1), (3, 3), (4, 0)):
        tasks = [f"t<{i}" for i in range(count)]
        front: ParetoFront = search_pareto(evaluate, [*"abcd"][:count], tasks, front=3)
        root = ElementTree.fromstring(front_picture(front))
        found = [node.attrib.get("class") for node in root.iter()]
        assert found.count("point") == planes * len(front.points)
        assert found.count("front") == planes + (len(front.points) if count != 2 else 0)
