"""aTLAS on inputs without labels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consilience.core.jobs import Job
from consilience.core.randomness import draw_some
from consilience.data.images import ImageData
from consilience.errors import CancelledError, RequestError, WorkError
from consilience.merging.recipe import load_recipe
from consilience.models.classifier import Head
from consilience.models.image import ImageClassifier, ImageEncoder, load_image_encoder
from consilience.models.image_network import PerceptronConfig
from consilience.tuning.atlas_adaptation import atlas_adaptation
from consilience.tuning.augmentation import augmented
from consilience.tuning.learning import Learned
from consilience.tuning.tune import tune_recipe
from tests.tuning.tasks import Tasks, points, trained
from tests.tuning.toy import toy


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    return Tasks()


def run(tasks: Tasks, **options: Any) -> Learned:
    given: dict[str, Any] = {"steps": 60, "learning_rate": 0.05, "batch": 24, "threshold": 0.8, **options}
    experts = given.pop("experts", tasks.experts)
    return atlas_adaptation(tasks.base, experts, tasks.models, given.pop("examples", tasks.examples), **given)


def test_predictions_become_surer_and_no_label_is_seen(tasks: Tasks) -> None:
    found = run(tasks)
    assert sum(found.facts["end"].values()) > sum(found.facts["start"].values())
    assert all(1 <= count <= 3 for count in found.facts["trusted"].values())  # 48 inputs of 3 classes: one of each
    wrong = {task: [(x, (y + 1) % 3) for x, y in held] for task, held in tasks.examples.items()}
    assert torch.equal(run(tasks, examples=wrong).values, found.values)


def test_a_base_that_is_nearly_right_gets_better() -> None:
    tasks = Tasks()
    tasks.base = trained(tasks.models["red"], points(1), 12)
    tasks.models = {"red": tasks.models["red"]}
    tasks.examples = {"red": points(1, 200)}
    experts = {"red": trained(tasks.models["red"], points(1), 120), "other": trained(toy_model(), points(5), 60)}
    found = run(tasks, experts=experts, steps=80)
    assert tasks.accuracy(found.state(), "red") > tasks.accuracy(tasks.base, "red")


def toy_model() -> Any:
    model = toy(0)
    model.module.float()
    model.head = model.head.float()
    return model


def test_the_same_seed_gives_the_same_coefficients_also_after_a_stop(tasks: Tasks, tmp_path: Path) -> None:
    whole = run(tasks, steps=40, every=5, seed=3)
    assert torch.equal(run(tasks, steps=40, every=5, seed=3).values, whole.values)
    assert not torch.equal(run(tasks, steps=40, every=5, seed=4).values, whole.values)
    calls = 0

    def stopping(value: Any, random: np.random.Generator) -> Any:
        nonlocal calls
        calls += 1
        if calls == 700:
            job.cancel()
        return augmented(value, random)

    with pytest.raises(CancelledError), Job(tmp_path / "out", kind="tune", request={}) as job:
        run(tasks, steps=40, every=5, seed=3, augment=stopping, job=job)
    with Job(tmp_path / "out", kind="tune", request={}) as again:
        assert again.done
        assert torch.equal(run(tasks, steps=40, every=5, seed=3, job=again).values, whole.values)


def test_a_loss_that_becomes_nan_ends_the_work_at_finite_coefficients(tmp_path: Path) -> None:
    tasks = Tasks()
    own = tasks.models["red"].logits

    def fragile(batch: Any, parameters: Any = None) -> Any:
        moved = sum(float((parameters[name].detach() - tasks.base[name]).norm()) for name in tasks.base)
        return own(batch, parameters) * (np.nan if moved > bound else 1.0)

    bound = np.inf
    tasks.models["red"].logits = fragile  # type: ignore[method-assign]
    whole = run(tasks, steps=40, every=5)
    bound = sum(float((whole.state()[name] - tasks.base[name]).norm()) for name in tasks.base) / 2
    with Job(tmp_path / "out", kind="tune", request={}) as job:
        found = run(tasks, steps=40, every=5, job=job)
    assert 5 <= found.facts["steps"] < 40 and found.facts["steps"] % 5 == 0 and found.values.any()
    assert list(found.trace) == list(whole.trace[: len(found.trace)])  # of the same descent, and all of them finite
    told = rf"'red': the loss is nan .* the coefficients of step {found.facts['steps']} are returned"
    assert len(found.notices) == 1 and re.search(told, found.notices[0])
    assert torch.equal(run(tasks, steps=40, every=5).values, found.values)  # without a journal
    with pytest.raises(WorkError, match="the loss is nan"):
        run(tasks, steps=40, every=40)


CLASSES = ("below", "above")


def bright() -> dict[str, tuple[Any, Any]]:
    """Images that are brighter in the lower or the upper half, by split."""
    random = np.random.default_rng(0)
    images, labels = random.random((64, 4, 4), np.float32), random.integers(0, 2, 64)
    images[labels == 1, :2] = (images[labels == 1, :2] + 1) / 2
    return {split: (images[rows], labels[rows]) for split, rows in (("train", slice(40)), ("test", slice(40, 64)))}


def classifier(scale: float = 1.0) -> ImageClassifier:
    encoder = ImageEncoder(PerceptronConfig(image_size=4, hidden_sizes=(6, 4)), seed=1)
    encoder.load({name: value * scale for name, value in encoder.state().items()})
    return ImageClassifier(encoder, Head(torch.randn(2, 4, generator=torch.manual_seed(0)), torch.zeros(2), CLASSES))


def test_a_view_without_labels_is_taken_and_one_of_dev_is_marked_transductive() -> None:
    data, model = ImageData.of("bright", CLASSES, **bright()), classifier()
    base, experts = model.encoder.state(), {"bright": classifier(1.5).encoder.state()}

    def adapted(examples: Any) -> Learned:
        return atlas_adaptation(base, experts, {"bright": model}, {"bright": examples}, steps=3, threshold=0.5, batch=8)

    view = adapted(data.view("unlabelled"))
    assert view.facts["transductive"] == [] and not any("transductive" in notice for notice in view.notices)
    for same in (list(data.examples("train").images), data.examples("train").pairs()):
        assert torch.equal(adapted(same).values, view.values)
    stamped = adapted(data.view("unlabelled", of="test"))
    assert stamped.facts["transductive"] == ["bright"] and "transductive" in stamped.notices[-1]


def test_tuning_writes_a_recipe_whose_merge_is_the_learners_model(tmp_path: Path) -> None:
    parts = {
        f"{split}_{axis}": part for split, found in bright().items() for axis, part in zip("xy", found, strict=True)
    }
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data/data.npz", classes=np.array(CLASSES), **parts)
    for name, scale in (("base", 1.0), ("bright", 1.5), ("other", 0.5)):
        classifier(scale).save(tmp_path / name)
    recipe, out = tmp_path / "recipe.yml", tmp_path / "tuned.yml"
    recipe.write_text("version: 1\nmethod: task_arithmetic\nbase: base\nexperts: {bright: bright, other: other}\n")
    options = {"steps": 6, "every": 2, "batch": 8, "learning_rate": 0.05, "threshold": 0.6}
    tuned = tune_recipe(
        recipe, "atlas-adaptation", out, data={"bright": tmp_path / "data"}, examples=30, options=options
    )
    assert tuned.facts["found"]["transductive"] == [] and tuned.facts["tasks"] == {"bright": 30}
    load_recipe(out).run(tmp_path / "merged", progress=False)
    merged = load_image_encoder(tmp_path / "merged").state()
    pairs = ImageData.open(tmp_path / "data", size=4).view("train").pairs()
    again = atlas_adaptation(
        classifier().encoder.state(),
        {"bright": classifier(1.5).encoder.state(), "other": classifier(0.5).encoder.state()},
        {"bright": classifier(1.5)},
        {"bright": draw_some(pairs, 30, 0, "tune", "bright")},
        **options,
    ).state()
    for name, value in classifier().encoder.state().items():
        assert np.allclose(merged[name], again[name], atol=2e-6) and not torch.equal(merged[name], value)


def test_entropy_can_be_had(tasks: Tasks) -> None:
    found = run(tasks, objective="entropy")
    assert found.trace[-1]["loss"] < found.trace[1]["loss"]


def test_a_wrong_request_is_refused_with_everything_that_is_wrong(tasks: Tasks) -> None:
    with pytest.raises(RequestError, match=r"(?s)no inputs.*objective 'x'.*threshold 1.5"):
        run(tasks, examples={"red": [], "blue": points(2)}, objective="x", threshold=1.5)
    with pytest.raises(RequestError, match="NaN"):
        run(tasks, examples={"red": [(np.full(6, np.nan, np.float32), 0)], "blue": points(2)})
    with pytest.raises(RequestError, match="augment"):
        augmented(3, np.random.default_rng(0))


def test_other_views_of_images_and_texts() -> None:
    image = np.arange(256, dtype=np.float32).reshape(16, 16)
    found = [augmented(image, np.random.default_rng(seed)) for seed in range(8)]
    assert all(one.shape == image.shape and one.dtype == image.dtype for one in found)
    assert len({one.tobytes() for one in found}) == 8
    words = [f"word{place}" for place in range(200)]
    left = augmented(" ".join(words), np.random.default_rng(0)).split()
    assert 150 < len(left) < 190 and left == [word for word in words if word in left]
    assert augmented("word", np.random.default_rng(0)) == "word" and augmented("", np.random.default_rng(0)) == ""
