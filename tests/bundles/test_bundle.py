"""Bundles: what every kind gives back, what they refuse, what they weigh, and what an interruption leaves."""

import json

import numpy as np
import pytest
import torch

from consilience.bundles.bundle import Bundle
from consilience.bundles.creation import create_bundle
from consilience.bundles.residuals import mask_writing
from consilience.checkpoints.open import open_checkpoint
from consilience.errors import CheckpointError, OutputError, RecipeError, RequestError, VerificationError, WorkError
from consilience.merging.memory import merge_state_dicts
from consilience.merging.recipe import Recipe
from tests.bundles.models import FLOATS, NAMES, SHAPES, models, read_pieces, save
from tests.merging.checkpoints import llama_tensors, write_model
from tests.merging.laws import same_bytes
from tests.merging.test_engine import write_adapter

SHARED = {"shared": "task_arithmetic", "parameters": {"lambda": 0.3}}
KINDS = {
    "masks": {},
    "emr": {},
    "low_rank": {"rank": 4, **SHARED},
    "sparse": {"density": 0.3, **SHARED},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize(("merge", "coding"), [("task_arithmetic", "zlib"), ("ties", "packed")])
def test_masks_give_the_method_back_bit_for_bit(tmp_path, dtype, merge, coding):
    base, experts = models(dtype)
    values = {"merge": merge, "density": 0.3, "tall_mask_lambda": dict(zip(NAMES, (0.2, 0.4, 0.5, 0.6), strict=True))}
    create_bundle(tmp_path / "bundle", base, experts, residual="masks", coding=coding, **values)
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.experts == NAMES
    assert same_bytes(bundle.state("base"), base)
    for name in NAMES:
        wanted = merge_state_dicts("tall_mask", base, experts, task=name, **values)
        assert same_bytes(bundle.state(name), wanted), name
        changed = sum(int((wanted[n] != base[n]).sum()) for n in SHAPES)
        bits = round(bundle.density(name) * FLOATS)
        assert 0.2 * FLOATS < changed <= bits < 0.95 * FLOATS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_emr_gives_the_method_back_bit_for_bit(tmp_path, dtype):
    base, experts = models(dtype)
    bundle = create_bundle(tmp_path / "bundle", base, experts, residual="emr")
    for name in NAMES:
        assert same_bytes(bundle.state(name), merge_state_dicts("emr", base, experts, task=name)), name
    assert bundle.sizes["experts.a"] < 0.3 * (FLOATS * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_any_cut_reads_the_same_and_expands_to_it(tmp_path, kind):
    base, experts = models("bfloat16")
    bundle = create_bundle(tmp_path / "bundle", save(tmp_path / "base", base), experts, residual=kind, **KINDS[kind])
    written = bundle.expand("c", tmp_path / "c")
    assert json.loads((written / "config.json").read_text()) == {"model_type": "tiny"}
    again = open_checkpoint(written).tensors
    expert = bundle.expert("c")
    assert again.keys() == base.keys()
    for name, source in expert.tensors.items():
        whole = source.read_raw(0, source.numel).tobytes()
        assert read_pieces(source, 4097).tobytes() == whole == again[name].read_raw(0, source.numel).tobytes(), name
    with pytest.raises(OutputError, match="is not empty"):
        bundle.expand("c", tmp_path / "base")
    with pytest.raises(RequestError, match="no expert 'e'"):
        bundle.expand("e", tmp_path / "e")


def test_a_recipe_takes_an_expanded_mask_bundle_for_the_merge(tmp_path):
    base, experts = models("bfloat16")
    places = {name: save(tmp_path / name, tensors) for name, tensors in experts.items()}
    home = save(tmp_path / "base", base)
    bundle = create_bundle(tmp_path / "bundle", home, places, residual="masks")
    recipe = Recipe(method="tall_mask", base=home, experts=places, parameters={"task": "c"})
    recipe.run(tmp_path / "merged", progress=False)
    merged, again = open_checkpoint(tmp_path / "merged").tensors, open_checkpoint(bundle.expand("c", tmp_path / "x"))
    for name, source in merged.items():
        assert source.read_raw(0, source.numel).tobytes() == again.tensors[name].read_raw(0, source.numel).tobytes()


def test_shared_weights_on_disk_are_those_in_memory(tmp_path):
    base, experts = models()
    home, places = save(tmp_path / "base", base), {n: save(tmp_path / n, e) for n, e in experts.items()}
    options = {"residual": "low_rank", "rank": 3, "exclude": ["long"], **SHARED}
    disk = create_bundle(tmp_path / "disk", home, places, **options)
    memory = create_bundle(tmp_path / "memory", base, experts, **options)
    assert same_bytes(disk.state("base"), memory.state("base"))
    assert same_bytes(disk.state("b"), memory.state("b"))
    wanted = merge_state_dicts("task_arithmetic", base, experts, **{"lambda": 0.3})
    assert same_bytes(memory.state("base"), {**wanted, "long": base["long"]})
    given = create_bundle(tmp_path / "given", base, experts, shared=wanted, residual="low_rank", rank=3)
    assert same_bytes(given.state("base"), wanted)


@pytest.mark.parametrize("kind", ["low_rank", "sparse"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_is_lost_at_density_1(tmp_path, kind, dtype):
    base, experts = models(dtype)
    bundle = create_bundle(tmp_path / "bundle", base, experts, residual=kind, density=1.0, **SHARED)
    for name in NAMES:
        wanted = {**experts[name], "ids": base["ids"]}
        assert same_bytes(bundle.state(name), wanted)
        mixed = bundle.mix({name: 1.0, "base": 0.0})
        assert all(torch.equal(mixed[n], wanted[n]) for n in wanted)


def test_low_rank_is_the_best_of_its_rank(tmp_path):
    base, experts = models()
    bundle = create_bundle(tmp_path / "bundle", base, experts, residual="low_rank", rank=7, **SHARED)
    shared = bundle.state("base")
    for name in NAMES:
        left, values, right = np.linalg.svd((experts[name]["w"].double() - shared["w"].double()).numpy(), False)
        best = shared["w"].double().numpy() + (left[:, :7] * values[:7]) @ right[:7]
        assert np.abs(bundle.state(name)["w"].double().numpy() - best).max() < 1e-5
        assert torch.equal(bundle.state(name)["long"], experts[name]["long"])  # no matrix: kept whole
    weights = {"a": 0.5, "c": 0.25}
    parts = {name: bundle.state(name) for name in weights}
    wanted = shared["w"] + sum(weight * (parts[name]["w"] - shared["w"]) for name, weight in weights.items())
    assert (bundle.mix(weights)["w"] - wanted).abs().max() < 1e-5


def test_the_authors_rank_and_a_rank_of_none(tmp_path):
    base, experts = models()
    with pytest.warns(UserWarning, match="nothing is kept of 1 tensor"):
        bundle = create_bundle(tmp_path / "bundle", base, experts, residual="low_rank", density=0.01)
    assert torch.equal(bundle.state("a")["w"], base["w"])
    lower = {n: {**e, "w": base["w"] + torch.outer(e["w"][:, 0], e["w"][0])} for n, e in experts.items()}
    full = create_bundle(tmp_path / "full", base, lower, residual="low_rank", rank=5)
    assert (full.state("a")["w"] - lower["a"]["w"]).abs().max() < 1e-5  # of rank 1: the other four are zeros


@pytest.mark.parametrize("select", ["magnitude", "bernoulli"])
def test_sparse_keeps_a_share_of_the_changes(tmp_path, select):
    base, experts = models()
    bundle = create_bundle(tmp_path / "bundle", base, experts, residual="sparse", density=0.25, select=select)
    own, wanted = bundle.state("b")["long"], experts["b"]["long"]
    kept = own != base["long"]
    share = float(kept.float().mean())
    if select == "magnitude":
        assert int(kept.sum()) == int(0.25 * 30_001)
        change = (wanted - base["long"]).abs()
        assert change[kept].min() >= change[~kept].max() and torch.allclose(own[kept], wanted[kept])
    else:
        assert abs(share - 0.25) < 0.02
        assert torch.allclose(own[kept] - base["long"][kept], 4 * (wanted - base["long"])[kept], atol=1e-5)
        assert not torch.equal(kept, bundle.state("a")["long"] != base["long"])


def test_excluded_tensors_are_the_experts_own_or_the_bases(tmp_path):
    base, experts = models()
    options = {"residual": "low_rank", "rank": 2, "exclude": ["lo*"], **SHARED}
    own = create_bundle(tmp_path / "own", base, experts, **options)
    bare = create_bundle(tmp_path / "bare", base, experts, excluded="base", **options)
    assert torch.equal(own.state("d")["long"], experts["d"]["long"])
    assert torch.equal(bare.state("d")["long"], base["long"])
    assert torch.equal(own.state("base")["long"], base["long"])
    assert own.sizes["experts.d"] > bare.sizes["experts.d"] + 4 * 30_000


def test_adapters_come_back_as_they_were(tmp_path):
    base = llama_tensors(0, width=8)
    write_model(tmp_path / "base", base)
    home = str(tmp_path / "base")
    for seed, name in enumerate(("x", "y")):
        write_adapter(tmp_path / name, base, seed)
    references = {name: f"{home}+{tmp_path / name}" for name in ("x", "y")}
    bundle = create_bundle(tmp_path / "bundle", home, references, residual="adapter")
    for name, reference in references.items():
        wanted, found = open_checkpoint(reference).tensors, bundle.expert(name).tensors
        changed = 0
        for tensor, source in wanted.items():
            raw = source.read_raw(0, source.numel).tobytes()
            assert raw == found[tensor].read_raw(0, source.numel).tobytes()
            changed += raw != bundle.shared.tensors[tensor].read_raw(0, source.numel).tobytes()
        assert changed == sum("q_proj" in tensor for tensor in wanted) > 0
    with pytest.raises(RecipeError, match="name BASE\\+ADAPTER"):
        create_bundle(tmp_path / "other", home, {"x": home}, residual="adapter")
    with pytest.raises(RecipeError, match="share the base"):
        create_bundle(tmp_path / "other", home, references, residual="adapter", shared="linear")


def test_sizes_tell_where_the_bytes_are(tmp_path):
    base, experts = models()
    bundle = create_bundle(tmp_path / "bundle", base, experts, residual="masks")
    sizes = bundle.sizes
    assert sizes["full"] == 4 * (4 * FLOATS + 5 * 8)
    assert sizes["files"] == sum(path.stat().st_size for path in bundle.folder.rglob("*") if path.is_file())
    assert sizes["files"] < 0.65 * sizes["full"]  # base, vector and masks of four experts
    rows = {name: share for name, _, share in bundle.info()}
    assert rows["full"] == 1.0 and rows["experts.a"] < 0.01


def test_sparse_masks_are_coded(tmp_path):
    base = {"w": np.zeros(400_000, np.float32)}
    random = np.random.default_rng(0)
    experts = {n: {"w": ((random.random(400_000) < 0.01) * 0.1).astype(np.float32)} for n in "ab"}
    coded = create_bundle(tmp_path / "coded", base, experts, residual="masks")
    packed = create_bundle(tmp_path / "packed", base, experts, residual="masks", coding="packed")
    assert packed.sizes["experts.a"] == coded.record["residual"]["packed_bytes"] == 50_000
    assert coded.sizes["experts.a"] < 12_500  # 1 % of the bits set: 0.08 bits each at best
    assert same_bytes(coded.state("a"), packed.state("a"))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found(tmp_path, kind):
    base, experts = models()
    bundle = create_bundle(tmp_path / "bundle", base, experts, residual=kind, **KINDS[kind])
    own = bundle.record["residual"]["files"]["b"][0]
    for relative in (own, "shared/model.safetensors"):
        path = bundle.folder / relative
        whole = bytearray(path.read_bytes())
        damaged = whole.copy()
        damaged[-9] ^= 8
        path.write_bytes(damaged)
        with pytest.raises(VerificationError, match="not as it was written"):
            bundle.expand("b", tmp_path / "b")
        if relative == own:
            bundle.verify("a")
        path.write_bytes(whole)
    bundle.verify()
    (bundle.folder / own).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r": 0 bytes, expected \d+"):
        Bundle.open(bundle.folder)
    (bundle.folder / own).unlink()
    with pytest.raises(CheckpointError, match="not there"):
        Bundle.open(bundle.folder)


def test_other_folders_and_newer_versions_are_refused(tmp_path):
    with pytest.raises(RequestError, match="no such file"):
        Bundle.open(tmp_path)
    base, experts = models()
    create_bundle(tmp_path / "bundle", base, experts, rank=1)
    path = tmp_path / "bundle/consilience.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "version": 99}))
    with pytest.raises(RequestError, match="version 99"):
        Bundle.open(tmp_path / "bundle")
    path.write_text(json.dumps({**record, "format": "consilience/manifest"}))
    with pytest.raises(RequestError, match="expected 'consilience/bundle'"):
        Bundle.open(tmp_path / "bundle")


def test_wrong_requests_are_refused_together(tmp_path):
    base, experts = models()
    wrong = {**experts, "b": {**experts["b"], "w": experts["b"]["w"][:5], "extra": torch.ones(1)}}
    with pytest.raises(RecipeError) as refused:
        create_bundle(tmp_path / "x", base, wrong, residual="masks", tall_mask_lambda={"a": 1.0}, coding="gzip")
    for words in ("'w': shape [5, 101] in 'b', [90, 101]", "'extra': not in the base", "no value for", "'gzip'"):
        assert words in str(refused.value)
    with pytest.raises(RecipeError, match="at least 2 apart, found 1"):
        create_bundle(tmp_path / "x", base, {"a": experts["a"]}, residual="masks")
    with pytest.raises(RecipeError, match="no floating-point tensor"):
        create_bundle(tmp_path / "x", {"i": np.arange(2)}, {n: {"i": np.arange(2)} for n in "ab"})
    with pytest.raises(RecipeError, match=r"'lowrank' is unknown; did you mean 'low_rank'"):
        create_bundle(tmp_path / "x", base, experts, residual="lowrank")
    with pytest.raises(RecipeError, match=r"no option 'ranks'"):
        create_bundle(tmp_path / "x", base, experts, ranks=3)
    with pytest.raises(RecipeError) as refused:
        create_bundle(tmp_path / "x", base, {**experts, "base": base}, density=0, exclude=["nowhere"], dtype="int8")
    for words in ("'base' is what", "density: 0", "'nowhere' matches no tensor", "dtype: 'int8'"):
        assert words in str(refused.value)
    assert not (tmp_path / "x").exists()


def test_an_interrupted_mask_bundle_resumes(tmp_path, monkeypatch):
    base, experts = models()
    whole = create_bundle(tmp_path / "whole", base, experts, residual="masks")
    merged = []
    real = mask_writing.merge_tensor

    def counting(task, *rest, **options):
        merged.append(task.name)
        if len(merged) == 3:
            raise WorkError("the lights went out")
        return real(task, *rest, **options)

    monkeypatch.setattr(mask_writing, "merge_tensor", counting)
    with pytest.raises(WorkError, match="the lights went out"):
        create_bundle(tmp_path / "bundle", base, experts, residual="masks")
    with pytest.raises(OutputError, match="another request"):
        create_bundle(tmp_path / "bundle", base, experts, residual="masks", coding="packed")
    (tmp_path / "bundle.partial/work/experts/0.masks").open("ab").write(b"half a tensor")
    again = create_bundle(tmp_path / "bundle", base, experts, residual="masks")
    assert merged == [*list(base)[:3], *[n for n in list(base)[2:] if n != "ids"]]
    for file in again.record["files"]:
        assert (again.folder / file).read_bytes() == (whole.folder / file).read_bytes(), file
    assert not (tmp_path / "bundle.partial").exists()


def test_an_interrupted_low_rank_bundle_keeps_what_is_done(tmp_path, monkeypatch):
    from consilience.bundles.residuals.low_rank import LowRankFactors

    base, experts = models(shapes={"u": (20, 10), "v": (10, 30)})
    whole = create_bundle(tmp_path / "whole", base, experts, rank=2, **SHARED)
    asked = []
    real = LowRankFactors.compress

    def counting(self, name, expert, change):
        asked.append((expert, name))
        if len(asked) == 4:
            raise WorkError("the lights went out")
        return real(self, name, expert, change)

    monkeypatch.setattr(LowRankFactors, "compress", counting)
    with pytest.raises(WorkError):
        create_bundle(tmp_path / "bundle", base, experts, rank=2, **SHARED)
    again = create_bundle(tmp_path / "bundle", base, experts, rank=2, **SHARED)
    assert asked[:4] == [("a", "u"), ("a", "v"), ("b", "u"), ("b", "v")]
    assert asked[4:] == [("b", "v"), ("c", "u"), ("c", "v"), ("d", "u"), ("d", "v")]
    for file in again.record["files"]:
        assert (again.folder / file).read_bytes() == (whole.folder / file).read_bytes(), file
