"""Mask bundles: what they give back, bit for bit; what they refuse; what they weigh."""

import json

import numpy as np
import pytest
import torch

from consilience.bundles import mask_creation
from consilience.bundles.mask_creation import create_mask_bundle
from consilience.bundles.masks import open_mask_bundle
from consilience.checkpoints.open import open_checkpoint
from consilience.checkpoints.writer import CheckpointWriter, OutputTensor, plan_shards
from consilience.errors import CheckpointError, OutputError, RecipeError, RequestError, VerificationError, WorkError
from consilience.merging.memory import as_source, merge_state_dicts
from consilience.merging.recipe import Recipe
from tests.merging.laws import make_models, same_bytes

SHAPES = {"w": (90, 101), "long": (270_001,), "one": (1,), "scalar": (), "empty": (0, 3)}
NAMES = ("a", "b", "c", "d")
FLOATS = 90 * 101 + 270_001 + 1 + 1 + 3


def models(dtype="float32", seed=1):
    """A base and four experts, with integers and a tensor that no expert changed."""
    base, experts = make_models(SHAPES, NAMES, seed, dtype)
    base = {name: torch.as_tensor(tensor) for name, tensor in base.items()}
    base |= {"ids": torch.arange(5), "still": torch.ones(3, dtype=getattr(torch, dtype))}
    experts = {
        name: {**{n: torch.as_tensor(t) for n, t in expert.items()}, "ids": base["ids"] + 1, "still": base["still"]}
        for name, expert in experts.items()
    }
    return base, experts


def save(folder, tensors):
    """Write a state dict as a model folder with a side file."""
    sources = {name: as_source(tensor) for name, tensor in tensors.items()}
    writer = CheckpointWriter(folder, plan_shards([OutputTensor(n, s.dtype, s.shape) for n, s in sources.items()]))
    writer.create()
    for name, source in sources.items():
        writer.write(name, 0, source.read_raw(0, source.numel))
    writer.finish()
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    return str(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize(("merge", "coding"), [("task_arithmetic", "zlib"), ("ties", "packed")])
def test_every_task_comes_back_bit_for_bit(tmp_path, dtype, merge, coding):
    base, experts = models(dtype)
    values = {"merge": merge, "density": 0.3, "tall_mask_lambda": dict(zip(NAMES, (0.2, 0.4, 0.5, 0.6), strict=True))}
    create_mask_bundle(tmp_path / "bundle", base, experts, coding=coding, **values)
    bundle = open_mask_bundle(tmp_path / "bundle")
    assert bundle.tasks == NAMES
    for task in NAMES:
        wanted = merge_state_dicts("tall_mask", base, experts, task=task, **values)
        assert same_bytes(bundle.reconstruct(task, base), wanted), task
        changed = sum(int((wanted[n] != base[n]).sum()) for n in SHAPES)
        bits = round(bundle.density(task) * FLOATS)  # a bit may stand where the vector is 0 or rounds away
        assert 0.2 * FLOATS < changed <= bits < 0.95 * FLOATS
        assert merge != "task_arithmetic" or dtype != "float64" or changed > 0.999 * bits


def test_models_on_disk_in_and_out(tmp_path):
    base, experts = models("bfloat16")
    places = {name: save(tmp_path / name, tensors) for name, tensors in experts.items()}
    home = save(tmp_path / "base", base)
    bundle = create_mask_bundle(tmp_path / "bundle", home, places)
    recipe = Recipe(method="tall_mask", base=home, experts=places, parameters={"task": "c"})
    recipe.run(tmp_path / "merged", progress=False)
    bundle.write("c", tmp_path / "c-again")
    merged, again = open_checkpoint(tmp_path / "merged").tensors, open_checkpoint(tmp_path / "c-again").tensors
    assert merged.keys() == again.keys() == base.keys()
    for name, source in merged.items():
        assert source.read_raw(0, source.numel).tobytes() == again[name].read_raw(0, source.numel).tobytes(), name
    assert json.loads((tmp_path / "c-again" / "config.json").read_text()) == {"model_type": "tiny"}
    assert same_bytes(bundle.reconstruct("c"), bundle.reconstruct("c", base))
    with pytest.raises(OutputError, match="is not empty"):
        bundle.write("c", tmp_path / "a")


def test_numpy_goes_in_and_comes_out(tmp_path):
    base = {"w": np.zeros(100, np.float32), "ids": np.arange(3)}
    experts = {n: {"w": np.full(100, i + 1, np.float32), "ids": np.arange(3)} for i, n in enumerate("ab")}
    bundle = create_mask_bundle(tmp_path / "bundle", base, experts)
    found = bundle.reconstruct("b", base)
    assert isinstance(found["w"], np.ndarray) and found["w"].dtype == np.float32
    assert found["w"].tolist() == [3.0] * 100 and found["ids"].tolist() == [0, 1, 2]
    assert base["w"].tolist() == [0.0] * 100


def test_four_experts_take_less_than_a_third(tmp_path):
    base, experts = models()
    bundle = create_mask_bundle(tmp_path / "bundle", base, experts)
    sizes = bundle.sizes
    assert sizes["experts"] == 4 * (4 * FLOATS + 5 * 8)
    assert sizes["shared"] == 4 * FLOATS
    assert sizes["masks_packed"] == 4 * (1137 + 33751 + 1 + 1 + 0 + 1)
    assert sizes["files"] < 0.31 * sizes["experts"]
    assert sizes["files"] + sizes["base"] < 0.6 * sizes["experts"]


def test_sparse_masks_are_coded(tmp_path):
    base = {"w": np.zeros(400_000, np.float32)}
    random = np.random.default_rng(0)
    experts = {n: {"w": ((random.random(400_000) < 0.01) * 0.1).astype(np.float32)} for n in "ab"}
    coded = create_mask_bundle(tmp_path / "coded", base, experts)
    packed = create_mask_bundle(tmp_path / "packed", base, experts, coding="packed")
    assert packed.sizes["masks"] == packed.sizes["masks_packed"] == coded.sizes["masks_packed"] == 100_000
    assert coded.sizes["masks"] < 25_000  # 1 % of the bits set: 0.08 bits each at best
    assert (coded.folder / "masks/0.bin").stat().st_size + (coded.folder / "masks/1.bin").stat().st_size < 25_000
    assert same_bytes(coded.reconstruct("a", base), packed.reconstruct("a", base))


def test_another_base_is_refused(tmp_path):
    base, experts = models()
    bundle = create_mask_bundle(tmp_path / "bundle", base, experts)
    with pytest.raises(
        CheckpointError, match=r"made for another base(.|\n)*'w': F32\[90, 7\] in this base, F32\[90, 101\]"
    ):
        bundle.reconstruct("a", {**base, "w": base["w"][:, :7]})
    renamed = {("v" if name == "w" else name): tensor for name, tensor in base.items()}
    with pytest.raises(
        CheckpointError, match=r"2 problems(.|\n)*'v': F32.*, missing in the(.|\n)*'w': missing in this"
    ):
        bundle.reconstruct("a", renamed)
    with pytest.raises(CheckpointError, match="'w': BF16"):
        bundle.reconstruct("a", {**base, "w": base["w"].bfloat16()})
    for name in ("w", "ids", "still"):
        other = base[name].clone()
        other.view(-1)[-1] += 1
        with pytest.raises(CheckpointError, match=f"another base: tensor {name!r} has other numbers"):
            bundle.reconstruct("a", {**base, name: other})
    with pytest.raises(RequestError, match="from a base in memory; give that base"):
        bundle.reconstruct("a")
    with pytest.raises(RequestError, match="no task 'e'"):
        bundle.reconstruct("e", base)


def test_nothing_is_written_from_another_base(tmp_path):
    base, experts = models()
    bundle = create_mask_bundle(tmp_path / "bundle", save(tmp_path / "base", base), experts)
    other = {**base, "still": base["still"] + 1}
    with pytest.raises(CheckpointError, match="'still' has other numbers"):
        bundle.write("a", tmp_path / "out", other)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("coding", ["zlib", "packed"])
def test_damage_is_found(tmp_path, coding):
    base, experts = models()
    bundle = create_mask_bundle(tmp_path / "bundle", base, experts, coding=coding)
    mask, weights = tmp_path / "bundle/masks/1.bin", tmp_path / "bundle/shared/model.safetensors"
    for path, words in ((mask, "the mask of tensor 'long'"), (weights, "shared tensor 'long'")):
        whole = bytearray(path.read_bytes())
        damaged = whole.copy()
        damaged[len(whole) // 2] ^= 8
        path.write_bytes(damaged)
        with pytest.raises(VerificationError, match=words):
            bundle.reconstruct("b", base)
        path.write_bytes(whole)
    mask.write_bytes(mask.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"1\.bin: \d+ bytes, expected"):
        open_mask_bundle(tmp_path / "bundle")
    mask.unlink()
    with pytest.raises(CheckpointError, match=r"1\.bin: not there"):
        open_mask_bundle(tmp_path / "bundle")


def test_other_folders_and_newer_versions_are_refused(tmp_path):
    with pytest.raises(RequestError, match="no such file"):
        open_mask_bundle(tmp_path)
    base, experts = models()
    create_mask_bundle(tmp_path / "bundle", base, experts)
    path = tmp_path / "bundle/consilience.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "version": 99}))
    with pytest.raises(RequestError, match="version 99"):
        open_mask_bundle(tmp_path / "bundle")
    path.write_text(json.dumps({**record, "format": "consilience/manifest"}))
    with pytest.raises(RequestError, match="expected 'consilience/mask-bundle'"):
        open_mask_bundle(tmp_path / "bundle")


def test_wrong_requests_are_refused_together(tmp_path):
    base, experts = models()
    wrong = {**experts, "b": {**experts["b"], "w": experts["b"]["w"][:5], "extra": torch.ones(1)}}
    with pytest.raises(RecipeError) as refused:
        create_mask_bundle(tmp_path / "bundle", base, wrong, tall_mask_lambda={"a": 1.0}, coding="gzip")
    for words in ("'w': shape [5, 101] in 'b', [90, 101]", "'extra': not in the base", "no value for", "'gzip'"):
        assert words in str(refused.value)
    with pytest.raises(RecipeError, match="at least 2, found 1"):
        create_mask_bundle(tmp_path / "bundle", base, {"a": experts["a"]})
    with pytest.raises(RecipeError, match="no floating-point tensor"):
        create_mask_bundle(tmp_path / "bundle", {"i": np.arange(2)}, {n: {"i": np.arange(2)} for n in "ab"})
    assert not (tmp_path / "bundle").exists()


def test_an_interrupted_bundle_resumes(tmp_path, monkeypatch):
    base, experts = models()
    whole = create_mask_bundle(tmp_path / "whole", base, experts)
    merged = []
    real = mask_creation.merge_tensor

    def counting(task, *rest, **options):
        merged.append(task.name)
        if len(merged) == 3:
            raise WorkError("the lights went out")
        return real(task, *rest, **options)

    monkeypatch.setattr(mask_creation, "merge_tensor", counting)
    with pytest.raises(WorkError, match="the lights went out"):
        create_mask_bundle(tmp_path / "bundle", base, experts)
    with pytest.raises(OutputError, match="another request"):
        create_mask_bundle(tmp_path / "bundle", base, experts, coding="packed")
    (tmp_path / "bundle.partial/work/masks/0.bin").open("ab").write(b"half a tensor")
    again = create_mask_bundle(tmp_path / "bundle", base, experts)
    assert merged == [*list(base)[:3], *[n for n in list(base)[2:] if n != "ids"]]
    for file in ("shared/model.safetensors", *(f"masks/{i}.bin" for i in range(4))):
        assert (again.folder / file).read_bytes() == (whole.folder / file).read_bytes(), file
    assert not (tmp_path / "bundle.partial").exists()
