"""Experts that are slices of a slimmable network: back bit for bit, kept as shapes, and never mixed."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file, save_file

from consilience.bundles.bundle import Bundle
from consilience.bundles.creation import create_bundle
from consilience.bundles.residuals import widths
from consilience.bundles.residuals.widths import Sliced, is_slice
from consilience.bundles.routers.centroid import CentroidRouter
from consilience.checkpoints.open import open_checkpoint
from consilience.checkpoints.writer import CheckpointWriter
from consilience.cli.app import run
from consilience.errors import CheckpointError, OutputError, RecipeError, RequestError, VerificationError, WorkError
from consilience.merging.memory import as_source
from consilience.models import load_encoder
from consilience.models.slimmable import SlimmableConfig, SlimmableNetwork, Widths, load_slimmable
from consilience.tuning.widths import search_widths
from tests.bundles.models import read_pieces
from tests.merging.laws import same_bytes
from tests.models.tiny import write_bert

CONFIG = SlimmableConfig(6, (24, 18), 16, {"a": 3, "b": 1})
BUDGETS = {"small": 0.3, "large": 0.8}


@pytest.fixture
def network():
    made = SlimmableNetwork(CONFIG, seed=3)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    return made


@pytest.fixture
def found():
    """What the search finds for two budgets."""
    table = {pair: sum(pair) for pair in ((e, d) for e in CONFIG.choices for d in CONFIG.choices)}
    scores, preference = dict.fromkeys("ab", table), {"a": 3, "b": 1}
    return {n: search_widths(CONFIG, scores, budget=b, preference=preference).widths for n, b in BUDGETS.items()}


@pytest.fixture
def folders(network, found, tmp_path):
    """The full network and the exports of the search, as model folders."""
    exports = {name: network.exported(chosen).save(tmp_path / name) for name, chosen in found.items()}
    return {"full": network.save(tmp_path / "full"), **exports}


def made(folders, out, **options):
    experts = {name: str(folder) for name, folder in folders.items() if name != "full"}
    return create_bundle(out, str(folders["full"]), experts, residual="widths", **options)


def test_the_exports_of_the_search_come_back_byte_for_byte(network, found, folders, tmp_path):
    bundle = made(folders, tmp_path / "bundle", exact=True)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    assert found["small"].encoder < 1 and found["small"] != found["large"]
    for name, chosen in found.items():
        out = bundle.expand(name, tmp_path / f"again-{name}")
        for file in ("model.safetensors", "config.json"):
            assert (out / file).read_bytes() == (folders[name] / file).read_bytes(), file
        assert same_bytes(bundle.state(name), network.exported(chosen).state_dict())
        opened, direct = load_slimmable(out)(x), network(x, chosen)
        assert all(torch.allclose(opened[task], direct[task], atol=1e-5) for task in direct)
        expert, again = bundle.expert(name).tensors, open_checkpoint(out).tensors
        for tensor, source in expert.items():
            whole = again[tensor].read_raw(0, again[tensor].numel).tobytes()
            assert read_pieces(source, 7).tobytes() == read_pieces(source, 1 << 20).tobytes() == whole
    assert same_bytes(bundle.state("base"), network.state_dict())
    identities = {bundle.expert(name).fingerprint for name in found} | {bundle.shared.fingerprint}
    assert len(identities) == 3


def test_an_expert_takes_its_shapes_and_its_config_only(folders, tmp_path):
    bundle = made(folders, tmp_path / "bundle")
    assert bundle.record["residual"]["own"] == {"small": [], "large": []}
    for place, name in enumerate(bundle.experts):
        files = {path.removeprefix(f"experts/{place}/") for path in bundle.record["residual"]["files"][name]}
        assert files == {"widths.json", "side/config.json"}
    sizes = bundle.sizes
    assert sizes["full"] == sum(open_checkpoint(folders[name]).nbytes for name in BUDGETS)
    assert sizes["experts.small"] < 4000
    assert Bundle.open(bundle.folder).expert("small").config["encoder"] < [24, 18]


def test_a_task_that_is_left_out_is_absent_and_own_tensors_are_whole(network, tmp_path):
    base = network.state_dict()
    slim = network.exported(Widths(0.5, {"a": 0.25, "b": 0.0})).state_dict()
    own = {
        **slim,
        "norms.0.weight": slim["norms.0.weight"] + 1,
        "decoders.a.norm.bias": slim["decoders.a.norm.bias"].half(),
        "statistics/mean": torch.arange(4),
    }
    bundle = create_bundle(tmp_path / "bundle", base, {"x": own}, residual="widths")
    assert same_bytes(bundle.state("x"), own)
    assert bundle.record["residual"]["own"]["x"] == ["norms.0.weight", "decoders.a.norm.bias", "statistics/mean"]
    assert bundle.record["residual"]["absent"]["x"] == [name for name in base if name.startswith("decoders.b.")]
    out = bundle.expand("x", tmp_path / "x")
    parts = load_file(out / "model.safetensors")
    parts |= {f"statistics/{name}": tensor for name, tensor in load_file(out / "statistics/model.safetensors").items()}
    assert same_bytes(parts, own)
    with pytest.raises(RecipeError) as refused:
        create_bundle(tmp_path / "exact", base, {"x": own}, residual="widths", exact=True)
    for words in (
        "'norms.0.weight' is no slice of the base's: other numbers",
        "'decoders.a.norm.bias' is no slice of the base's: type F16, there F32",
        "'statistics/mean' is no slice of the base's: there is none of that name",
    ):
        assert words in str(refused.value)
    assert not (tmp_path / "exact.partial").exists()


def test_what_is_no_part_of_the_base_is_refused_or_said(network, tmp_path):
    base = network.state_dict()
    slim = network.exported(Widths(0.5, {"a": 0.25, "b": 0.5})).state_dict()
    wrong = {"x": {"other": torch.ones(2)}, "y": {"encoder.0.weight": torch.ones(90, 90)}, "z": slim}
    with pytest.raises(RecipeError) as refused:
        create_bundle(tmp_path / "b", base, wrong, residual="widths", exact="yes", shared="linear")
    for words in ("experts.x: no tensor has", "experts.y: no tensor has", "'yes' is neither", "share the base"):
        assert words in str(refused.value)
    assert "experts.z" not in str(refused.value)
    complex_one = {"x": {**slim, "encoder.0.bias": torch.ones(2, dtype=torch.complex64)}}
    with pytest.raises(RecipeError, match=r"experts\.x: tensor 'encoder.0.bias': safetensors has no such number type"):
        create_bundle(tmp_path / "b", base, complex_one, residual="widths")
    moved = {name: tensor + 1 for name, tensor in slim.items()}
    with pytest.warns(UserWarning, match="no tensor of expert 'x' is a slice"):
        bundle = create_bundle(tmp_path / "b", base, {"x": moved}, residual="widths")
    assert same_bytes(bundle.state("x"), moved)


def test_experts_of_other_shapes_are_not_mixed(network, folders, tmp_path):
    bundle = made(folders, tmp_path / "bundle")
    with pytest.raises(RequestError, match=r"kept as 'widths'.*cannot be mixed.*Bundle\.expand"):
        bundle.mix({"small": 0.5, "large": 0.5})
    with pytest.raises(RequestError, match="no expert 'tiny'"):
        bundle.mix({"tiny": 1.0})
    assert same_bytes(bundle.mix({"base": 1.0, "small": 0.0}), network.state_dict())
    with pytest.raises(RequestError, match="without masks"):
        bundle.density("small")


def test_a_router_chooses_the_widths(folders, tmp_path):
    bundle = made(folders, tmp_path / "bundle")
    router = CentroidRouter(np.eye(2, 6, dtype=np.float32), ["small", "large"], threshold=0.5)
    bundle = bundle.set_router(router)
    chosen = Bundle.open(bundle.folder).router.route(np.eye(6, dtype=np.float32)[[1, 0, 4]]).chosen
    assert list(chosen) == ["large", "small", "base"]


def test_a_slim_text_encoder_is_opened_by_its_own_config(tmp_path):
    write_bert(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "slim")
    config = json.loads((tmp_path / "slim/config.json").read_text())
    (tmp_path / "slim/config.json").write_text(json.dumps({**config, "intermediate_size": 24}))
    tensors = load_file(tmp_path / "slim/model.safetensors")
    for name, value in tensors.items():
        if "intermediate" in name:
            tensors[name] = value[:24].contiguous()
        elif name.endswith("output.dense.weight") and "attention" not in name:
            tensors[name] = value[:, :24].contiguous()
    save_file(tensors, tmp_path / "slim/model.safetensors", {"format": "pt"})
    experts = {"slim": str(tmp_path / "slim"), "same": str(tmp_path / "base")}
    bundle = create_bundle(tmp_path / "bundle", str(tmp_path / "base"), experts, residual="widths", exact=True)
    texts = ["w1 w2 w3", "w9 w8"]
    wanted = {name: load_encoder(folder).encode(texts) for name, folder in experts.items()}
    for name in experts:
        assert np.array_equal(load_encoder(bundle.expert(name)).encode(texts), wanted[name])
    assert np.abs(wanted["slim"] - wanted["same"]).max() > 0.01
    assert bundle.record["residual"]["files"]["same"] == ["experts/0/widths.json"]  # its side files are the base's
    bundle = bundle.set_router(CentroidRouter(wanted["same"], ["slim", "same"], threshold=0.0))
    assert list(bundle.route(texts).chosen) == ["slim", "same"]
    with pytest.raises(RequestError, match="cannot be mixed or stand in for it"):
        bundle.encode(texts)


def test_damage_is_found(folders, network, tmp_path):
    own = {n: t + 1 if n == "norms.0.bias" else t for n, t in load_file(folders["small"] / "model.safetensors").items()}
    save_file(own, folders["small"] / "model.safetensors", {"format": "pt"})
    bundle = made(folders, tmp_path / "bundle")
    kept = bundle.record["residual"]["files"]["small"]
    assert {Path(path).name for path in kept} == {"widths.json", "own.safetensors", "config.json"}
    for relative in (*kept, "shared/model.safetensors"):
        path = bundle.folder / relative
        whole = bytearray(path.read_bytes())
        damaged = whole.copy()
        damaged[-9] ^= 8
        path.write_bytes(damaged)
        with pytest.raises(VerificationError, match="not as it was written"):
            bundle.expand("small", tmp_path / "out")
        if relative in kept:
            bundle.verify("large")
        path.write_bytes(whole)
    bundle.verify()
    assert same_bytes(bundle.state("small"), own)
    path = bundle.folder / next(path for path in kept if path.endswith("widths.json"))
    text = path.read_text()
    path.write_text(text.replace("1", "2", 1))
    with pytest.raises(VerificationError, match="not as it was written"):
        bundle.state("small")
    path.write_text(text[:-3])
    with pytest.raises(CheckpointError, match=r"bytes, expected \d+"):
        Bundle.open(bundle.folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="not there"):
        Bundle.open(bundle.folder)


def test_shapes_of_other_shared_weights_are_named(folders, tmp_path):
    bundle = made(folders, tmp_path / "bundle")
    small = open_checkpoint(folders["small"])
    with pytest.raises(CheckpointError, match=r"tensor 'encoder.1.weight': no slice \[\d+, \d+\] of the shared one"):
        widths.LeadingSlices.open(bundle.folder, bundle.record["residual"], "large", small)
    fewer = replace(small, tensors={"encoder.0.bias": small.tensors["encoder.0.bias"]})
    with pytest.raises(CheckpointError, match=r"problems"):
        widths.LeadingSlices.open(bundle.folder, bundle.record["residual"], "small", fewer)


def test_an_interrupted_bundle_does_nothing_twice(folders, tmp_path, monkeypatch):
    tensors = load_file(folders["small"] / "model.safetensors")
    own = {n: t + 1 if "norm" in n else t for n, t in tensors.items()}
    save_file(own, folders["small"] / "model.safetensors", {"format": "pt"})
    whole = made(folders, tmp_path / "whole")
    asked, limit = [], {"compare": 30, "write": 3}

    def limited(name, place, key):
        real = getattr(place, name)

        def call(*given):
            asked.append((key, given))
            if [seen for seen, _ in asked].count(key) == limit[key]:
                raise WorkError("the lights went out")
            return real(*given)

        monkeypatch.setattr(place, name, call)

    limited("is_slice", widths, "compare")
    with pytest.raises(WorkError, match="the lights went out"):
        made(folders, tmp_path / "bundle")
    with pytest.raises(OutputError, match="another request"):
        made({name: folders[name] for name in ("full", "large")}, tmp_path / "bundle")
    limited("write", CheckpointWriter, "write")  # the shared model is there: these are the expert's own
    with pytest.raises(WorkError, match="the lights went out"):
        made(folders, tmp_path / "bundle")
    again = made(folders, tmp_path / "bundle")
    compared = sum(key == "compare" for key, _ in asked)
    assert compared == 1 + sum(len(load_file(folders[name] / "model.safetensors")) for name in BUDGETS)
    written = [given[1] for key, given in asked if key == "write"]
    assert len(written) == 1 + len(set(written)) == 1 + sum("norm" in name for name in own)
    for file in again.record["files"]:
        assert (again.folder / file).read_bytes() == (whole.folder / file).read_bytes(), file
    assert not (tmp_path / "bundle.partial").exists()


def test_the_command_line_makes_and_expands_them(folders, tmp_path, capsys):
    place = str(tmp_path / "bundle")
    given = [part for name in BUDGETS for part in ("-e", f"{name}={folders[name]}")]
    create = ["bundle", "create", "--base", str(folders["full"]), *given, "--residual", "widths", "--set", "exact=true"]
    assert run([*create, "-o", place]) == 0
    assert run(["bundle", "info", place]) == 0
    assert "experts.small" in capsys.readouterr().out
    assert run(["bundle", "expand", place, "small", "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/config.json").read_bytes() == (folders["small"] / "config.json").read_bytes()


SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def wholes_and_parts(draw):
    """An array, the shape of a leading slice of it, and a cut into its numbers."""
    whole = draw(arrays.arrays(draw(st.sampled_from([np.float32, np.int16, np.float16])), SHAPES))
    part = tuple(draw(st.integers(0, side)) for side in whole.shape)
    start, stop = sorted(draw(st.tuples(*[st.integers(0, int(np.prod(part)))] * 2)))
    return whole, part, start, stop


@given(case=wholes_and_parts(), block=st.sampled_from([1, 7, 1 << 18]))
@settings(max_examples=300, deadline=None)
def test_a_slice_reads_as_the_array_does_in_any_cut(case, block):
    whole, part, start, stop = case
    wanted = np.array(whole[tuple(map(slice, part))], order="C")
    source = Sliced(as_source(whole), part)
    assert (source.shape, source.numel, source.nbytes) == (part, wanted.size, wanted.nbytes)
    with patch.object(widths, "_BLOCK", block):
        assert source.read_raw(start, stop).tobytes() == wanted.reshape(-1)[start:stop].tobytes()
        out = np.empty(stop - start)
        source.read(start, stop, out)
        assert is_slice(as_source(whole), as_source(wanted))
    assert np.array_equal(out, wanted.reshape(-1)[start:stop].astype(np.float64), equal_nan=True)
    assert not is_slice(as_source(wanted), as_source(whole)) or part == whole.shape


@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_experts_come_back_bit_for_bit(data):
    base = {"f": np.zeros((2, 2), np.float32)}
    base |= {n: data.draw(arrays.arrays(np.float32, SHAPES)) for n in "uv"}
    experts = {}
    for name in "ab":
        own = {"f": base["f"][:1]}
        for tensor in "uv":
            whole = base[tensor]
            part = whole[tuple(slice(data.draw(st.integers(0, side))) for side in whole.shape)]
            kind = data.draw(st.sampled_from(["slice", "other", "absent"]))
            if kind != "absent":
                own[tensor] = np.array(part) if kind == "slice" else np.array(part)[..., None]
        experts[name] = own
    with tempfile.TemporaryDirectory() as place:
        bundle = create_bundle(Path(place) / "bundle", base, experts, residual="widths")
        for name, own in experts.items():
            back = bundle.state(name)
            assert {n: tuple(t.shape) for n, t in back.items()} == {n: t.shape for n, t in own.items()}
            assert all(back[n].numpy().tobytes() == t.tobytes() for n, t in own.items())
