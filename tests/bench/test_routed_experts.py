"""The families behind the routing experiments: bundles of image encoders, and query-side adapters."""

import numpy as np

from consilience.bench.experiments import Workbench
from consilience.bench.experiments.images import DigitViews
from consilience.bench.experiments.routed_images import RoutedImages
from consilience.bundles.creation import create_bundle
from consilience.checkpoints.open import open_checkpoint
from consilience.models import load_encoder
from consilience.training.query_side import QueryTraining, train_query_adapter
from tests.bundles.models import word_data
from tests.models.tiny import write_bert


def test_images_are_scored_under_weights_of_their_own(tmp_path):
    family = DigitViews("strong", base_steps=10, expert_steps=15)
    bench = Workbench(family, cache=tmp_path / "cache", tasks=("upright", "inverted"))
    options = {"shared": "task_arithmetic", "parameters": {"lambda": 0.3}}
    bundle = create_bundle(tmp_path / "bundle", bench.base, bench.experts, density=1.0, **options)
    routed = RoutedImages(family, bundle)
    vectors, labels = routed.features(bench.tasks, "dev")
    assert vectors.shape == (400, 48) and labels == ["upright"] * 200 + ["inverted"] * 200
    own = np.array([[float(name == label) for name in bundle.experts] for label in labels])
    found = routed.scores(bench.tasks, "dev", own)
    wanted = bench.expert_scores(split="dev")
    assert all(np.abs(found.by_example[t] - wanted.by_example[t]).sum() <= 1 for t in bench.tasks)
    weights = np.random.default_rng(0).dirichlet([1, 1], size=9)
    images = family.sets["upright"].examples("dev").images[:9]
    assert (routed.mixed(images, weights) - routed.dense(images, weights)).abs().max() <= 1e-4
    base = routed.scores(bench.tasks, "dev", np.zeros((400, 2)))
    assert np.array_equal(base.by_example["upright"], family.scores(bundle.state("base"), "upright", "dev"))


def test_a_query_adapter_learns_and_leaves_the_documents(tmp_path):
    write_bert(tmp_path / "base", seed=0)
    base, settings = str(tmp_path / "base"), QueryTraining(steps=12, batch=6, rank=2, alpha=4, learning_rate=1e-2)
    data = [word_data("odd")]
    losses = train_query_adapter(base, data, tmp_path / "a", settings, seed=1)
    again = train_query_adapter(base, data, tmp_path / "b", settings, seed=1)
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1
    assert losses == again
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    train_query_adapter(base, [*data, word_data("even")], tmp_path / "both", settings)
    bundle = create_bundle(
        tmp_path / "bundle", base, {"odd": str(tmp_path / "a"), "both": str(tmp_path / "both")}, residual="adapter"
    )
    texts = ["w1 w2 w3", "w7"]
    expert = load_encoder(open_checkpoint(f"{base}+{tmp_path / 'a'}")).encode(texts)
    assert np.abs(bundle.encoder.encode(texts, expert="odd") - expert).max() < 1e-5
    assert np.abs(bundle.encode_documents(texts) - load_encoder(base).encode(texts)).max() < 1e-6
    assert np.abs(expert - bundle.encode_documents(texts)).max() > 1e-3
