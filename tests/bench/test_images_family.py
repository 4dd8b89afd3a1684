"""Families of image classifiers: what a seed decides, what experts keep, which sets are held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from consilience.bench.experiments import Workbench
from consilience.bench.experiments.artefacts import Runnable, gather_artefacts
from consilience.bench.experiments.images import DigitViews, Letters
from consilience.data.images import ImageData, LabelledImages, digits, image_set, resized
from consilience.data.reserved import default_data_folder
from consilience.errors import DataError, LeakageError, RequestError
from consilience.models.image import ImageEncoder
from consilience.models.image_network import PerceptronConfig
from consilience.training.images import ImageTraining, centroid_head, fit_image_head, new_head, train_images

SHORT = {"base_steps": 3, "expert_steps": 3}
public_data = pytest.mark.skipif(
    not (default_data_folder() / "vision/mnist/data.npz").is_file(), reason="CONSILIENCE_DATA: no public data here"
)


def write_set(folder: Path, *, shape: tuple[int, ...] = (6, 6), classes: int = 3, per_class: int = 10) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    labels = np.repeat(np.arange(classes), per_class).astype(np.uint8)
    pixels = {split: random.integers(0, 256, (len(labels), *shape), dtype=np.uint8) for split in ("train", "test")}
    pixels["train"][0] = pixels["test"][0]
    named = {f"{split}_x": pixels[split] for split in pixels} | {"train_y": labels, "test_y": labels}
    np.savez(folder / "data.npz", classes=np.array([f"c{index}" for index in range(classes)]), **named)
    return folder


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    one, same, other = (DigitViews("mild", **SHORT).expert("rotated", seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])


def test_an_expert_differs_from_its_base_in_the_network_only():
    family = DigitViews("strong", **SHORT)
    base, expert = family.base(0), family.expert("upright", 0)
    changed = {name for name in base if not torch.equal(base[name], expert[name])}
    assert changed == {f"layers.{layer}.{part}" for layer in range(3) for part in ("weight", "bias")}
    assert sum(base[name].numel() for name in changed) == 64 * 96 + 96 * 96 + 96 * 48 + 96 + 96 + 48
    assert sorted(set(base) - changed) == sorted(
        f"heads.{task}.{p}" for task in family.tasks for p in ("weight", "bias")
    )


def test_the_views_are_those_of_the_benchmark():
    family = DigitViews("mild")
    views = {task: data.examples("test").images[0] for task, data in family.sets.items()}
    upright = views["upright"]
    assert np.array_equal(views["rotated"], np.rot90(upright))
    assert np.allclose(views["inverted"], 1 - upright)
    assert np.array_equal(views["mirrored_rolled"], np.roll(np.fliplr(upright), 2, axis=0))
    assert {split: len(part) for split, part in digits().splits.items()} == {"train": 1000, "dev": 200, "test": 597}


def test_settings_tell_families_apart_that_train_differently():
    mild, strong, short = (
        Workbench(family).folder for family in (DigitViews("mild"), DigitViews("strong"), DigitViews("mild", **SHORT))
    )
    assert len({mild, strong, short}) == 3


def test_training_raises_the_score_of_the_task_it_is_on(tmp_path: Path):
    bench = Workbench(DigitViews("strong", base_steps=20, expert_steps=60), cache=tmp_path, tasks=["upright"])
    assert bench.expert_scores().mean > bench.base_scores(tasks=["upright"]).mean + 0.1


def test_statistics_are_gathered_once_and_feed_a_merge(tmp_path: Path):
    family = DigitViews("mild", **SHORT)
    assert isinstance(family, Runnable)
    bench = Workbench(family, cache=tmp_path, tasks=["upright", "inverted"])
    found = gather_artefacts(bench, ("fisher", "gram", "activation"), examples=8)
    again = gather_artefacts(bench, ("fisher", "gram", "activation"), examples=8)
    gram = found.aux["gram"]["upright"]["layers.0.weight"]
    assert gram.shape == (64, 64) and torch.equal(gram, again.aux["gram"]["upright"]["layers.0.weight"])
    assert found.aux["activation"]["layers.1.weight"].shape == (96,)
    merged = bench.merge("fisher", aux={"fisher": found.aux["fisher"]})
    assert not torch.equal(merged["layers.0.weight"], bench.merge("linear")["layers.0.weight"])


def test_unknown_names_are_refused():
    with pytest.raises(RequestError, match="setting 'wild' is unknown"):
        DigitViews("wild")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="sizes are small, medium, large"):
        Letters("tiny")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="nothing is trained on 'upside'"):
        DigitViews("mild", **SHORT).multitask(["upside"], 0)


@public_data
def test_held_out_sets_are_measured_and_never_trained_on():
    family = Letters("small", "strong", dev=20, test=30)
    trained = {source for name, source in family.sources.items() if name not in family.held_out}
    assert not trained & {family.sources[task] for task in family.held_out}
    assert "greek" not in Letters("small", "weak").sources
    state = ImageEncoder(family.config, seed=0).state()
    scores = family.scores(state, "digits", "test")
    assert scores.shape == (30,) and scores.mean() > 2 * family.chance("digits")
    with pytest.raises(RequestError, match="nothing is trained on 'digits'"):
        family.expert("digits", 0)
    assert family.sets["kannada_inverted"].examples("dev").images.shape == (20, 28, 28)


def test_a_folder_is_read_with_dev_from_train_and_without_test_images_in_train(tmp_path: Path):
    data = ImageData.open(write_set(tmp_path / "toy"), size=12, dev=0.2)
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 24, "dev": 5, "test": 30}
    assert data.dropped == {"train": 0, "dev": 1} and data.classes == ("c0", "c1", "c2")
    assert data.examples("train").images.shape[1:] == (12, 12)
    again = ImageData.open(tmp_path / "toy", size=12, dev=0.2)
    assert again.content_hash == data.content_hash != ImageData.open(tmp_path / "toy", size=12).content_hash


def test_colour_becomes_grey_and_classes_can_be_chosen(tmp_path: Path):
    data = ImageData.open(write_set(tmp_path / "colour", shape=(4, 4, 3)))
    assert data.examples("test").images.shape == (30, 4, 4)
    two = data.only("two", [2, 0])
    assert two.classes == ("c2", "c0") and set(two.examples("train").known_labels) == {0, 1}
    assert np.array_equal(
        two.examples("test").images[two.examples("test").known_labels == 0],
        data.examples("test").images[data.examples("test").known_labels == 2],
    )


def test_learners_see_no_test_images_and_no_labels_of_unlabelled_ones(tmp_path: Path):
    data = ImageData.open(write_set(tmp_path / "toy"))
    with pytest.raises(LeakageError, match="asked for the split 'test'"):
        data.view("test")
    hidden = data.view("unlabelled", of="dev")
    assert hidden.labels is None and hidden.transductive
    with pytest.raises(LeakageError, match="have no labels"):
        hidden.pairs()


def test_bad_folders_and_bad_numbers_are_named(tmp_path: Path):
    with pytest.raises(DataError, match="CONSILIENCE_DATA"):
        ImageData.open(tmp_path / "absent")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/data.npz").write_bytes(b"no zip")
    with pytest.raises(DataError, match="not a readable npz file"):
        ImageData.open(tmp_path / "broken")
    (tmp_path / "short").mkdir()
    np.savez(tmp_path / "short/data.npz", train_x=np.zeros(1))
    with pytest.raises(DataError, match="no array train_y, test_x, test_y, classes; it has train_x"):
        ImageData.open(tmp_path / "short")
    wrong = (np.full((2, 3, 3), 255.0, np.float32), [0, 7])
    with pytest.raises(DataError, match=r"(?s)numbers from 255 to 255.*labels from 0 to 7"):
        ImageData.of("wrong", ("a", "b"), train=wrong, test=wrong)


@public_data
def test_alphabets_are_sets_of_their_own():
    greek = image_set("omniglot_small1/Greek")
    assert len(greek.classes) == 24 and greek.classes[0].startswith("Greek/")
    with pytest.raises(DataError, match="no alphabet 'Greec'; did you mean 'Greek'"):
        image_set("omniglot_small1/Greec")


def test_shots_are_as_many_of_each_class(tmp_path: Path):
    train = ImageData.open(write_set(tmp_path / "toy")).examples("train")
    assert np.bincount(train.shots(4).known_labels).tolist() == [4, 4, 4]
    assert np.array_equal(train.shots(4).images, train.shots(4).images)


@pytest.mark.parametrize("size", [3, 8, 13])
def test_resizing_keeps_constants_and_the_range(size: int):
    flat = resized(np.full((1, 8, 8), 0.25, np.float32), size)
    assert flat.shape == (1, size, size) and np.allclose(flat, 0.25)
    noise = resized(np.random.default_rng(0).random((2, 8, 8), dtype=np.float32), size)
    assert noise.min() >= 0 and noise.max() <= 1


def test_heads_centroids_know_their_own_images_and_absent_classes_are_never_found():
    encoder = ImageEncoder(PerceptronConfig(image_size=2, hidden_sizes=(8,)), seed=1)
    dark, bright = np.float32([[[1, 0], [0, 0]]]), np.float32([[[0, 0], [0, 1]]])
    few = LabelledImages("two", "train", np.concatenate([dark, bright]), np.array([0, 2]))
    head = centroid_head(encoder, few, ("a", "b", "c"))
    scores = encoder.encode(few.images) @ head.weight.T + head.bias
    assert scores.argmax(dim=1).tolist() == [0, 2] and torch.isneginf(scores[:, 1]).all()
    fitted = fit_image_head(encoder, few, ("a", "b", "c"))
    assert (encoder.encode(few.images) @ fitted.weight.T + fitted.bias).argmax(dim=1).tolist() == [0, 2]


def test_heads_are_trained_only_when_asked():
    data = digits()
    part = data.view("train").take(range(20))
    encoder = ImageEncoder(PerceptronConfig(image_size=8, hidden_sizes=(8,)))
    head = new_head(8, data.classes)
    settings = ImageTraining(steps=2, learning_rate=0.01, batch=64)
    kept = train_images(encoder, {"d": part}, {"d": head}, settings)
    assert kept["d"] is head
    trained = train_images(encoder, {"d": part}, {"d": head}, settings, train_heads=True)
    assert not torch.equal(trained["d"].weight, head.weight) and torch.equal(trained["d"].bias, head.bias)
    with pytest.raises(RequestError, match="give every set its head"):
        train_images(encoder, {"d": part}, {}, settings)
