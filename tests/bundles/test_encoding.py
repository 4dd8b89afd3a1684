"""A bundle as a text encoder: routed, mixed and batched, with one space of documents or several."""

import numpy as np
import pytest
import torch

from consilience.bundles.bundle import Bundle
from consilience.bundles.creation import create_bundle
from consilience.bundles.encoding import BundleEncoder
from consilience.bundles.routers.centroid import CentroidRouter
from consilience.bundles.routers.protocol import Routing
from consilience.checkpoints.open import open_checkpoint
from consilience.errors import RequestError
from consilience.models import load_encoder
from tests.bundles.models import save
from tests.models.tiny import write_bert

NAME = "encoder.layer.0.output.dense.weight"
TEXTS = [f"w{i} w{i * 7 % 190} w{i * 3 % 190}" + " w5" * (i % 5) for i in range(24)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and two experts near it, as plain transformer folders."""
    place = tmp_path_factory.mktemp("encoders")
    write_bert(place / "base", seed=0)
    base = load_encoder(place / "base")
    for seed, name in enumerate(("law", "health"), start=1):
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in base.parameters().values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
        base.save(place / name)
        base = load_encoder(place / "base")
    return place


def make(folders, out, encodes="query", **options):
    options = {"residual": "low_rank", "rank": 6, **options}
    experts = {name: str(folders / name) for name in ("law", "health")}
    return create_bundle(out, str(folders / "base"), experts, encodes=encodes, **options)


def routed(folders, out, **options):
    """A bundle with a router by the base's own vectors: two texts are the centroids."""
    bundle = make(folders, out, **options)
    centroids = bundle.encoder.shared.encode([TEXTS[0], TEXTS[1]])
    temperature = options.pop("temperature", None)
    return bundle.set_router(CentroidRouter(centroids, ["law", "health"], temperature=temperature, threshold=0.0))


def test_texts_go_to_their_experts_and_come_back_in_order(folders, tmp_path):
    bundle = routed(folders, tmp_path / "bundle", density=1.0, rank=None)
    chosen = bundle.route(TEXTS).chosen
    assert set(chosen) == {"law", "health"}
    vectors = bundle.encode(TEXTS)
    alone = {name: load_encoder(folders / name).encode(TEXTS) for name in ("law", "health")}
    for row, name in enumerate(chosen):
        assert np.abs(vectors[row] - alone[name][row]).max() < 1e-5
    assert np.abs(alone["law"] - alone["health"]).max() > 0.1
    assert np.abs(bundle.encoder.encode(TEXTS, expert="law") - alone["law"]).max() < 1e-5
    assert Bundle.open(tmp_path / "bundle").encode([]).shape == (0, 32)


def test_none_of_them_is_the_base(folders, tmp_path):
    bundle = routed(folders, tmp_path / "bundle")
    bundle = bundle.set_router(bundle.router.with_threshold(2.0))
    base = load_encoder(folders / "base").encode(TEXTS)
    assert set(bundle.route(TEXTS).chosen) == {"base"}
    assert np.abs(bundle.encode(TEXTS) - base).max() < 1e-6
    assert np.abs(bundle.encode_documents(TEXTS) - base).max() < 1e-6


@pytest.mark.parametrize("residual", ["low_rank", "masks"])
def test_mixed_weights_are_the_dense_merged_encoders(folders, tmp_path, residual):
    options = {"residual": residual, **({"rank": 6} if residual == "low_rank" else {"rank": None})}
    options = {key: value for key, value in options.items() if value is not None}
    experts = {name: str(folders / name) for name in ("law", "health")}
    bundle = create_bundle(tmp_path / "bundle", str(folders / "base"), experts, **options)
    draw = np.random.default_rng(0).dirichlet([1, 1, 1], size=len(TEXTS)).round(2)
    routing = Routing((*bundle.experts, "base"), draw)
    grouped = BundleEncoder(bundle, evaluation="grouped").encode(TEXTS, routing=routing)
    factored = BundleEncoder(bundle, evaluation="factored").encode(TEXTS, routing=routing)
    assert np.abs(grouped - factored).max() <= 1e-4
    for row in (0, 5, 11):
        state = bundle.mix(dict(zip(bundle.experts, draw[row], strict=False)))
        dense = load_encoder(folders / "base")
        vector = dense.encode([TEXTS[row]], parameters={n: state[n] for n in dense.parameters()})
        assert np.abs(vector[0] - factored[row]).max() <= 1e-4
    base = load_encoder(folders / "base").encode(TEXTS)
    assert np.abs(factored - base).max() > 0.01


def test_a_soft_router_mixes(folders, tmp_path):
    bundle = make(folders, tmp_path / "bundle")
    centroids = bundle.encoder.shared.encode([TEXTS[0], TEXTS[1]])
    bundle = bundle.set_router(CentroidRouter(centroids, ["law", "health"], temperature=0.5))
    routing = bundle.route(TEXTS)
    assert routing.names == ("health", "law", "base")  # in the bundle's order, not the router's
    assert routing.weights[:, :2].min() > 0.05
    wanted = BundleEncoder(bundle, evaluation="factored").encode(TEXTS)
    assert np.abs(bundle.encode(TEXTS) - wanted).max() < 0.02  # weights rounded to two decimals


def test_experts_that_encode_documents_have_spaces_of_their_own(folders, tmp_path):
    bundle = routed(folders, tmp_path / "bundle", encodes="both")
    assert bundle.encoder.spaces == ("health", "law", "base")
    with pytest.raises(RequestError, match="name one of health, law, base"):
        bundle.encode_documents(TEXTS)
    with pytest.raises(RequestError, match="no space 'laws'; did you mean 'law'"):
        bundle.encode_documents(TEXTS, space="laws")
    chosen = bundle.route(TEXTS).chosen  # the spaces to search
    queries = bundle.encode(TEXTS)
    for space in bundle.encoder.spaces:
        rows = [row for row, name in enumerate(chosen) if name == space]
        documents = bundle.encode_documents(TEXTS, space=space)
        if rows:
            assert np.abs(queries[rows] - documents[rows]).max() < 1e-5
    one = routed(folders, tmp_path / "one")
    assert one.encoder.spaces == ("base",)
    with pytest.raises(RequestError, match="no space 'law'"):
        one.encode_documents(TEXTS, space="law")


def test_documents_do_not_depend_on_which_experts_are_there(folders, tmp_path):
    both = make(folders, tmp_path / "both").encode_documents(TEXTS)
    fewer = create_bundle(tmp_path / "fewer", str(folders / "base"), {"law": str(folders / "law")}, rank=1)
    assert fewer.encode_documents(TEXTS).tobytes() == both.tobytes()


def test_identities_tell_experts_and_routers_apart(folders, tmp_path):
    bundle = routed(folders, tmp_path / "bundle")
    prints = {bundle.expert(name).fingerprint for name in bundle.experts} | {bundle.shared.fingerprint}
    assert len(prints) == 3
    first = bundle.encoder.fingerprint
    assert Bundle.open(tmp_path / "bundle").encoder.fingerprint == first
    assert bundle.set_router(bundle.router.with_threshold(0.5)).encoder.fingerprint != first


def test_an_expert_is_a_checkpoint_for_all_who_take_one(folders, tmp_path):
    bundle = make(folders, tmp_path / "bundle")
    direct = load_encoder(bundle.expert("law")).encode(TEXTS)
    written = load_encoder(bundle.expand("law", tmp_path / "law")).encode(TEXTS)
    assert np.abs(direct - written).max() < 1e-6
    assert np.abs(bundle.encoder.encode(TEXTS, expert="law") - direct).max() < 1e-5
    again = create_bundle(tmp_path / "again", str(folders / "base"), {"law": bundle.expert("law")}, density=1.0)
    assert all(torch.equal(value, bundle.state("law")[name]) for name, value in again.state("law").items())
    merged = create_bundle(tmp_path / "merged", str(folders / "base"), {"law": bundle.expert("law")}, shared="linear")
    assert torch.allclose(merged.state("base")[NAME], bundle.state("law")[NAME])
    assert open_checkpoint(tmp_path / "law").config["model_type"] == "bert"


def test_what_cannot_be_encoded_is_refused(folders, tmp_path):
    bundle = make(folders, tmp_path / "bundle")
    with pytest.raises(RequestError, match="has no router"):
        bundle.encode(TEXTS)
    with pytest.raises(RequestError, match="texts is one string"):
        bundle.encode("one text")
    with pytest.raises(RequestError, match="no expert 'laws'"):
        bundle.encoder.encode(TEXTS, expert="laws")
    with pytest.raises(RequestError, match="no expert 'tax'"):
        bundle.set_router(CentroidRouter(np.eye(32)[:2], ["law", "tax"]))
    with pytest.raises(RequestError, match="of 1 inputs, for 24 texts"):
        bundle.encoder.encode(TEXTS, routing=Routing(("health", "law", "base"), np.array([[1.0, 0, 0]])))
    wrong = bundle.set_router(CentroidRouter(np.eye(8)[:2], ["law", "health"]))
    with pytest.raises(RequestError, match=r"shape \[24, 32\], expected \(inputs, 8\)"):
        wrong.encode(TEXTS)
    vector = create_bundle(
        tmp_path / "plain", save(tmp_path / "p", {"w": torch.eye(3)}), {"a": {"w": torch.ones(3, 3)}}
    )
    with pytest.raises(RequestError):
        vector.encode(["x"])
