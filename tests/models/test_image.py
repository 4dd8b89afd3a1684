"""Image encoders and classifiers: checkpoints that merge, substituted parameters, statistics of every layer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from consilience.bench.experiments import Workbench
from consilience.bench.experiments.images import DigitViews
from consilience.checkpoints import open_checkpoint
from consilience.errors import OutputError, RequestError
from consilience.merging.recipe import load_recipe
from consilience.models.classifier import Head
from consilience.models.image import (
    ImageClassifier,
    ImageEncoder,
    load_image_classifier,
    load_image_encoder,
)
from consilience.models.image_network import PerceptronConfig, TransformerConfig, build_network, config_of
from consilience.tuning import gather_statistics

PERCEPTRON = PerceptronConfig(image_size=8, hidden_sizes=(6, 5))
TRANSFORMER = TransformerConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
CONFIGS = pytest.mark.parametrize("config", [PERCEPTRON, TRANSFORMER], ids=["perceptron", "transformer"])


def images(count: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).random((count, size, size), dtype=np.float32)


def classifier(config: PerceptronConfig | TransformerConfig, seed: int = 0) -> ImageClassifier:
    head = Head(
        torch.randn(3, config.dimension, generator=torch.Generator().manual_seed(5)), torch.zeros(3), tuple("abc")
    )
    return ImageClassifier(ImageEncoder(config, seed=seed), head)


@CONFIGS
def test_a_saved_classifier_predicts_the_same_bits_when_it_is_opened(config, tmp_path: Path):
    model = classifier(config)
    opened = load_image_classifier(model.save(tmp_path / "model"))
    batch = next(model.batches([(image, 0) for image in images(4)], 4))
    assert torch.equal(opened.logits(batch), model.logits(batch))
    assert opened.head.labels == ("a", "b", "c") and opened.name == "model"
    assert json.loads((tmp_path / "model/config.json").read_text())["model_type"] == config.model_type
    with pytest.raises(OutputError, match="not an empty folder"):
        model.save(tmp_path / "model")


@CONFIGS
def test_folders_merge_by_a_recipe_and_open_as_an_encoder(config, tmp_path: Path):
    for name, seed in (("base", 0), ("one", 1), ("two", 2)):
        classifier(config, seed).encoder.save(tmp_path / name)
    recipe = tmp_path / "merge.yml"
    content = {"version": 1, "method": "task_arithmetic", "base": "base", "parameters": {"weight": 0.5}}
    recipe.write_text(yaml.safe_dump({**content, "experts": {"one": "one", "two": "two"}}))
    load_recipe(recipe).run(tmp_path / "merged", progress=False)
    merged = load_image_encoder(tmp_path / "merged")
    states = [load_image_encoder(tmp_path / name).state() for name in ("one", "two")]
    for name, value in merged.state().items():
        assert torch.allclose(value, (states[0][name] + states[1][name]) / 2, atol=1e-6), name
    assert open_checkpoint(tmp_path / "merged").parameters == sum(value.numel() for value in states[0].values())


@CONFIGS
def test_initial_weights_depend_on_the_seed_and_leave_the_global_generator_alone(config):
    before = torch.random.get_rng_state()
    one, same, other = (dict(build_network(config, seed=seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(before, torch.random.get_rng_state())


@CONFIGS
def test_substituted_parameters_give_the_logits_of_a_model_that_has_them(config):
    first, second = classifier(config, 0), classifier(config, 1)
    batch = next(first.batches([(image, 1) for image in images(3)], 3))
    given = {name: value.requires_grad_() for name, value in second.encoder.state().items()}
    assert torch.allclose(first.logits(batch, given), second.logits(batch), atol=1e-6)
    first.loss(batch, given).backward()
    assert all(value.grad is not None for value in given.values())
    losses = first.loss(batch, reduction="none")
    assert losses.shape == (3,) and torch.isclose(losses.mean(), first.loss(batch))


@CONFIGS
def test_statistics_cover_every_linear_layer_and_every_parameter(config, tmp_path: Path):
    model = classifier(config)
    examples = [(image, index % 3) for index, image in enumerate(images(5))]
    kinds = ("fisher", "gram", "activation")
    record = gather_statistics(model, examples, tmp_path / "statistics", kinds=kinds, batch=2, progress=False)
    linear = sum(isinstance(module, torch.nn.Linear) for module in model.module.modules())
    assert record["files"]["gram.safetensors"]["tensors"] == linear
    assert record["files"]["fisher.safetensors"]["tensors"] == len(model.names)


def test_what_does_not_fit_is_refused_with_the_reason():
    encoder = ImageEncoder(PERCEPTRON)
    with pytest.raises(RequestError, match=r"images \[2, 9, 9\], but it takes \(n, 8, 8\)"):
        encoder.encode(images(2, 9))
    with pytest.raises(RequestError, match=r"no parameter is named 'layers.0.wieght'; did you mean 'layers.0.weight'"):
        encoder.load({"layers.0.wieght": torch.zeros(6, 64)})
    with pytest.raises(RequestError, match=r"layers.0.weight has shape \[6, 64\], not \[64, 6\]"):
        encoder.load({"layers.0.weight": torch.zeros(64, 6)})
    with pytest.raises(RequestError, match=r"the state lacks layers.1.bias"):
        ImageEncoder(PERCEPTRON, {name: v for name, v in encoder.state().items() if name != "layers.1.bias"})
    with pytest.raises(RequestError, match=r"need \[2, 5\] and \[2\]"):
        ImageClassifier(encoder, Head(torch.zeros(2, 6), torch.zeros(2), ("a", "b")))
    with pytest.raises(RequestError, match="model_type 'bert' is no image network"):
        config_of({"model_type": "bert"})
    with pytest.raises(RequestError, match="whole number of patches"):
        config_of({"model_type": "image_transformer", "image_size": 28, "patch_size": 5})


def test_heads_ride_in_states_as_bits_and_are_never_changed_by_a_merge(tmp_path: Path):
    family = DigitViews("mild", base_steps=2, expert_steps=2)
    bench = Workbench(family, seed=3, cache=tmp_path, tasks=["upright", "inverted"])
    for method in ("task_arithmetic", "tsv", "ties"):
        merged = bench.merge(method)
        for name in bench.base:
            assert torch.equal(merged[name], bench.base[name]) == name.startswith("heads."), (method, name)
    head = family.head(bench.base, "upright")
    assert head.weight.dtype == torch.float32 and head.weight.shape == (10, 48)
