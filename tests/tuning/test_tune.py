"""Tuning a recipe: every learner ends as a recipe that the engine executes, resumed or not, or is refused."""

import json
import shutil

import numpy as np
import pytest
import yaml

from consilience.checkpoints import open_checkpoint
from consilience.cli.app import run
from consilience.data import Suite
from consilience.data.suite import Domain
from consilience.errors import RequestError, WorkError
from consilience.merging.recipe import load_recipe
from consilience.models import load_encoder
from consilience.models.retrieval import RetrievalPredictor
from consilience.training import train_encoder
from consilience.tuning.learners import LEARNERS
from consilience.tuning.states import float_state
from consilience.tuning.tune import tune_recipe
from tests.cli.folders import write_dataset
from tests.models.tiny import write_bert
from tests.training.toy import toy_data

QUICK = {
    "adamerging": {"steps": 2, "every": 1, "batch": 4, "batches": 1},
    "adamerging++": {"steps": 2, "every": 1, "batch": 4, "batches": 1},
    "expert-merging": {"steps": 2, "batch": 4, "accumulation": 2},
    "expert-merging++": {"steps": 2, "batch": 4, "accumulation": 2},
    "atlas": {"steps": 2, "batch": 8, "learning_rate": 0.05, "every": 1},
    "frank-wolfe": {"iterations": 2, "batch": 8},
    "frank-wolfe-soft": {"iterations": 1, "batch": 8, "learning_steps": 2, "learning_batch": 4},
    "self-positioning": {"steps": 10, "batch": 4},
    "evolution": {"budget": 9, "batch": 8},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, two adapters of it, a whole model, their data, and a recipe."""
    root = tmp_path_factory.mktemp("tune")
    write_bert(root / "base")
    counts = {"train": 24, "dev": 6, "test": 6}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONSILIENCE_DATA", str(root / "no-data"))
        for seed, name in enumerate(("red", "blue")):
            write_dataset(root / "suite" / name, toy_data(seed=seed, counts=counts))
            train_encoder(
                root / "base", root / "suite" / name, root / name, steps=4, batch=8, rank=2, learning_rate=0.01,
                max_tokens=8, device="cpu", seed=seed, progress=False,
            )  # fmt: skip
        experts = "experts: {red: red, blue: blue}\n"
        (root / "recipe.yml").write_text(f"version: 1\nmethod: task_arithmetic\nbase: base\n{experts}")
        yield root


@pytest.fixture
def suite(folder):
    data = {name: toy_data(seed=seed, counts={"train": 24}) for seed, name in enumerate(("red", "blue", "other"))}
    return Suite("toy", {name: Domain(found) for name, found in data.items()}, max_tokens=8)


def tuned(folder, suite, tmp_path, method, **options):
    given = {"suite": suite, "examples": 12, "device": "cpu", "options": {**QUICK[method], **options}}
    return tune_recipe(folder / "recipe.yml", method, tmp_path / "out" / "learned.yml", **given)


@pytest.mark.parametrize("method", [name for name, one in LEARNERS.items() if "retrieval" in one.kinds])
def test_the_merge_of_the_recipe_is_the_learners_model(folder, suite, tmp_path, method):
    found = tuned(folder, suite, tmp_path, method)
    assert found.facts["tasks"] == {"red": 12, "blue": 12} and found.facts["method"] == method
    assert yaml.safe_load(found.path.read_text()) == found.content
    assert found.path.read_text().startswith(f"# Learned by {method} from training examples: 12 of red, 12 of blue")
    load_recipe(found.path).run(tmp_path / "merged", progress=False)
    encoder = load_encoder(folder / "base", device="cpu", max_tokens=8)
    models = {task: RetrievalPredictor(encoder) for task in ("red", "blue")}
    own = open_checkpoint(folder / "base")
    base = float_state(own, own.tensors)
    experts = {
        name: float_state(open_checkpoint(f"{folder / 'base'}+{folder / name}"), base) for name in ("red", "blue")
    }
    record = json.loads((tmp_path / "out/learned.tune/tune.json").read_text())
    examples = {task: _drawn(suite, task) for task in models}
    learner = LEARNERS[method]
    again = learner.run(base, experts, models, examples, seed=0, options=QUICK[method], kinds={"retrieval"})
    assert again.recipe(base="base", experts={"red": "red", "blue": "blue"}) == record["recipe"]
    state = again.state if isinstance(again.state, dict) else again.state()
    merged = float_state(open_checkpoint(tmp_path / "merged"), base)
    moved = 0.0
    for name in state:
        value = merged[name]
        assert np.allclose(value.numpy(), state[name].detach().numpy(), atol=2e-6)
        moved = max(moved, float((value - base[name]).abs().max()))
    assert set(encoder.names.values()) <= set(state) and moved > 1e-4


def _drawn(suite, task):
    from consilience.core.randomness import stream_key

    pairs = suite.training_pairs(task).pairs()
    random = np.random.Generator(np.random.Philox(stream_key(0, "tune", task)))
    return [pairs[row] for row in random.permutation(len(pairs))[:12].tolist()]


@pytest.mark.parametrize("method", ["adamerging", "expert-merging++", "evolution", "frank-wolfe", "self-positioning"])
def test_a_stopped_run_goes_on_to_the_same_recipe(folder, suite, tmp_path, monkeypatch, method):
    longer = {"steps": 30} if method == "self-positioning" else {}
    whole = tuned(folder, suite, tmp_path / "whole", method, **longer)
    logits, calls = RetrievalPredictor.logits, []

    def count(self, batch, parameters=None):
        calls.append(1)
        return logits(self, batch, parameters)

    monkeypatch.setattr(RetrievalPredictor, "logits", count)
    tuned(folder, suite, tmp_path / "counted", method, **longer)
    limit = int(0.7 * len(calls))

    def stop(self, batch, parameters=None):
        calls.append(1)
        if len(calls) > limit:
            raise KeyboardInterrupt
        return logits(self, batch, parameters)

    calls.clear()
    monkeypatch.setattr(RetrievalPredictor, "logits", stop)
    with pytest.raises(KeyboardInterrupt):
        tuned(folder, suite, tmp_path, method, **longer)
    assert not (tmp_path / "out/learned.yml").exists()
    calls.clear()
    limit = 10**9
    resumed = tuned(folder, suite, tmp_path, method, **longer)
    assert {k: v for k, v in resumed.content.items() if k not in ("base", "experts")} == {
        k: v for k, v in whole.content.items() if k not in ("base", "experts")
    }
    calls.clear()
    tuned(folder, suite, tmp_path, method, **longer)  # finished: read again
    assert not calls


def test_all_problems_are_told_at_once(folder, suite, tmp_path):
    with pytest.raises(RequestError) as error:
        tune_recipe(folder / "recipe.yml", "adamergin", tmp_path / "out", data={"green": folder}, suite=suite)
    for words in (
        "'adamergin' is unknown; did you mean 'adamerging'?",
        "give a suite, or a data folder for each expert, and not both",
        "output",
    ):
        assert words in str(error.value)
    with pytest.raises(RequestError, match=r"option 'step' is unknown; did you mean 'steps'\?"):
        tune_recipe(folder / "recipe.yml", "atlas", tmp_path / "o.yml", suite=suite, options={"step": 3})
    with pytest.raises(RequestError, match="option steps: 'many' is not a whole number"):
        tune_recipe(folder / "recipe.yml", "atlas", tmp_path / "o.yml", suite=suite, options={"steps": "many"})
    with pytest.raises(RequestError, match="use 2 or more"):
        tune_recipe(folder / "recipe.yml", "atlas", tmp_path / "o.yml", suite=suite, options={"batch": 1})
    no_base = tmp_path / "no-base.yml"
    no_base.write_text(f"version: 1\nmethod: linear\nexperts: {{red: {folder / 'base'}}}\n")
    with pytest.raises(RequestError, match="the recipe needs `base:`"):
        tune_recipe(no_base, "evolution", tmp_path / "o.yml", suite=suite)
    with pytest.raises(RequestError, match="data 'green' belongs to no expert"):
        tune_recipe(folder / "recipe.yml", "evolution", tmp_path / "o.yml", data={"green": folder, "red": folder})
    other = Suite("toy", {"green": Domain(toy_data(counts={"train": 4}))})
    with pytest.raises(RequestError, match="no data is named like an expert: data green; experts red, blue"):
        tune_recipe(folder / "recipe.yml", "evolution", tmp_path / "o.yml", suite=other)
    assert not list(tmp_path.glob("o*"))


def test_weights_that_are_not_finite_are_named(folder, suite, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder / "red", tmp_path / "broken")
    file = tmp_path / "broken/adapter_model.safetensors"
    weights = load_file(file)
    first = next(iter(weights))
    save_file({**weights, first: weights[first] * float("nan")}, file)
    recipe = tmp_path / "recipe.yml"
    experts = f"{{red: {tmp_path / 'broken'}, blue: {folder / 'blue'}}}"
    recipe.write_text(f"version: 1\nmethod: task_arithmetic\nbase: {folder / 'base'}\nexperts: {experts}\n")
    with pytest.raises((RequestError, WorkError), match="NaN or infinity"):
        tune_recipe(recipe, "evolution", tmp_path / "o.yml", suite=suite, examples=4)


def test_from_the_command_line(capsys, folder, tmp_path):
    out = tmp_path / "learned.yml"
    command = ["tune", str(folder / "recipe.yml"), "--method", "evolution", "--out", str(out), "--examples", "8"]
    data = [f"--data=red={folder / 'suite/red'}", f"--data=blue={folder / 'suite/blue'}"]
    assert run([*command, *data, "--max-tokens", "8", "--set", "budget=9", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "learned by evolution" in shown and "red" in shown and " s" in shown
    assert run([*command, *data, "--max-tokens", "8", "--set", "budget=9", "--device", "cpu", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["found"]["evaluations"] <= 9 and set(record["content"]["parameters"]["weight"]) == {"red", "blue"}
    assert run(["merge", str(out), "--out", str(tmp_path / "merged")]) == 0
    assert run(["tune", "--list"]) == 0 and "self-positioning" in capsys.readouterr().out
    assert run(["tune", str(folder / "recipe.yml")]) == 2
    assert "--method is missing" in (message := capsys.readouterr().err) and "--out is missing" in message
