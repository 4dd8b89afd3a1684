"""Models of which only a part is merged: a language model inside a vision-language model, by names of tensors."""

import pytest
import torch

from consilience.errors import RecipeError
from consilience.merging.recipe import Recipe, parse_recipe
from tests.merging.checkpoints import llama_tensors, read_weights, write_model


def family(root):
    """A vision-language base, a second one with another vision tower, and the bare language model of a third."""
    base, second, third = (llama_tensors(seed) for seed in (0, 1, 2))

    def inside(tensors):
        return {f"language_model.{name}": tensor for name, tensor in tensors.items()}

    write_model(root / "base", {**inside(base), "vision.tower.weight": torch.ones(3, 4)})
    write_model(
        root / "second", {**inside(second), "vision.tower.weight": torch.ones(5, 4), "audio.weight": torch.ones(2)}
    )
    write_model(root / "third", third)
    return base, second, third


RECIPE = """
version: 1
method: task_arithmetic
base: {root}/base
experts:
  second: {root}/second
  third: {{model: {root}/third, rename: {{"": language_model.}}}}
parameters: {{weight: 0.5}}
tensors: {{merge: "language_model.*"}}
"""


def test_the_language_models_are_merged_and_the_rest_is_the_base(tmp_path):
    base, second, third = family(tmp_path)
    result = parse_recipe(RECIPE.format(root=tmp_path)).run(tmp_path / "out")
    merged = read_weights(tmp_path / "out")
    assert set(merged) == {f"language_model.{n}" for n in base} | {"vision.tower.weight"}
    assert torch.equal(merged["vision.tower.weight"], torch.ones(3, 4))
    for name in base:
        expected = base[name] + 0.5 * (second[name] - base[name]) + 0.5 * (third[name] - base[name])
        assert torch.allclose(merged[f"language_model.{name}"], expected, atol=1e-6)
    assert any("1 tensor(s) of model 'second' are no part" in notice for notice in result.notices)


def test_parts_that_do_not_fit_are_named(tmp_path):
    family(tmp_path)
    with pytest.raises(RecipeError, match="lacks"):
        parse_recipe(RECIPE.format(root=tmp_path).replace('"": language_model.', "model.: language_model.")).plan()
    with pytest.raises(RecipeError, match=r"no tensor begins with 'decoder\.'"):
        parse_recipe(RECIPE.format(root=tmp_path).replace('"":', '"decoder.":')).plan()
    with pytest.raises(RecipeError) as refused:
        Recipe(method="linear", experts={"a": {"model": "x", "renam": {}}, "b": {"rename": {"": "y."}}, "c": 3})
    for words in ("renam", "experts.b", "experts.c", "4 problems"):
        assert words in str(refused.value), words
