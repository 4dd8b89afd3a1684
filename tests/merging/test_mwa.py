"""Metrics-weighted averaging: the weights, where their values come from, and adapters of one run end to end."""

import json
import shutil
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from consilience.checkpoints.open import open_checkpoint
from consilience.cli.app import run
from consilience.errors import RecipeError
from consilience.merging.memory import merge_state_dicts
from consilience.merging.recipe import Recipe

CONFIG = {
    "peft_type": "LORA",
    "base_model_name_or_path": "base",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["query", "key"],
    "use_rslora": False,
    "rank_pattern": {},
}
PREFIX = "base_model.model.encoder"


def adapter(folder, seed, **changes):
    """Write a small adapter; `changes` are keys of its configuration."""
    rng = np.random.default_rng(seed)
    config = {**CONFIG, **changes}
    tensors = {}
    for module in ("query", "key"):
        tensors[f"{PREFIX}.{module}.lora_A.weight"] = rng.normal(size=(config["r"], 6)).astype(np.float32)
        tensors[f"{PREFIX}.{module}.lora_B.weight"] = rng.normal(size=(5, config["r"])).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"state")
    return tensors


@pytest.fixture
def checkpoints(tmp_path):
    """Three checkpoints of one run, and what they hold."""
    run_folder = tmp_path / "run"
    return run_folder, {f"checkpoint-{s}": adapter(run_folder / f"checkpoint-{s}", s) for s in (100, 200, 300)}


def recipe(run_folder, **keys):
    names = sorted(p.name for p in run_folder.glob("checkpoint-*"))
    return Recipe(method="mwa", experts={n: str(run_folder / n) for n in names}, **keys)


def weights(values, **parameters):
    experts = {f"e{i}": {"w": np.eye(len(values))[i]} for i in range(len(values))}
    return merge_state_dicts("mwa", None, experts, value=values, **parameters)["w"]


def test_weights_are_powers_of_the_metric():
    losses = np.array([1.4, 1.2, 0.7])
    assert weights(list(losses)) == pytest.approx((1 / losses) / (1 / losses).sum())
    assert weights(list(losses), penalty_factor=3) == pytest.approx(losses**-3 / (losses**-3).sum())
    steps = np.array([100.0, 200, 400])
    assert weights(list(steps), metric="steps", penalty_factor=2) == pytest.approx(steps**2 / (steps**2).sum())
    assert weights([1, 3], metric="custom", higher_is_better=True) == pytest.approx([0.25, 0.75])
    assert weights([1, 3], metric="custom") == pytest.approx([0.75, 0.25])


def test_power_zero_is_the_uniform_average():
    rng = np.random.default_rng(0)
    experts = {f"e{i}": {"w": rng.normal(size=(30, 20)).astype(np.float32)} for i in range(5)}
    ours = merge_state_dicts("mwa", None, experts, value=[3, 1, 4, 1, 5], penalty_factor=0)["w"]
    assert ours == pytest.approx(merge_state_dicts("linear", None, experts)["w"], abs=1e-7)


def test_a_large_power_picks_the_best_checkpoint():
    found = weights([1.4, 1.2, 0.7, 0.9], penalty_factor=64)
    assert found == pytest.approx([0, 0, 1, 0], abs=1e-4)
    assert weights([1e-200, 1e200], penalty_factor=1e6).tolist() == [1, 0]
    assert found.sum() == pytest.approx(1)


def test_with_a_base_the_same_average_is_taken_around_it():
    rng = np.random.default_rng(1)
    base = {"w": rng.normal(size=40)}
    experts = {n: {"w": base["w"] + rng.normal(size=40)} for n in "ab"}
    one = merge_state_dicts("mwa", None, experts, value=[1, 2])["w"]
    assert merge_state_dicts("mwa", base, experts, value=[1, 2])["w"] == pytest.approx(one, abs=1e-12)


def test_step_zero_counts_nothing_and_one_checkpoint_is_unchanged():
    with pytest.warns(UserWarning, match="step 0"):
        assert weights([0, 100], metric="steps").tolist() == [0, 1]
    assert weights([2.0]).tolist() == [1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert weights([0, 100], metric="steps", penalty_factor=0).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("values", "parameters", "words"),
    [
        ([0.0, 1.0], {}, "all above 0"),
        ([-1.0, 1.0], {}, "-1.0 is not a number between 0"),
        ([float("nan"), 1.0], {}, "nan is not a number"),
        ([0, 0], {"metric": "steps"}, "one above 0"),
        ([1, 2], {"penalty_factor": -1}, "penalty_factor"),
        ([1, 2], {"metric": "accuracy"}, "loss, steps, custom"),
    ],
)
def test_values_without_weights_are_refused(values, parameters, words):
    with pytest.raises(RecipeError, match=words):
        weights(values, **parameters)


def test_adapters_of_one_run_are_averaged_factor_by_factor(checkpoints, tmp_path):
    folder, held = checkpoints
    losses = {"checkpoint-100": 2.0, "checkpoint-200": 1.0, "checkpoint-300": 0.5}
    result = recipe(folder, parameters={"value": losses}).run(tmp_path / "out", progress=False)
    written = load_file(tmp_path / "out/adapter_model.safetensors")
    share = np.array([0.5, 1, 2]) / 3.5
    for name, tensor in written.items():
        expected = sum(s * tensors[name].astype(float) for s, tensors in zip(share, held.values(), strict=True))
        assert tensor == pytest.approx(expected, abs=1e-6) and tensor.dtype == np.float32
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("adapter_model.safetensors", "adapter_config.json", "tokenizer.json"),
        *("consilience.json", "recipe.yml", "README.md"),
    }
    assert json.loads((tmp_path / "out/adapter_config.json").read_text()) == CONFIG
    assert next(iter(result.manifest["tensors"].values()))["weights"] == pytest.approx(list(share))
    base = {f"encoder.{m}.weight": np.ones((5, 6), np.float32) for m in ("query", "key")}
    save_file(base, tmp_path / "base.safetensors")
    applied = open_checkpoint(f"{tmp_path / 'base.safetensors'}+{tmp_path / 'out'}").tensors["encoder.key.weight"]
    values = np.empty(30, np.float32)
    applied.read(0, 30, values)
    factors = [written[f"{PREFIX}.key.lora_{side}.weight"] for side in "BA"]
    assert values.reshape(5, 6) == pytest.approx(1 + 2 * factors[0] @ factors[1], rel=1e-5)


def test_with_their_base_the_products_are_averaged(checkpoints, tmp_path):
    folder, held = checkpoints
    base = {f"encoder.{m}.weight": np.zeros((5, 6), np.float32) for m in ("query", "key")}
    save_file(base, tmp_path / "base.safetensors")
    keys = {"base": str(tmp_path / "base.safetensors"), "output": {"adapter": {"rank": 5}}}
    settings = {"metric": "steps", "penalty_factor": 0}
    result = recipe(folder, parameters=settings, **keys).run(tmp_path / "out", progress=False)
    a, b = (f"{PREFIX}.query.lora_{side}.weight" for side in "AB")
    mean = sum(2 * tensors[b] @ tensors[a] for tensors in held.values()) / 3
    written = load_file(tmp_path / "out/adapter_model.safetensors")
    assert written[b] @ written[a] == pytest.approx(mean, abs=1e-5) and result.error < 1e-6


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 3),
        ("lora_alpha", 8),
        ("use_rslora", True),
        ("target_modules", ["query"]),
        ("alpha_pattern", {"query": 4}),
    ],
)
def test_adapters_that_mean_something_else_are_refused_by_field(tmp_path, key, value):
    adapter(tmp_path / "run/checkpoint-1", 1)
    adapter(tmp_path / "run/checkpoint-2", 2, **{key: value})
    with pytest.raises(RecipeError, match=f"differ in {key}"):
        recipe(tmp_path / "run", parameters={"metric": "steps"}).plan()


def test_order_of_target_modules_does_not_matter_and_other_runs_are_noted(tmp_path):
    adapter(tmp_path / "run/checkpoint-1", 1)
    adapter(tmp_path / "other/checkpoint-2", 2, target_modules=["key", "query"], base_model_name_or_path="moved/base")
    experts = {"one": str(tmp_path / "run/checkpoint-1"), "two": str(tmp_path / "other/checkpoint-2")}
    notices = Recipe(method="mwa", experts=experts, parameters={"metric": "steps"}).plan().notices
    assert any("different runs" in n for n in notices) and any("moved/base" in n for n in notices)


def test_linear_takes_adapters_too(checkpoints, tmp_path):
    folder, held = checkpoints
    names = sorted(held)
    Recipe(method="linear", experts={n: str(folder / n) for n in names}).run(tmp_path / "out", progress=False)
    name = f"{PREFIX}.key.lora_A.weight"
    mean = np.mean([held[n][name] for n in names], axis=0)
    assert load_file(tmp_path / "out/adapter_model.safetensors")[name] == pytest.approx(mean, abs=1e-6)


def bound(made):
    """The values of a plan, by expert."""
    task = made.tasks[0]
    return dict(zip(task.expert_names, task.parameters["value"], strict=True))


def test_losses_come_from_the_state_of_the_trainer(checkpoints):
    folder, _ = checkpoints
    for place, last in ((100, 5.0), (200, 3.0), (300, 2.0)):
        logged = [{"step": s, "loss": last + (place - s) / 10} for s in range(10, place + 1, 10)]
        logged += [{"step": place, "eval_loss": 9.0}, {"step": place + 10, "loss": 77.0}]
        state = {"global_step": place, "log_history": logged}
        (folder / f"checkpoint-{place}/trainer_state.json").write_text(json.dumps(state))
    made = recipe(folder, parameters={"window": 3}).plan()
    assert bound(made) == {"checkpoint-100": 6.0, "checkpoint-200": 4.0, "checkpoint-300": 3.0}
    assert any("mean of the last 3 of trainer_state.json" in n for n in made.notices)
    assert bound(recipe(folder).plan())["checkpoint-100"] == pytest.approx(9.5)
    assert bound(recipe(folder, parameters={"metric": "steps"}).plan())["checkpoint-300"] == 300


def test_losses_come_from_our_own_record_of_the_run(tmp_path):
    for step in (4, 8):
        adapter(tmp_path / f"run/checkpoints/step-{step}", step)
    experts = {str(s): str(tmp_path / f"run/checkpoints/step-{s}") for s in (4, 8)}
    made = Recipe(method="mwa", experts=experts, parameters={"metric": "steps"}).plan()
    assert bound(made) == {"4": 4, "8": 8} and any("name of its folder" in n for n in made.notices)
    listed = {"checkpoints": [{"step": 4, "train_loss": 0.25}, {"step": 8, "train_loss": 0.125}]}
    (tmp_path / "run/trajectory.json").write_text(json.dumps(listed))
    made = Recipe(method="mwa", experts=experts).plan()
    assert bound(made) == {"4": 0.25, "8": 0.125} and any("trajectory.json" in n for n in made.notices)
    (tmp_path / "run/expert.json").write_text(json.dumps({"loss": {"every_step": [8, 7, 6, 5, 4, 3, 2, 1]}}))
    made = Recipe(method="mwa", experts=experts, parameters={"window": 2}).plan()
    assert bound(made) == {"4": 5.5, "8": 1.5} and any("mean of the last 2 of expert.json" in n for n in made.notices)


def test_one_checkpoint_is_returned_with_a_word(checkpoints, tmp_path):
    folder, held = checkpoints
    one = Recipe(method="mwa", experts={"only": str(folder / "checkpoint-200")}, parameters={"metric": "steps"})
    result = one.run(tmp_path / "out", progress=False)
    assert any("one expert only" in notice for notice in result.notices)
    written = load_file(tmp_path / "out/adapter_model.safetensors")
    assert all((written[n] == t).all() for n, t in held["checkpoint-200"].items())


def test_values_that_are_recorded_nowhere_are_asked_for(checkpoints):
    folder, _ = checkpoints
    with pytest.raises(RecipeError) as refused:
        recipe(folder).plan()
    for word in ("no loss is recorded for expert 'checkpoint-100'", "'checkpoint-300'", "trainer_state.json"):
        assert word in str(refused.value)
    with pytest.raises(RecipeError, match="recorded nowhere"):
        recipe(folder, parameters={"metric": "custom"}).plan()


def test_values_from_a_json_file(checkpoints, tmp_path):
    folder, held = checkpoints
    (tmp_path / "losses.json").write_text(json.dumps({name: i + 1 for i, name in enumerate(sorted(held))}))
    made = recipe(folder, parameters={"value": str(tmp_path / "losses.json")}).plan()
    assert bound(made) == {"checkpoint-100": 1, "checkpoint-200": 2, "checkpoint-300": 3}
    (tmp_path / "losses.json").write_text(json.dumps({"checkpoint-100": "low", "checkpoint-20": 1}))
    with pytest.raises(RecipeError) as refused:
        recipe(folder, parameters={"value": str(tmp_path / "losses.json")}).plan()
    for word in ("no number for expert 'checkpoint-100'", "unknown expert 'checkpoint-20'", "'checkpoint-300'"):
        assert word in str(refused.value)
    with pytest.raises(RecipeError, match="neither a number nor a JSON file"):
        recipe(folder, parameters={"value": "absent.json"}).plan()


def test_values_from_the_command_line(checkpoints, tmp_path, monkeypatch, capsys):
    _, held = checkpoints
    monkeypatch.chdir(tmp_path)
    text = (
        "version: 1\nmethod: mwa\nexperts: [run/checkpoint-100, run/checkpoint-300]\nparameters: {penalty_factor: 1}\n"
    )
    (tmp_path / "recipe.yml").write_text(text)
    chosen = ["--set", "value.checkpoint-100=3", "--set", "value.checkpoint-300=1", "--set", "metric=steps"]
    assert run(["merge", "recipe.yml", "--out", "out", *chosen]) == 0
    name = f"{PREFIX}.key.lora_A.weight"
    expected = 0.75 * held["checkpoint-100"][name] + 0.25 * held["checkpoint-300"][name]
    assert load_file(tmp_path / "out/adapter_model.safetensors")[name] == pytest.approx(expected, abs=1e-6)
    assert "checkpoint-100: 3" in (tmp_path / "out/recipe.yml").read_text()
    capsys.readouterr()
    assert run(["plan", "recipe.yml", "--set", "value"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err
    shutil.copy(tmp_path / "recipe.yml", tmp_path / "kit.yml")
    (tmp_path / "kit.yml").write_text("merge_method: linear\nmodels: [{model: run/checkpoint-100}]\n")
    assert run(["plan", "kit.yml", "--set", "weight=1"]) == 2
    assert "native recipes only" in capsys.readouterr().err
