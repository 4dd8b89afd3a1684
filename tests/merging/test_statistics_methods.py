"""Fisher, RegMean, RegMean++, AIM and Sens-Merging: what they promise beside the published numbers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from consilience import load_recipe, merge_state_dicts, open_checkpoint
from consilience.errors import RecipeError, WorkError

State = dict[str, np.ndarray]


def draw(seed: int, shape: tuple[int, ...] = (5, 4)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fisher(a: Any, b: Any, of_a: Any, of_b: Any, **parameters: Any) -> np.ndarray:
    aux = {"fisher": {"a": {"w": np.float32(of_a)}, "b": {"w": np.float32(of_b)}}}
    merged = merge_state_dicts("fisher", None, {"a": {"w": a}, "b": {"w": b}}, aux=aux, **parameters)
    return np.asarray(merged["w"])


def test_fisher_takes_each_entry_from_the_expert_that_depends_on_it() -> None:
    merged = fisher(np.zeros(2), np.ones(2), [1, 0], [0, 1])
    assert merged == pytest.approx([1e-6, 1 - 1e-6], abs=1e-6)


@pytest.mark.parametrize("minimum", [0.0, 1e-6])
def test_fisher_of_zero_is_the_weighted_mean(minimum: float) -> None:
    merged = fisher(np.zeros(3), np.ones(3), np.zeros(3), np.zeros(3), weight={"a": 1, "b": 3}, minimum=minimum)
    assert merged == pytest.approx([0.75] * 3)
    half = fisher(np.zeros(2), np.ones(2), [0, 1], [0, 3], minimum=minimum, normalize=False)
    assert half == pytest.approx([0.5, 0.75], rel=1e-5)


def test_fisher_normalised_does_not_depend_on_the_scale_of_an_expert() -> None:
    one = fisher(draw(0), draw(1), draw(2) ** 2, draw(3) ** 2, minimum=0)
    other = fisher(draw(0), draw(1), draw(2) ** 2 * 1024, draw(3) ** 2, minimum=0)
    assert one == pytest.approx(other, rel=1e-6)
    unlike = fisher(draw(0), draw(1), draw(2) ** 2 * 1024, draw(3) ** 2, minimum=0, normalize=False)
    assert np.abs(unlike - one).max() > 0.1


def test_fisher_floors_differ_where_there_is_no_information() -> None:
    added = fisher(np.zeros(1), np.ones(1), [0], [1], minimum=1, normalize=False)
    raised = fisher(np.zeros(1), np.ones(1), [0], [1], minimum=1, normalize=False, floor="max")
    assert (added[0], raised[0]) == pytest.approx((2 / 3, 1 / 2))


def test_fisher_norm_runs_over_the_whole_model() -> None:
    experts = {"a": {"v": np.zeros(1), "w": np.zeros(1)}, "b": {"v": np.ones(1), "w": np.ones(1)}}
    of_a, of_b = {"v": np.ones(1), "w": np.full(1, 3.0)}, {"v": np.ones(1), "w": np.zeros(1)}
    merged = merge_state_dicts("fisher", None, experts, aux={"fisher": {"a": of_a, "b": of_b}}, minimum=0)
    assert merged["v"][0] == pytest.approx(1 / (1 + 10**-0.5))


@pytest.mark.parametrize("value", [-0.5, np.nan, np.inf])
@pytest.mark.parametrize("normalize", [True, False])
def test_fisher_below_zero_or_not_finite_is_refused_by_name(value: float, normalize: bool) -> None:
    with pytest.raises(WorkError, match=r"'w'.*expert 'b'.*at element 1"):
        fisher(np.zeros(2), np.ones(2), [1, 1], [1, value], normalize=normalize)


def test_one_expert_comes_back() -> None:
    w = draw(0, (4, 4))
    gram = np.eye(4, dtype=np.float32)
    for method, aux in (("fisher", {"fisher": draw(1, (4, 4)) ** 2}), ("regmean", {"gram": gram})):
        given = {kind: {"a": {"w": value}} for kind, value in aux.items()}
        assert (merge_state_dicts(method, None, {"a": {"w": w}}, aux=given)["w"] == w).all()


@pytest.mark.parametrize(("method", "kind"), [("fisher", "fisher"), ("regmean", "gram")])
def test_all_weights_zero_are_refused(method: str, kind: str) -> None:
    experts = {"a": {"w": draw(0)}, "b": {"w": draw(1)}}
    with pytest.raises(RecipeError, match=r"parameters\.weight.*at least one expert"):
        merge_state_dicts(method, None, experts, weight=0.0, aux={kind: {"a": {}, "b": {}}})


def test_missing_and_misshapen_artefacts_are_listed_together() -> None:
    experts = {"a": {"v": draw(0), "w": draw(1)}, "b": {"v": draw(2), "w": draw(3)}}
    aux = {"fisher": {"a": {"v": draw(4) ** 2}, "b": {"v": draw(5, (4, 5)) ** 2, "w": draw(6) ** 2}}}
    with pytest.raises(RecipeError) as refused:
        merge_state_dicts("fisher", None, experts, aux=aux)
    assert "nothing for tensor 'w'" in str(refused.value) and "[4, 5]" in str(refused.value)


def regmean(inputs: list[np.ndarray], weights: list[np.ndarray], **parameters: Any) -> np.ndarray:
    names = [f"e{i}" for i in range(len(inputs))]
    grams = {n: {"w": (x.T @ x / max(len(x), 1)).astype(np.float32)} for n, x in zip(names, inputs, strict=True)}
    experts = {n: {"w": w} for n, w in zip(names, weights, strict=True)}
    return np.asarray(merge_state_dicts("regmean", None, experts, aux={"gram": grams}, **parameters)["w"])


def error(merged: np.ndarray, inputs: list[np.ndarray], weights: list[np.ndarray]) -> float:
    return sum(float(((x @ (merged - w).T) ** 2).mean()) for x, w in zip(inputs, weights, strict=True))


def test_regmean_is_the_best_layer_on_the_experts_inputs() -> None:
    inputs, weights = [draw(i, (40, 4)) for i in range(3)], [draw(9 + i) for i in range(3)]
    best = regmean(inputs, weights, reduce_non_diagonal_ratio=1.0)
    assert error(best, inputs, weights) < error(sum(weights) / 3, inputs, weights)
    for seed in range(20):
        moved = best + 1e-2 * draw(100 + seed)
        assert error(moved, inputs, weights) > error(best, inputs, weights)


def test_regmean_without_off_diagonal_entries_weighs_columns_by_power() -> None:
    inputs, weights = [draw(0, (40, 4)), 3 * draw(1, (40, 4))], [draw(2), draw(3)]
    powers = [(x**2).mean(axis=0) for x in inputs]
    expected = (weights[0] * powers[0] + weights[1] * powers[1]) / (powers[0] + powers[1])
    assert regmean(inputs, weights, reduce_non_diagonal_ratio=0.0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ratio", [1.0, 0.9])
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_regmean_with_too_few_tokens_keeps_the_mean_where_data_say_nothing(tokens: int, ratio: float) -> None:
    inputs = [draw(i, (tokens, 8)) for i in range(2)]
    for x in inputs:
        x[:, 6:] = 0  # inputs that are always 0
    weights = [draw(9, (5, 8)), draw(10, (5, 8))]
    with pytest.warns(UserWarning, match="Gram matrices is singular"):
        merged = regmean(inputs, weights, reduce_non_diagonal_ratio=ratio)
    mean = (weights[0] + weights[1]) / 2
    assert merged[:, 6:] == pytest.approx(mean[:, 6:], abs=1e-5)
    assert np.abs(merged).max() < 10 * np.abs(mean).max()
    if tokens:
        assert error(merged, inputs, weights) <= error(mean, inputs, weights) + 1e-6
    else:
        assert merged == pytest.approx(mean, abs=1e-6)


def test_regmean_names_the_tensors_that_took_a_ridge() -> None:
    experts = {"a": {"w": draw(0, (3, 4))}, "b": {"w": draw(1, (3, 4))}}
    grams = {name: {"w": np.zeros((4, 4), np.float32)} for name in experts}
    grams["a"]["w"][0, 0] = 1
    facts: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merge_state_dicts("regmean", None, experts, aux={"gram": grams}, facts=facts)
    assert 0 < facts["w"]["ridge"] < 1e-5


@pytest.mark.parametrize("value", [np.nan, -1.0])
def test_what_is_no_gram_is_refused_by_name(value: float) -> None:
    grams = {"a": {"w": np.eye(4, dtype=np.float32)}, "b": {"w": np.diag(np.float32([1, 1, value, 1]))}}
    with pytest.raises(WorkError, match=r"'w'.*Gram matrix of 'b'"):
        merge_state_dicts("regmean", None, {"a": {"w": draw(0)}, "b": {"w": draw(1)}}, aux={"gram": grams})


def test_regmean_near_singular_stays_near_the_experts() -> None:
    x = draw(0, (100, 3))
    twins = np.concatenate([x, x[:, :1] + 1e-5 * draw(1, (100, 1))], axis=1)
    weights = [draw(2, (5, 4)), draw(3, (5, 4))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = regmean([twins, twins], weights, reduce_non_diagonal_ratio=1.0)
    assert np.abs(merged).max() < 5


def test_regmean_leaves_tensors_without_gram_and_excluded_ones_at_the_mean() -> None:
    experts = {"a": {"w": draw(0, (4, 4)), "v": draw(1, (4, 4)), "b": draw(2, (4,))}}
    experts["b"] = {name: value + 1 for name, value in experts["a"].items()}
    gram = {"w": np.diag(np.float32([1, 2, 3, 4])), "v": np.eye(4, dtype=np.float32)}
    aux = {"gram": {"a": gram, "b": {"w": np.eye(4, dtype=np.float32), "v": 3 * np.eye(4, dtype=np.float32)}}}
    merged = merge_state_dicts("regmean", None, experts, aux=aux, exclude="v", weight={"a": 1, "b": 3})
    assert merged["b"] == pytest.approx(experts["a"]["b"] + 0.75)
    assert merged["v"] == pytest.approx(experts["a"]["v"] + 0.75, rel=1e-5)
    assert merged["w"] == pytest.approx(experts["a"]["w"] + np.float32([3 / 4, 3 / 5, 3 / 6, 3 / 7]), rel=1e-5)
    del aux["gram"]["a"]["w"]
    merged = merge_state_dicts("regmean", None, experts, aux=aux, weight={"a": 1, "b": 3})
    assert merged["w"] == pytest.approx(experts["a"]["w"] + 0.75, rel=1e-5)


def test_regmean_plusplus_is_the_same_formula_on_other_grams() -> None:
    inputs, weights = [draw(i, (40, 4)) for i in range(2)], [draw(9 + i) for i in range(2)]
    grams = {f"e{i}": {"w": (x.T @ x / len(x)).astype(np.float32)} for i, x in enumerate(inputs)}
    experts = {f"e{i}": {"w": w} for i, w in enumerate(weights)}
    merged = merge_state_dicts("regmean_plusplus", None, experts, aux={"sequential_gram": grams})
    assert (merged["w"] == regmean(inputs, weights, reduce_non_diagonal_ratio=0.95)).all()
    with pytest.raises(RecipeError, match=r"aux\.gram.*does not use it"):
        merge_state_dicts("regmean_plusplus", None, experts, aux={"gram": grams})


ACTIVATION = {"layer.weight": np.float32([1, 2, 4, 0]), "norm.weight": np.float32([4, 1, 1, 1])}


def aim_inputs() -> tuple[State, dict[str, State]]:
    shapes = {"layer.weight": (3, 4), "layer.bias": (3,), "norm.weight": (4,), "embed.weight": (6, 4)}
    base = {name: draw(i, shape) for i, (name, shape) in enumerate(shapes.items())}
    experts = {e: {n: v + 0.1 * draw(10 * k + 7, v.shape) for n, v in base.items()} for k, e in enumerate("ab", 1)}
    return base, experts


def test_aim_relaxes_channels_by_activation() -> None:
    base, experts = aim_inputs()
    plain = merge_state_dicts("task_arithmetic", base, experts, weight=0.5)
    merged = merge_state_dicts("aim", base, experts, weight=0.5, omega=0.4, aux={"activation": ACTIVATION})
    for name, kept in {
        "layer.weight": 1 - 0.6 * np.array([1, 2, 4, 0]) / 4,
        "norm.weight": 1 - 0.6 * np.array([4, 1, 1, 1]) / 4,
        "layer.bias": 1.0,
        "embed.weight": 1.0,
    }.items():
        assert merged[name] - base[name] == pytest.approx((plain[name] - base[name]) * kept, rel=1e-4, abs=1e-6)
    whole = merge_state_dicts("aim", base, experts, weight=0.5, omega=1.0, aux={"activation": ACTIVATION})
    assert all((whole[name] == plain[name]).all() for name in base)


def test_aim_relaxes_any_finished_merge() -> None:
    base, experts = aim_inputs()
    ties = merge_state_dicts("ties", base, experts, density=0.5)
    relaxed = merge_state_dicts("aim", base, {"ties": ties}, aux={"activation": ACTIVATION})
    change = relaxed["layer.weight"] - base["layer.weight"]
    assert change == pytest.approx((ties["layer.weight"] - base["layer.weight"]) * [0.85, 0.7, 0.4, 1], abs=1e-6)
    assert relaxed["layer.bias"] == pytest.approx(ties["layer.bias"], rel=1e-6)


def test_aim_can_leave_biases_and_names_unrelaxed() -> None:
    base, experts = aim_inputs()
    aux = {"activation": {**ACTIVATION, "embed.weight": np.float32([1, 1, 1, 1])}}
    merged = merge_state_dicts("aim", base, experts, biases="base", aux=aux)
    assert (merged["layer.bias"] == base["layer.bias"]).all()
    plain = merge_state_dicts("task_arithmetic", base, experts)
    assert (merged["embed.weight"] == plain["embed.weight"]).all()
    all_relaxed = merge_state_dicts("aim", base, experts, omega=0.0, exclude="", aux=aux)
    assert (all_relaxed["embed.weight"] == base["embed.weight"]).all()


def test_aim_without_activity_keeps_the_change_and_refuses_negative_ones() -> None:
    base, experts = aim_inputs()
    plain = merge_state_dicts("task_arithmetic", base, experts)
    still = merge_state_dicts("aim", base, experts, aux={"activation": {"layer.weight": np.zeros(4, np.float32)}})
    assert (still["layer.weight"] == plain["layer.weight"]).all()
    with pytest.raises(WorkError, match=r"'layer\.weight'.*below 0"):
        merge_state_dicts("aim", base, experts, aux={"activation": {"layer.weight": -np.ones(4, np.float32)}})


def sens(sensitivity: dict[str, dict[str, float]], **parameters: Any) -> dict[str, float]:
    names = next(iter(sensitivity.values()))
    base = {name: np.zeros(1) for name in names}
    experts = {e: {name: np.full(1, float(i)) for name in names} for i, e in enumerate(sensitivity)}
    aux = {"sensitivity": {e: {n: np.float64(v) for n, v in s.items()} for e, s in sensitivity.items()}}
    merged = merge_state_dicts("sens", base, experts, aux=aux, **parameters)
    return {name: float(value[0]) / len(experts) for name, value in merged.items()}


def test_sens_adds_the_tensors_of_a_layer_and_compares_layers() -> None:
    by_tensor = sens({"a": {"l.0.w": 1.0, "l.0.b": 2.0, "l.1.w": 4.0}, "b": {"l.0.w": 3.0, "l.0.b": 1.0, "l.1.w": 3.0}})
    moved = sens({"a": {"l.0.w": 3.0, "l.0.b": 0.0, "l.1.w": 4.0}, "b": {"l.0.w": 0.0, "l.0.b": 4.0, "l.1.w": 3.0}})
    assert by_tensor == moved and by_tensor["l.0.w"] == by_tensor["l.0.b"]
    score = 0.5 * np.array([3 / 5, 4 / 5])
    assert by_tensor["l.0.w"] == pytest.approx(np.exp(score[1]) / np.exp(score).sum())
    assert by_tensor["l.1.w"] == pytest.approx(np.exp(score[0]) / np.exp(score).sum())


def test_sens_prefers_distant_experts_and_a_high_temperature_is_task_arithmetic() -> None:
    same = {"a": {"x.w": 1.0, "y.w": 1.0}, "b": {"x.w": 1.0, "y.w": 1.0}}
    assert sens(same)["x.w"] == pytest.approx(0.5)
    assert sens(same, distance={"a": 1, "b": 3})["x.w"] > 0.5
    unlike = {"a": {"x.w": 1.0, "y.w": 9.0}, "b": {"x.w": 9.0, "y.w": 1.0}}
    assert sens(unlike, temperature=1e-3)["x.w"] > 0.999
    assert sens(unlike, temperature=1e9)["x.w"] == pytest.approx(0.5)
    assert sens(unlike, lambda_=0.25, temperature=1e9)["x.w"] == pytest.approx(0.125)


def test_sens_layers_are_what_the_pattern_matches() -> None:
    values = {"a": {"x.q.w": 1.0, "x.k.w": 5.0}, "b": {"x.q.w": 5.0, "x.k.w": 1.0}}
    apart, together = sens(values), sens(values, layer="x")
    assert apart["x.q.w"] != apart["x.k.w"] and together["x.q.w"] == together["x.k.w"] == pytest.approx(0.5)


def test_sens_refuses_what_cannot_be_measured() -> None:
    with pytest.raises(RecipeError, match=r"parameters\.distance: all are 0"):
        sens({"a": {"w": 1.0}, "b": {"w": 1.0}}, distance=0.0)
    with pytest.raises(WorkError, match="sensitivity of 'b' is -1"):
        sens({"a": {"w": 1.0}, "b": {"w": -1.0}})
    assert sens({"a": {"w": 0.0}, "b": {"w": 0.0}})["w"] == pytest.approx(0.5)


def test_a_recipe_names_artefacts_and_gives_the_same_bytes(tmp_path: Path) -> None:
    experts = {e: {"layer.weight": draw(i, (6, 4)), "layer.bias": draw(5 + i, (6,))} for i, e in enumerate("ab")}
    grams = {e: {"layer.weight": np.diag(np.float32([1, 2, 3, 4 + i]))} for i, e in enumerate("ab")}
    for name in experts:
        (tmp_path / "statistics" / name).mkdir(parents=True)
        save_file(experts[name], tmp_path / f"{name}.safetensors")
        save_file(grams[name], tmp_path / "statistics" / name / "gram.safetensors")
    (tmp_path / "recipe.yml").write_text(
        "version: 1\nmethod: regmean\nexperts: {a: a.safetensors, b: b.safetensors}\n"
        "parameters: {reduce_non_diagonal_ratio: 0.5}\naux: {gram: {a: statistics/a, b: statistics/b}}\n"
    )
    load_recipe(tmp_path / "recipe.yml").run(tmp_path / "out")
    merged = merge_state_dicts("regmean", None, experts, aux={"gram": grams}, reduce_non_diagonal_ratio=0.5)
    for name, source in open_checkpoint(tmp_path / "out").tensors.items():
        assert (source.read_raw(0, source.numel) == merged[name].reshape(-1)).all(), name
