"""Surrogates, fronts and the three searches on functions whose front is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilience.core.jobs import Job
from consilience.errors import RequestError, WorkError
from consilience.tuning.pareto import ParetoFront, default_budget, search_pareto
from consilience.tuning.pareto_bayes import bin_scores, to_angles, to_coefficients
from consilience.tuning.pareto_front import choose_point, find_front, hypervolume, pareto_mask, parse_constraint, spread
from consilience.tuning.pareto_nested import least_budget
from consilience.tuning.pareto_sampling import sample_coefficients
from consilience.tuning.pareto_surrogate import fit_surrogate, parameter_count, terms


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


class Rivals:
    """Each expert is good at its own task and in the way of the others; counts its evaluations."""

    def __init__(self, experts: int) -> None:
        self.experts, self.seen = experts, []

    def __call__(self, c: Any) -> list[float]:
        self.seen.append(tuple(c))
        away = (c**2).sum() - c**2
        return sigmoid(-0.5 + 2.5 * c - 0.8 * c**2 - 1.2 * away).tolist()

    @property
    def names(self) -> list[str]:
        return [f"e{i}" for i in range(self.experts)]

    def grid_volume(self, steps: int = 21) -> float:
        axes = np.meshgrid(*[np.linspace(0, 1, steps)] * self.experts)
        return hypervolume([Rivals(self.experts)(c) for c in np.stack(axes, -1).reshape(-1, self.experts)], [0] * 2)


def test_a_quadratic_is_fitted_exactly() -> None:
    points = sample_coefficients(3, 20)
    truth = np.random.default_rng(0).normal(size=(3, parameter_count(3)))
    for name, act in (("sigmoid", sigmoid), ("identity", lambda x: x), ("softplus", lambda x: np.logaddexp(0, x))):
        surrogate = fit_surrogate(points, act(terms(points) @ truth.T), activation=name)
        assert np.allclose(surrogate.parameters, truth, atol=1e-5)
        assert min(surrogate.r2) > 0.999999
        assert not surrogate.notices


def test_shares_of_0_and_1_and_flat_metrics_are_fitted() -> None:
    points = sample_coefficients(2, 20)
    metrics = np.stack([(points[:, 0] > 0.5).astype(float), np.full(20, 0.3)], axis=1)
    surrogate = fit_surrogate(points, metrics, names=["law", "health"])
    assert np.isfinite(surrogate.parameters).all()
    assert surrogate.constant == (False, True)
    assert np.allclose(surrogate.predict(np.random.rand(5, 2))[:, 1], 0.3)
    assert any("health scored the same everywhere" in notice for notice in surrogate.notices)


def test_nan_evaluations_are_left_out_until_too_few_are_left() -> None:
    points = sample_coefficients(2, 10)
    metrics = np.stack([points[:, 0], points[:, 1] ** 2], axis=1)
    metrics[3, 1] = np.nan
    surrogate = fit_surrogate(points, metrics, activation="identity")
    assert np.allclose(surrogate.predict(points)[3], [points[3, 0], points[3, 1] ** 2])
    assert "1 of 10 evaluations" in surrogate.notices[0]
    metrics[:6] = np.nan
    with pytest.raises(WorkError, match="4 usable evaluations for 6 parameters"):
        fit_surrogate(points, metrics)


def test_noise_is_told_as_a_poor_fit() -> None:
    points = sample_coefficients(2, 60)
    surrogate = fit_surrogate(points, np.random.default_rng(1).random((60, 1)), names=["law"])
    assert any("law: the surrogate explains 0." in notice for notice in surrogate.notices)


@pytest.mark.parametrize("experts", [1, 2, 4, 8])
def test_samples_are_distinct_in_the_box_and_begin_with_the_corners(experts: int) -> None:
    points = sample_coefficients(experts, default_budget(experts), seed=3)
    assert len(np.unique(points, axis=0)) == len(points) == default_budget(experts)
    assert points.min() >= 0 and points.max() <= 1
    if experts > 1:
        assert np.array_equal(points[:experts], np.eye(experts))
        assert all(len(set(row)) > 1 for row in points.tolist())  # none is isotropic
    assert np.array_equal(points, sample_coefficients(experts, default_budget(experts), seed=3))
    with pytest.raises(RequestError, match="at least"):
        sample_coefficients(3, 2)


def test_dominated_rows_are_found_in_both_directions() -> None:
    values = np.random.default_rng(0).random((300, 3))
    values[7] = values[3]
    slow = [not any((o >= v).all() and (o > v).any() for o in values) for v in values]
    assert pareto_mask(values).tolist() == slow
    assert pareto_mask(-values, False).tolist() == slow
    assert pareto_mask([[1, 5], [2, 4], [0, 6]], [True, False]).tolist() == [False, True, False]
    assert pareto_mask([[np.nan, 1], [0, 0]]).tolist() == [False, True]


def test_front_of_a_surrogate_reaches_that_of_a_grid() -> None:
    rivals = Rivals(2)
    points = sample_coefficients(2, 20)
    surrogate = fit_surrogate(points, [rivals(c) for c in points])
    front = find_front(surrogate, seed=5)
    assert front.min() >= 0 and front.max() <= 1
    assert hypervolume([rivals(c) for c in front], [0, 0]) > 0.99 * rivals.grid_volume()
    assert np.array_equal(front, find_front(surrogate, seed=5))


def test_choices_follow_preference_and_bounds() -> None:
    front = [[0.9, 0.1], [0.55, 0.5], [0.1, 0.9]]  # the middle one is in a dent: no weighted sum reaches it
    tasks = ["law", "health"]
    assert {choose_point(front, [w, 1 - w], tasks) for w in np.linspace(0, 1, 21)} == {0, 1, 2}
    front[1] = [0.45, 0.45]
    assert {choose_point(front, [w, 1 - w], tasks) for w in np.linspace(0, 1, 21)} == {0, 2}
    assert choose_point(front, [0.5, 0.5], tasks, by="chebyshev") == 1
    assert choose_point(front, {"health": 1}, tasks, require=[parse_constraint("law >= 0.4", tasks)]) == 1
    assert choose_point([[1, 3.0], [2, 2.0]], [0, 1], tasks, higher=False) == 1
    bound = parse_constraint("law>=0.95", tasks)
    with pytest.raises(WorkError, match=r"law >= 0.95 \(the front reaches 0.9\)"):
        choose_point(front, [1, 1], tasks, require=[bound])


@pytest.mark.parametrize(
    ("preference", "message"),
    [
        ({"lw": 1}, "did you mean 'law'"),
        ([1], "1 numbers for 2 tasks"),
        ([-1, 2], "0 or more"),
        ([np.nan, 1], "finite"),
        ([0, 0], "all numbers are 0"),
    ],
)
def test_wrong_preferences(preference: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        choose_point([[1, 0]], preference, ["law", "health"])


def test_wrong_constraints() -> None:
    for text in ("law", "law > 1", "low >= 0.1", "law >= ."):
        with pytest.raises(RequestError, match="constraint"):
            parse_constraint(text, ["law"])


def test_spread_keeps_the_best_of_each_task() -> None:
    values = np.stack([np.linspace(0, 1, 50), np.sqrt(1 - np.linspace(0, 1, 50) ** 2)], axis=1)
    kept = spread(values, 5)
    assert {0, 49} <= set(kept.tolist()) and len(kept) == 5


def test_angles_and_back() -> None:
    points = np.random.default_rng(2).random((40, 4))
    back = to_coefficients(np.linalg.norm(points, axis=1), to_angles(points))
    assert np.allclose(back, points)


def test_bins_without_points_count_as_the_worst_known() -> None:
    points = np.array([[1.0, 0.05], [1.0, 0.1], [0.1, 1.0]])
    corners, scores = bin_scores(points, np.array([0.1, 0.1, 0.9]), np.random.default_rng(0))
    assert corners.ravel().tolist() == [0, 1, 2, 3]
    assert scores[1] == scores[2] == scores[3] >= 0.9 > scores[0]


@pytest.mark.parametrize("search", ["map", "bayesian", "nested"])
def test_every_search_uses_its_budget_exactly_and_beats_few_random_points(search: Any) -> None:
    rivals = Rivals(2)
    found = search_pareto(rivals, rivals.names, rivals.names, budget=20, search=search, front=15, seed=1)
    assert found.evaluations["search"] == 20 == len(found.samples)
    assert len(rivals.seen) == len(set(rivals.seen)) == sum(found.evaluations.values())
    volume = hypervolume(found.values(), [0, 0])
    assert volume > 0.97 * rivals.grid_volume()
    again = search_pareto(Rivals(2), rivals.names, rivals.names, budget=20, search=search, front=15, seed=1)
    assert again.to_dict() == found.to_dict()


def test_a_linear_surrogate_finds_a_worse_front() -> None:
    volumes = []
    for degree in (1, 2):
        rivals = Rivals(2)
        found = search_pareto(rivals, rivals.names, rivals.names, budget=20, front=20, degree=degree)
        volumes.append(hypervolume(found.values(), [0, 0]))
    assert volumes[0] < 0.99 * volumes[1]


def test_nested_search_of_four_experts() -> None:
    rivals = Rivals(4)
    found = search_pareto(
        rivals, rivals.names, rivals.names, budget=60, search="nested", front=0, preference={"e0": 3, "e1": 1}
    )
    assert len(rivals.seen) == 60 == found.evaluations["search"]
    assert found.evaluations["front"] == 0
    assert [len(stage["merged"]) for stage in found.stages] == [2, 2, 2]
    assert sum(stage["evaluations"] for stage in found.stages) == 60 - 4
    assert found.surrogate is None and found.points[0].predicted is None
    with pytest.raises(RequestError, match=f"needs {least_budget(4)} evaluations"):
        search_pareto(rivals, rivals.names, rivals.names, budget=15, search="nested")


def test_one_expert_and_one_task_give_the_best_coefficient() -> None:
    found = search_pareto(lambda c: [0.9 - (c[0] - 0.6) ** 2], ["e"], ["t"], budget=6, front=3)
    assert len(found.points) == 1
    assert found.points[0].coefficients[0] == pytest.approx(0.6, abs=0.02)


def test_losses_and_accuracies_together() -> None:
    def evaluate(c: Any) -> list[float]:
        return [0.2 + 0.5 * c[0], 2 - c[1] + 0.5 * c[0] ** 2]

    found = search_pareto(
        evaluate, ["a", "b"], ["law", "loss"], budget=15, activation=["sigmoid", "softplus"], higher=[True, False]
    )
    assert found.select({"law": 1}).coefficients[0] > 0.95
    best = found.select({"loss": 1}, require=["loss<=1.2"])
    assert best.coefficients == pytest.approx((0, 1), abs=0.05)


def test_files_say_everything(tmp_path: Path) -> None:
    rivals = Rivals(2)
    found = search_pareto(rivals, ["a", "b"], ["law", "health"], budget=12, front=4, bounds=(-0.5, 1.5))
    assert any("extrapolated" in notice for notice in found.notices)
    found.write(tmp_path / "pareto.json")
    content = json.loads((tmp_path / "pareto.json").read_text())
    assert (content["format"], content["version"]) == ("consilience/pareto", 1)
    again = ParetoFront.read(tmp_path / "pareto.json")
    assert again.to_dict() == found.to_dict()
    assert again.surrogate is not None
    assert np.array_equal(again.surrogate.predict(found.samples), found.surrogate.predict(found.samples))
    recipe = found.recipe(found.points[0], base="base", experts={"b": "models/b", "a": "models/a"})
    assert recipe["parameters"]["weight"] == dict(zip("ba", found.points[0].coefficients[::-1], strict=True))
    with pytest.raises(RequestError, match="not those of the front"):
        found.recipe(found.points[0], base="base", experts={"a": "models/a"})
    (tmp_path / "bad.json").write_text('{"format": "consilience/pareto", "version": 1}')
    with pytest.raises(RequestError, match="damaged"):
        ParetoFront.read(tmp_path / "bad.json")


def test_a_stopped_search_resumes(tmp_path: Path) -> None:
    rivals = Rivals(2)
    wanted: dict[str, Any] = {"budget": 12, "front": 4, "seed": 2}

    def breaks(c: Any) -> list[float]:
        if len(rivals.seen) == 7:
            raise WorkError("stopped")
        return rivals(c)

    with pytest.raises(WorkError, match="stopped"), Job(tmp_path / "out", kind="pareto", request=wanted) as job:
        search_pareto(breaks, rivals.names, rivals.names, job=job, **wanted)
    resumed = Rivals(2)
    with Job(tmp_path / "out", kind="pareto", request=wanted) as job:
        found = search_pareto(resumed, rivals.names, rivals.names, job=job, **wanted)
    assert len(resumed.seen) == sum(found.evaluations.values()) - 7
    assert not set(resumed.seen) & set(rivals.seen)
    whole = search_pareto(Rivals(2), rivals.names, rivals.names, **wanted)
    assert whole.to_dict() == found.to_dict()


def test_all_wrong_arguments_are_reported_at_once() -> None:
    with pytest.raises(RequestError) as caught:
        search_pareto(
            Rivals(2), ["a", "b"], ["t"], budget=3, search="mapp", activation=["sigmod"], bounds=(1, 0), front=-1
        )
    for part in ("did you mean 'map'", "use 6 or more", "did you mean 'sigmoid'", "bounds (1, 0)"):
        assert part in str(caught.value)
    with pytest.raises(RequestError, match="one expert per task"):
        search_pareto(Rivals(2), ["a", "b"], ["t"], search="nested")
    with pytest.raises(RequestError, match="returned 2 numbers"):
        search_pareto(Rivals(2), ["a", "b"], ["t"])
