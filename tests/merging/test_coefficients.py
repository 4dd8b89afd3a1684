"""Coefficients by tensor, piece and group: arithmetic, refusals, and equal bytes streamed, in memory, by any chunk."""

import numpy as np
import pytest
import torch

from consilience.core.randomness import stream_key, uniform_bits
from consilience.errors import RecipeError
from consilience.merging.engine import run_plan
from consilience.merging.memory import merge_state_dicts
from consilience.merging.recipe import Recipe
from tests.merging.checkpoints import make_family, read_weights

BASE = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "v": np.ones(5, np.float32)}
EXPERTS = {
    "a": {"w": BASE["w"] + 1, "v": BASE["v"] + np.float32([1, 2, 3, 4, 5])},
    "b": {"w": BASE["w"] - np.arange(12, dtype=np.float32).reshape(3, 4), "v": BASE["v"] * 3},
}
ENTRIES = [
    {"tensors": "model.layers.0.*", "a": [0.1, -0.4, 0.7], "b": 0.25, "c": [0.5, 0.6]},
    {"tensors": ["*norm*", "lm_head.weight"], "b": 1.5},
    {"tensors": "*.weight", "partition": {"groups": 3, "seed": 4}, "a": [0.2, 0.4, 0.6], "c": -0.3},
]


def merge(entries, method="task_arithmetic", **parameters):
    return merge_state_dicts(method, BASE, EXPERTS, coefficients=entries, **parameters)


def test_numbers_scale_task_vectors_and_the_first_entry_that_matches_counts():
    found = merge([{"tensors": "w", "a": 0.5, "b": 2}, {"tensors": "*", "a": 3}])
    np.testing.assert_array_equal(found["w"], BASE["w"] + 0.5 - 2 * np.arange(12, dtype=np.float32).reshape(3, 4))
    np.testing.assert_array_equal(found["v"], BASE["v"] + 3 * np.float32([1, 2, 3, 4, 5]))


def test_a_list_cuts_the_flattened_tensor_as_torch_chunk_does():
    numbers = [0.5, 1.0, 2.0]
    found = merge([{"tensors": "v", "a": numbers}])
    pieces = torch.from_numpy(EXPERTS["a"]["v"] - BASE["v"]).chunk(3)
    expected = np.concatenate([n * piece.numpy() for n, piece in zip(numbers, pieces, strict=True)])
    np.testing.assert_array_equal(found["v"], BASE["v"] + expected)
    np.testing.assert_array_equal(found["w"], BASE["w"])  # no entry matches it


def test_groups_are_drawn_by_seed_and_name():
    found = merge([{"tensors": "v", "partition": {"groups": 2, "seed": 7}, "b": [1.0, 0.0]}])
    drawn = uniform_bits(stream_key(7, "partition", "v"), 0, 5)
    np.testing.assert_array_equal(found["v"], np.where(drawn < 2**31, 3.0, 1.0).astype(np.float32))


def test_equal_numbers_in_a_list_give_the_bytes_of_one():
    one = merge([{"tensors": "*", "a": 0.3, "b": 0.7}])
    many = merge([{"tensors": "*", "a": [0.3, 0.3], "b": [0.7] * 3}])
    weights = merge_state_dicts("task_arithmetic", BASE, EXPERTS, weight={"a": 0.3, "b": 0.7})
    for name in BASE:
        assert one[name].tobytes() == many[name].tobytes() == weights[name].tobytes()


@pytest.mark.parametrize("method", ["task_arithmetic", "ties_arithmetic", "dare_linear"])
def test_streamed_and_in_memory_give_the_same_bytes_for_any_chunk(tmp_path, method):
    folders = make_family(tmp_path / "models")
    recipe = Recipe(
        method=method,
        base=str(folders["base"]),
        experts={name: str(folders[name]) for name in ("a", "b", "c")},
        coefficients=ENTRIES,
        seed=3,
    )
    run_plan(recipe.plan(tmp_path / "out"), chunk=4096)
    streamed = read_weights(tmp_path / "out")
    states = {name: read_weights(folder) for name, folder in folders.items()}
    base = states.pop("base")
    for chunk in (4096, 1 << 18):
        held = merge_state_dicts(method, base, states, coefficients=ENTRIES, seed=3, chunk=chunk)
        assert all(torch.equal(held[name], streamed[name]) for name in streamed)
    assert not torch.equal(streamed["lm_head.weight"], base["lm_head.weight"])
    assert Recipe(**{**_content(recipe), "coefficients": ENTRIES[::-1]}).plan(tmp_path / "out").identity != (
        recipe.plan(tmp_path / "out").identity
    )


def _content(recipe):
    return {"method": "task_arithmetic", "base": recipe.request.models["base"], "experts": _experts(recipe)}


def _experts(recipe):
    return {name: recipe.request.models[name] for name in recipe.request.experts}


def test_large_tensors_do_not_depend_on_the_chunk():
    rng = np.random.default_rng(0)
    base = {"w": rng.standard_normal(30_001).astype(np.float32)}
    experts = {name: {"w": rng.standard_normal(30_001).astype(np.float32)} for name in ("a", "b")}
    for entry in ({"a": [0.1, 0.2, 0.3], "b": 1}, {"partition": {"groups": 3}, "a": [0.1, 0.2, 0.3], "b": 1}):
        found = [
            merge_state_dicts("task_arithmetic", base, experts, coefficients=[{"tensors": "w", **entry}], chunk=chunk)
            for chunk in (4096, 8192, 1 << 20)
        ]
        assert len({each["w"].tobytes() for each in found}) == 1


def test_unmatched_tensors_are_told_in_the_plan(tmp_path):
    folders = make_family(tmp_path)
    recipe = Recipe(
        method="task_arithmetic",
        base=str(folders["base"]),
        experts={"a": str(folders["a"])},
        coefficients=[{"tensors": "*layers*", "a": [1, 2]}],
    )
    plan = recipe.plan()
    assert any("match no entry of coefficients" in notice for notice in plan.notices)
    row = next(row for row in plan.tensor_table() if "layers" in row["name"])
    assert row["coefficients"] == {"a": (1.0, 2.0)}


def test_problems_of_entries_are_reported_together():
    with pytest.raises(RecipeError) as caught:
        merge(
            [
                {"tensors": "w", "c": 1},
                {"tensors": [], "a": 1},
                {"tensors": "v", "a": "much"},
                {"tensors": "v", "partition": {"groups": 0}, "a": 1},
                {"tensors": "v", "partition": {"groups": 3}, "a": [1, 2]},
                {"tensors": "v"},
                "w",
            ],
            weight=0.5,
        )
    for part in (
        "unknown expert 'c'",
        "coefficients[1].tensors",
        "'much' is not a number",
        "groups 0",
        "2 numbers for 3 groups",
        "coefficients[5]: no expert has a coefficient",
        "coefficients[6]: expected",
        "parameters.weight: the coefficients take its place",
    ):
        assert part in str(caught.value)


def test_problems_of_tensors_are_reported_together():
    with pytest.raises(RecipeError) as caught:
        merge([{"tensors": ["nothing", "v"], "a": [1] * 6}, {"tensors": "x*", "b": 1}])
    for part in ("'nothing' matches no merged tensor", "'x*' matches no", "6 numbers, but 'v' with 5 elements"):
        assert part in str(caught.value)
    with pytest.raises(RecipeError, match="has 3 pieces"):
        merge([{"tensors": "v", "a": [1, 2, 3, 4]}])  # pieces of 2: the fourth would be empty


def test_methods_that_do_not_add_task_vectors_refuse():
    with pytest.raises(RecipeError, match="'ties' does not add up task vectors"):
        merge([{"tensors": "*", "a": 1}], method="ties")


def test_unknown_keys_and_wrong_types_of_a_recipe():
    with pytest.raises(RecipeError, match="coefficients: expected a list"):
        Recipe(method="task_arithmetic", base="b", experts={"a": "x"}, coefficients={"a": 1})
    with pytest.raises(RecipeError, match=r"experts.tensors: an expert of this name"):
        Recipe(method="task_arithmetic", base="b", experts={"tensors": "x"}, coefficients=[{"tensors": "*"}])


def test_ties_arithmetic_filters_as_the_authors_code_does():
    rng = np.random.default_rng(1)
    shapes = {"a.weight": (7, 5), "b.bias": (9,)}
    base = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    experts = {
        str(i): {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for i in range(3)
    }
    flat = np.stack([np.concatenate([experts[e][name].ravel() for name in sorted(shapes)]) for e in experts])
    keep = int(0.2 * flat.shape[1]) + 1
    limits = -np.sort(-np.abs(flat), axis=1)[:, keep - 1]
    trimmed = np.where(np.abs(flat) >= limits[:, None], flat, 0)
    sign = np.sign(trimmed.sum(axis=0))
    sign[sign == 0] = np.sign(sign.sum()) or 1
    expected = np.where(trimmed * sign > 0, trimmed, 0)
    found = merge_state_dicts("ties_arithmetic", base, experts, weight={"0": 1, "1": 10, "2": 100})
    got = np.concatenate([found[name].ravel() for name in sorted(shapes)])
    np.testing.assert_allclose(got, expected[0] + 10 * expected[1] + 100 * expected[2], rtol=1e-6)
