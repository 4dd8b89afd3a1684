"""Routers from suites: what is scored, what a router may see, and a bundle measured like any other model."""

import numpy as np
import pytest

from consilience.bench import evaluate
from consilience.bench.routing import AVERAGES, fit_domain_router, fit_router, gather_routing, measure_router
from consilience.bundles.creation import create_bundle
from consilience.bundles.encoding import BundleEncoder
from consilience.bundles.routers.protocol import Routing
from consilience.data import Suite
from consilience.data.suite import Domain
from consilience.errors import DataError, LeakageError, RequestError
from consilience.models import load_encoder
from tests.bundles.models import word_data
from tests.models.tiny import write_bert

NAMES = ("odd", "even", "any")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("routing")
    for seed, name in enumerate(("base", "odd", "even")):
        write_bert(folder / name, seed=seed)
    return folder


@pytest.fixture(scope="module")
def suite():
    return Suite("words", {name: Domain(word_data(name)) for name in NAMES}, max_tokens=12)


@pytest.fixture(scope="module")
def bundle(place):
    experts = {name: str(place / name) for name in ("odd", "even")}
    return create_bundle(place / "bundle", str(place / "base"), experts, residual="low_rank", rank=3)


@pytest.fixture(scope="module")
def gathered(bundle, suite):
    return {split: gather_routing(bundle, suite, split, progress=False) for split in ("train", "dev", "test")}


def test_every_model_is_scored_on_every_query(bundle, suite, gathered, place, tmp_path):
    test = gathered["test"]
    assert test.domains == tuple(name for name in NAMES for _ in range(6))
    assert test.labels() == ["odd"] * 6 + ["even"] * 6 + ["base"] * 6
    assert list(test.scores) == ["even", "odd", "base"]
    alone = evaluate(suite, {"base": str(place / "base")}, base="base", experts=[], progress=False)
    found = np.concatenate([alone.rows[0].scores[name] for name in NAMES])
    assert np.allclose(test.scores["base"], found, atol=1e-6)
    again = gather_routing(bundle, suite, "test", cache=tmp_path / "vectors", progress=False)
    assert len(list((tmp_path / "vectors").iterdir())) == 3
    assert all(np.array_equal(again.scores[name], test.scores[name]) for name in test.scores)
    fewer = gather_routing(bundle, suite, "test", queries=2, average=("odd", "even"), progress=False)
    assert list(fewer.scores)[3:] == list(AVERAGES)
    texts = [text for name in NAMES for text in suite.evaluation_set(name).queries[:2]]
    mixed = load_encoder(place / "base")
    state = bundle.mix({"odd": 0.5, "even": 0.5})
    vectors = mixed.encode(texts, parameters={n: state[n] for n in mixed.parameters()})
    found = BundleEncoder(bundle).encode(
        texts, routing=Routing(("even", "odd", "base"), np.tile([0.5, 0.5, 0], (6, 1)))
    )
    assert np.abs(found - vectors).max() < 1e-5
    assert np.array_equal(fewer.by_domain(fewer.scores["odd"])["even"], test.by_domain(test.scores["odd"])["even"][:2])


@pytest.mark.parametrize("kind", ["pilots", "centroid", "logistic", "perceptron"])
def test_every_kind_is_made_and_measured(bundle, gathered, kind):
    router = fit_router(bundle, kind, gathered["train"], gathered["dev"])
    assert router.kind == kind and set(router.experts) == {"odd", "even"}
    dev, plain = gathered["dev"], router.with_threshold(None)
    assert dev.routed(router).mean() >= max(dev.routed(plain).mean(), dev.scores["base"].mean()) - 1e-9
    report = measure_router(router, gathered["test"])
    assert report.inputs == 18 and 0 <= report.label_accuracy <= 1
    assert report.routed == pytest.approx(gathered["test"].routed(router).mean())
    assert report.regret >= 0


def test_test_queries_make_no_router(bundle, gathered):
    with pytest.raises(LeakageError, match="test split is for measuring"):
        fit_router(bundle, "pilots", gathered["test"])
    with pytest.raises(LeakageError):
        fit_router(bundle, "pilots", gathered["train"], gathered["test"])
    with pytest.raises(DataError, match="no domain"):
        fit_router(bundle, "centroid", gathered["train"].take(["any"]))
    with pytest.raises(RequestError, match="'oracle' is unknown"):
        fit_router(bundle, "oracle", gathered["train"])


def test_a_bundle_is_measured_like_any_other_model(bundle, suite, gathered, place):
    routed = bundle.set_router(fit_router(bundle, "centroid", gathered["train"], gathered["dev"]))
    encoder = BundleEncoder(routed, max_tokens=12)
    done = evaluate(suite, {"base": str(place / "base"), "bundle": encoder}, base="base", experts=[], progress=False)
    row = next(row for row in done.rows if row.name == "bundle")
    found = np.concatenate([row.scores[name] for name in NAMES])
    assert np.allclose(found, gathered["test"].routed(routed.router), atol=1e-6)


def test_experts_with_spaces_of_their_own_search_their_own_documents(place, suite):
    experts = {name: str(place / name) for name in ("odd", "even")}
    bundle = create_bundle(place / "both", str(place / "base"), experts, residual="low_rank", density=1, encodes="both")
    found = gather_routing(bundle, suite, "test", progress=False)
    alone = evaluate(suite, {"odd": str(place / "odd")}, base="odd", experts=[], progress=False)
    assert np.allclose(found.scores["odd"], np.concatenate([alone.rows[0].scores[n] for n in NAMES]), atol=1e-6)


def test_a_bundle_of_several_spaces_searches_where_its_router_says(place, suite, tmp_path):
    experts = {name: str(place / name) for name in ("odd", "even")}
    options = {"residual": "low_rank", "rank": 3, "encodes": "both"}
    both = create_bundle(tmp_path / "both", str(place / "base"), experts, **options)
    router = fit_domain_router(both, suite, "centroid", queries=4, keep=0.8)
    with pytest.raises(RequestError, match="has no router; make one with `consilience bundle route"):
        evaluate(suite, {"base": str(place / "base"), "routed": both}, progress=False)
    both = both.set_router(router)
    data = gather_routing(both, suite, "test", progress=False)
    models = {"base": str(place / "base"), "routed": str(both.folder)}
    found = evaluate(suite, models, cache=tmp_path / "vectors", progress=False)
    assert [row.kind for row in found.rows] == ["base", "bundle"]
    row = found.row("routed")
    expected = data.by_domain(data.routed(router))
    assert {name: row.scores[name] for name in NAMES} == {
        name: pytest.approx(values.tolist()) for name, values in expected.items()
    }
    assert set(router.route(data.features).chosen) >= {"odd", "even"}
    assert row.encoded > 0 and row.reference == str(both.folder) and "routed" in found.claim()
    again = evaluate(suite, models, cache=tmp_path / "vectors", progress=False)
    assert again.row("routed").encoded == 0 and again.row("routed").scores == row.scores
    with pytest.raises(RequestError, match="is a bundle; base and experts are single models"):
        evaluate(suite, {"base": both}, progress=False)
