"""Routers: where inputs go, what "none of them" means, what is saved, and how a router is measured."""

import json

import numpy as np
import pytest

from consilience.bundles.routers.centroid import CentroidRouter, fit_centroids
from consilience.bundles.routers.classifier import fit_logistic
from consilience.bundles.routers.measuring import choose_threshold, report_routing, threshold_keeping
from consilience.bundles.routers.perceptron import fit_perceptron
from consilience.bundles.routers.pilots import PilotLibrary, PilotRouter
from consilience.bundles.routers.protocol import Routing, load_router, save_router
from consilience.errors import RequestError

NAMES = ("health", "law", "maths")
CENTRES = np.array([[3.0, 0, 0, 0, 1], [0, 3.0, 0, 0, 1], [0, 0, 3.0, 0, 1]])


def draw(count, seed, spread=0.5):
    """Inputs around three centres, with the name of each."""
    random = np.random.default_rng(seed)
    places = random.integers(0, 3, count)
    return CENTRES[places] + spread * random.normal(size=(count, 5)), [NAMES[place] for place in places]


def scores_of(labels, base=0.5):
    """An expert scores 0.9 on its own inputs and 0.3 on others; the base the same everywhere."""
    found = {name: np.array([0.9 if label == name else 0.3 for label in labels]) for name in NAMES}
    return {**found, "base": np.full(len(labels), base)}


def library():
    vectors, labels = draw(60, 0)
    scores = scores_of(labels)
    return PilotLibrary(vectors, tuple(labels), {name: scores[name] for name in NAMES})


def routers():
    vectors, labels = draw(60, 0)
    held = draw(30, 1)
    return {
        "pilots": library().router(similarity="cosine"),
        "pilots, max, k=3": library().router(3, rule="max"),
        "centroid": fit_centroids(vectors, labels),
        "centroid, soft": fit_centroids(vectors, labels, temperature=0.1),
        "logistic": fit_logistic(vectors, labels),
        "perceptron": fit_perceptron(vectors, labels, held, batch=16, epochs=12, learning_rate=5e-3),
    }


@pytest.mark.parametrize("name", list(routers()))
def test_every_router_finds_the_domain_and_the_outside(tmp_path, name):
    router = routers()[name]
    vectors, labels = draw(90, 2)
    routing = router.route(vectors)
    assert routing.names == (*NAMES, "base")
    assert np.allclose(routing.weights.sum(axis=1), 1) and (routing.weights >= 0).all()
    assert np.mean([a == b for a, b in zip(routing.chosen, labels, strict=True)]) > 0.95

    far = np.tile([0.05, 0.05, 0.05, 4.0, 0.1], (20, 1)) + 0.05 * np.random.default_rng(3).normal(size=(20, 5))
    mixed = np.concatenate([vectors, far])
    scores = scores_of([*labels, *["cooking"] * 20])
    chosen = choose_threshold(router, mixed, scores)
    report = report_routing(chosen, mixed, scores, labels=[*labels, *["cooking"] * 20])
    plain = report_routing(router, mixed, scores, labels=[*labels, *["cooking"] * 20])
    assert plain.routed <= report.routed <= report.oracle
    assert report.regret == pytest.approx(report.oracle - report.routed)
    assert report.base == pytest.approx(0.5) and report.random < report.best_single
    if name not in ("logistic", "perceptron"):  # a linear rule is sure of itself far away, too
        assert report.label_accuracy > 0.95 and report.to_base > 0.1

    save_router(chosen, tmp_path / "router")
    again = load_router(tmp_path / "router")
    assert again.threshold == chosen.threshold and again.kind == chosen.kind
    assert again.route(mixed).weights.tobytes() == chosen.route(mixed).weights.tobytes()
    assert sorted(path.name for path in (tmp_path / "router").iterdir()) == ["router.json", "router.safetensors"]
    assert again.operations > 0 and len(report.rows()) == 11


def test_a_threshold_keeps_a_share_of_the_own_domains():
    vectors, labels = draw(200, 4)
    router = threshold_keeping(fit_centroids(vectors, labels), vectors, 0.9)
    to_base = np.mean([name == "base" for name in router.route(vectors).chosen])
    assert 0.08 <= to_base <= 0.1
    everything = router.with_threshold(np.inf).route(vectors)
    assert set(everything.chosen) == {"base"} and (everything.weights[:, -1] == 1).all()
    assert everything.entropy.max() == 0


def test_the_base_can_be_a_label():
    vectors, labels = draw(60, 0)
    outside = np.tile([0, 0, 0, 3.0, 1], (20, 1)) + 0.3 * np.random.default_rng(5).normal(size=(20, 5))
    both, named = np.concatenate([vectors, outside]), [*labels, *["base"] * 20]
    for router in (
        fit_centroids(both, named),
        fit_logistic(both, named),
        fit_perceptron(both, named, (both, named), batch=16, epochs=12, learning_rate=5e-3),
    ):
        assert router.experts == NAMES
        assert np.mean([name == "base" for name in router.route(outside).chosen]) > 0.95
    scores = scores_of(named)
    found = PilotLibrary(both, tuple(named), scores).router(similarity="cosine")
    assert "base" in found.owners and set(found.route(outside).chosen) == {"base"}


def test_pilots_label_by_the_best_expert_and_ties_go_to_the_first():
    vectors = np.array([[1.0, 0], [0, 1.0], [1.0, 1.0], [2.0, 0]])
    scores = {"b": np.array([0.5, 0.1, 0.4, 0.2]), "a": np.array([0.5, 0.9, 0.4, 0.8])}
    found = PilotLibrary(vectors, ("x", "x", "x", "y"), scores)
    assert found.labels() == ["b", "a", "b", "a"]
    assert found.labels("drop") == [None, "a", None, "a"]
    router = found.router()
    assert router.owners == ("b", "a", "a") and router.experts == ("b", "a")
    assert router.pilots.tolist() == [[1.0, 0.5], [0, 1.0], [2.0, 0.0]]
    assert len(found.router(tie="drop", k=5).pilots) == 2
    # the mean of the two pilots of a is (1, 0.5) . x, as b's; the nearest one is not
    assert router.route(np.array([[0.0, 1.0]])).chosen == ("b",)
    assert found.router(rule="max").route(np.array([[0.0, 1.0]])).chosen == ("a",)
    with pytest.raises(RequestError, match="every input was left out"):
        PilotLibrary(vectors, ("x",) * 4, {"a": np.ones(4), "b": np.ones(4)}).router(tie="drop")


def test_experts_come_and_go_without_training(tmp_path):
    whole = library()
    vectors, labels = draw(60, 6)
    part = whole.without("maths")
    again = part.with_expert("maths", whole.scores["maths"])
    assert part.experts == ("health", "law")
    assert again.router().route(vectors).chosen == whole.router().route(vectors).chosen
    assert set(part.router().route(vectors).chosen) == {"health", "law"}
    cheap = whole.router(similarity="cosine").without("maths")
    kept = [row for row, label in enumerate(labels) if label != "maths"]
    assert "maths" not in cheap.owners
    assert [cheap.route(vectors).chosen[row] for row in kept] == [labels[row] for row in kept]
    whole.save(tmp_path / "library")
    opened = PilotLibrary.open(tmp_path / "library")
    assert opened.datasets == whole.datasets and opened.experts == whole.experts
    assert np.abs(opened.router().pilots - whole.router().pilots).max() < 1e-6
    with pytest.raises(RequestError, match="'law' is there already"):
        whole.with_expert("law", whole.scores["law"])
    with pytest.raises(RequestError, match="no expert 'laws'; did you mean 'law'"):
        whole.without("laws")


def test_pilots_warn_of_silent_experts_and_long_pilots():
    with pytest.warns(UserWarning, match="no pilot belongs to law: never chosen"):
        router = PilotRouter(np.eye(2), ["health", "health"], ["health", "law"])
    assert set(router.route(np.random.default_rng(0).normal(size=(9, 2))).chosen) == {"health"}
    with pytest.warns(UserWarning, match=r"4\.0 times as long"):
        PilotRouter(np.array([[4.0, 0], [0, 1.0]]), ["health", "law"], ["health", "law"])


def test_what_a_router_cannot_take_is_refused():
    router = CentroidRouter(np.eye(3), NAMES)
    with pytest.raises(RequestError, match=r"shape \[2, 4\], expected \(inputs, 3\)"):
        router.route(np.zeros((2, 4)))
    with pytest.raises(RequestError, match="input 1 is all zeros"):
        router.route(np.array([[1.0, 0, 0], [0, 0, 0]]))
    with pytest.raises(RequestError, match="input 0 holds NaN"):
        router.route(np.array([[np.nan, 0, 0]]))
    with pytest.raises(RequestError, match="'laws', which is no expert here; did you mean 'law'"):
        PilotRouter(np.eye(2), ["laws", "law"], ["law"])
    with pytest.raises(RequestError, match="pilot 1 is a vector of zeros"):
        PilotRouter(np.array([[1.0, 0], [0, 0]]), ["law", "law"], ["law"])
    with pytest.raises(RequestError, match="2 inputs with 1 labels"):
        fit_logistic(np.eye(2), ["law"])
    with pytest.raises(RequestError, match="every label is 'base'"):
        fit_logistic(np.eye(2), ["base", "base"])
    with pytest.raises(RequestError, match=r"\['tax'\] unknown"):
        fit_perceptron(np.eye(2), ["law", "health"], (np.eye(2), ["law", "tax"]))
    with pytest.raises(RequestError, match="temperature 0 is not above 0"):
        fit_centroids(np.eye(2), ["law", "health"], temperature=0)
    with pytest.raises(RequestError, match="scores of 'law': NaN"):
        PilotLibrary(np.eye(2), ("x", "y"), {"law": np.array([np.nan, 1.0])})
    with pytest.raises(RequestError, match="missing"):
        report_routing(router, np.eye(3), {"law": np.ones(3)})


def test_damaged_and_foreign_routers_are_refused(tmp_path):
    router = CentroidRouter(np.eye(3), NAMES)
    save_router(router, tmp_path / "router")
    path = tmp_path / "router/router.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(RequestError, match="'centroids' is not as it was written"):
        load_router(tmp_path / "router")
    record = json.loads((tmp_path / "router/router.json").read_text())
    (tmp_path / "router/router.json").write_text(json.dumps({**record, "kind": "oracle"}))
    with pytest.raises(RequestError, match="router 'oracle' is unknown"):
        load_router(tmp_path / "router")


def test_the_same_seed_gives_the_same_perceptron():
    vectors, labels = draw(40, 0)
    made = [fit_perceptron(vectors, labels, (vectors, labels), batch=8, epochs=3, seed=s) for s in (1, 1, 2)]
    states = [b"".join(array.tobytes() for array in router.arrays().values()) for router in made]
    assert states[0] == states[1] != states[2]


def test_one_expert_and_the_confidence_by_entropy():
    vectors, labels = draw(40, 0)
    alone = fit_logistic(vectors, ["law"] * 40)
    assert set(alone.route(vectors).chosen) == {"law"}
    router = fit_logistic(vectors, labels, measure="entropy")
    sure, unsure = router.confidence(CENTRES).min(), router.confidence(CENTRES.mean(axis=0)[None])[0]
    assert 0 <= unsure < sure <= 1
    assert Routing(("a", "base"), np.array([[0.5, 0.5]])).entropy[0] == pytest.approx(np.log(2))
