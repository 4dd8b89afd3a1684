"""Methods that minimise an objective: against the literal optimisation, and what must hold at the edges."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file as load_arrays

from consilience import Recipe
from consilience.errors import RecipeError, WorkError
from consilience.merging.memory import merge_state_dicts
from consilience.merging.optimise import Quadratic
from tests.merging.checkpoints import llama_tensors, write_model

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))
AUTO = {"learning_rate_unit": "rms"}
RUNS = {
    "wudi": ("wudi", {"learning_rate": 0.02, **AUTO}),
    "full": ("optmerge", {"variant": "full", "lambda": 1.0, **AUTO}),
    "lora": ("optmerge", {"variant": "lora", "learning_rate": 0.01}),
    "modality": ("optmerge", {"variant": "modality"}),
    "doge": ("doge", {"steps": 50}),
}
each_run = pytest.mark.parametrize("run", RUNS)
small_matrices = pytest.mark.filterwarnings("ignore:optmerge. tensor", "ignore:doge. eta")


def models(shape, count, seed, spread=1e-2, dtype=np.float32):
    """A base and experts near it, one matrix each, and the task vectors."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1, shape)
    experts = {f"e{i}": {"w": (base + rng.normal(0, spread, shape)).astype(dtype)} for i in range(count)}
    base = base.astype(dtype)
    return {"w": base}, experts, [e["w"].astype(np.float64) - base for e in experts.values()]


def merged(run, base, experts, **changed):
    method, values = RUNS[run]
    told = {}
    result = merge_state_dicts(method, base, experts, facts=told, **{**values, **changed})
    return result, told


def literal(taus, targets, roots, start, optimizer, steps):
    """Minimise sum ||(m - K) L^T||^2 / ||tau||^2 with PyTorch's gradients and optimisers, in float64."""
    m = torch.tensor(start, requires_grad=True)
    stepper = optimizer([m])

    def objective():
        terms = zip(taus, targets, roots, strict=True)
        return sum(((m - torch.tensor(k)) @ torch.tensor(r).T).square().sum() / (t**2).sum() for t, k, r in terms)

    before = objective().item()
    for _ in range(steps):
        stepper.zero_grad()
        objective().backward()
        stepper.step()
    return m.detach().numpy(), before, objective().item()


def truncated(matrix, rank):
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ v[:rank], s[:rank, None] * v[:rank]


@pytest.mark.parametrize("shape", [(8, 8), (3, 40), (40, 3), (1, 7), (300, 5)])
def test_wudi_is_the_literal_optimisation(shape):
    base, experts, taus = models(shape, 3, seed=sum(shape))
    expected, before, after = literal(
        taus, taus, taus, sum(taus), lambda p: torch.optim.Adam(p, lr=1e-4, eps=1e-8), steps=60
    )
    result, told = merged("wudi", base, experts, learning_rate=1e-4, learning_rate_unit="absolute", steps=60)
    np.testing.assert_allclose(result["w"] - base["w"], expected, rtol=0, atol=3e-6)
    assert told["w"]["objective"] == pytest.approx({"before": before, "after": after}, rel=1e-4)


@pytest.mark.parametrize("shape", [(9, 9), (6, 40), (40, 6)])
@pytest.mark.parametrize("variant", ["full", "lora", "modality"])
def test_optmerge_is_the_literal_optimisation(shape, variant):
    base, experts, taus = models(shape, 3, seed=1)
    rank, mean = min(shape) // (5 if variant == "modality" else 3), sum(taus) / 3
    low = [truncated(t, rank) for t in taus]
    if variant == "full":
        targets = [mean + truncated(t - mean, rank)[0] for t in taus]
        start, rate, make = sum(taus), 1e-4, lambda p: torch.optim.Adam(p, lr=1e-4, eps=1e-8)
    else:
        targets, start, rate = [k for k, _ in low], mean, 0.05
        make = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)  # noqa: E731
    roots = taus if variant == "modality" else [root for _, root in low]
    expected, before, after = literal(taus, targets, roots, start, make, steps=80)
    changed = {"learning_rate": rate, "steps": 80, "learning_rate_unit": "absolute"}
    result, told = merged(variant, base, experts, **changed)
    np.testing.assert_allclose(result["w"] - base["w"], expected, rtol=0, atol=3e-6)
    assert told["w"]["objective"] == pytest.approx({"before": before, "after": after}, rel=1e-4, abs=1e-6 * before)


def test_doge_is_the_literal_optimisation():
    base, experts, taus = models((8, 6), 2, seed=4, spread=0.1)
    t = torch.tensor(np.stack(taus))
    scale = 0.07 / t.flatten(1).norm(dim=1)
    sides = torch.cat([torch.linalg.svd(tau)[0][:, :3] for tau in t], 1)
    shared = torch.linalg.svd(sides)[0][:, :2]
    change = torch.zeros(8, 6, dtype=torch.float64, requires_grad=True)
    weighted = (scale[:, None, None] * t).sum(0)

    def objective():
        return (t * (t - weighted - scale.sum() * change)).sum(2).square().sum()

    before, optimizer = objective().item(), torch.optim.Adam([change], lr=1e-3, eps=1e-8)
    for _ in range(40):
        optimizer.zero_grad()
        objective().backward()
        change.grad -= shared @ shared.T @ change.grad
        optimizer.step()
    kept = t.abs() >= t.abs().flatten(1).topk(int(0.3 * 48) + 1).values[:, -1][:, None, None]
    expected = (scale[:, None, None] * (t + change.detach()) * kept).sum(0)
    result, told = merged("doge", base, experts, subspace=3, learning_rate=1e-3, steps=40)
    np.testing.assert_allclose(result["w"] - base["w"], expected.numpy(), rtol=0, atol=2e-6)
    assert told["w"]["objective"] == pytest.approx({"before": before, "after": objective().item()}, rel=1e-3)
    assert told["w"]["subspace"] == 2
    assert told["w"]["lambda"] == pytest.approx({"e0": float(scale[0]), "e1": float(scale[1])}, rel=1e-5)


@small_matrices
@each_run
def test_objective_does_not_rise(run):
    @settings(deadline=None, max_examples=15)
    @given(SHAPES, st.integers(1, 5), st.integers(0, 2**20))
    def check(shape, count, seed):
        base, experts, _ = models(shape, count, seed)
        result, told = merged(run, base, experts)
        assert np.isfinite(result["w"]).all()
        if "w" in told:
            objective = told["w"]["objective"]
            assert objective["after"] <= objective["before"] * (1 + 1e-5) + 1e-9

    check()


@small_matrices
@each_run
def test_order_of_experts_does_not_matter(run):
    base, experts, taus = models((10, 7), 4, seed=3)
    renamed = {name: experts[other] for name, other in zip(experts, reversed(experts), strict=True)}
    one, other = merged(run, base, experts)[0]["w"], merged(run, base, renamed)[0]["w"]
    np.testing.assert_allclose(one - base["w"], other - base["w"], rtol=1e-3, atol=1e-4 * np.abs(taus).max())


@pytest.mark.parametrize("run", ["lora", "modality", "wudi", "full"])
@pytest.mark.parametrize("scale", [0.125, 3.0, 64.0])
def test_result_scales_with_the_task_vectors(run, scale):
    base, experts, _ = models((10, 10), 2, seed=7, dtype=np.float64)
    far = {n: {"w": base["w"] + scale * (e["w"] - base["w"])} for n, e in experts.items()}
    one, other = (merged(run, base, e)[0]["w"] - base["w"] for e in (experts, far))
    np.testing.assert_allclose(other, scale * one, rtol=1e-3, atol=1e-6 * scale)


def test_absolute_steps_of_adam_do_not_scale():
    base, experts, taus = models((10, 10), 2, seed=7, spread=1.0)
    result, _ = merged("wudi", base, experts, learning_rate=1e-5, learning_rate_unit="absolute")
    assert np.abs(result["w"] - base["w"] - sum(taus)).max() < 300 * 1e-5 * 1.1


@small_matrices
@each_run
def test_an_expert_equal_to_the_base_is_left_out(run):
    base, experts, _ = models((6, 6), 2, seed=11)
    with_zero = {**experts, "zero": base}
    result, told = merged(run, base, with_zero, steps=20)
    assert np.isfinite(result["w"]).all()
    if run in ("wudi", "doge"):
        same = merged(run, base, experts, steps=20, **({"subspace": 100} if run == "doge" else {}))[0]["w"]
        alone = merged(run, base, with_zero, steps=20, **({"subspace": 100} if run == "doge" else {}))[0]["w"]
        np.testing.assert_array_equal(same, alone)
    assert "zero" not in told["w"].get("lambda", {})


@small_matrices
@each_run
def test_matrices_that_no_expert_changes_stay(run):
    base, experts, _ = models((6, 6), 2, seed=11)
    base = {**base, "v": np.float32([[1, 2], [3, 4]])}
    experts = {n: {**e, "v": base["v"] + np.float32(0)} for n, e in experts.items()}
    result, _ = merged(run, base, experts, steps=5)
    assert result["v"].tobytes() == base["v"].tobytes()


@small_matrices
def test_one_expert_is_returned():
    base, experts, taus = models((7, 5), 1, seed=2)
    for run in ("wudi", "full", "lora"):
        np.testing.assert_allclose(merged(run, base, experts)[0]["w"], experts["e0"]["w"], rtol=0, atol=3e-7)
    result, _ = merged("doge", base, experts, density=1.0, steps=0)
    np.testing.assert_allclose(result["w"], base["w"] + 0.07 * taus[0] / np.linalg.norm(taus[0]), rtol=1e-6)


@pytest.mark.parametrize(("run", "share"), [("full", 1.0), ("lora", 0.25), ("modality", 0.25)])
def test_too_many_experts_keep_the_start_and_say_so(run, share):
    base, experts, taus = models((3, 9), 4, seed=5)
    with pytest.warns(UserWarning, match=r"optmerge: tensor 'w' \[3, 9\] is too small"):
        result, told = merged(run, base, experts)
    np.testing.assert_allclose(result["w"] - base["w"], share * sum(taus), rtol=0, atol=1e-6)
    assert told == {}


def test_doge_without_steps_is_the_weighted_sum():
    base, experts, taus = models((4, 9), 3, seed=6, spread=0.1)
    result, told = merged("doge", base, experts, density=1.0, steps=0, subspace=20)
    expected = base["w"] + sum(0.07 / np.linalg.norm(t) * t for t in taus)
    np.testing.assert_allclose(result["w"], expected, rtol=1e-6)
    assert told["w"]["objective"]["before"] == told["w"]["objective"]["after"] and told["w"]["subspace"] == 0


def test_doge_ranks_entries_over_all_chosen_matrices():
    rng = np.random.default_rng(8)
    shapes = {"a.weight": (4, 5), "b.weight": (6, 3), "norm.weight": (9, 9), "bias": (50,)}
    base = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
    sizes = {"a.weight": 1.0, "b.weight": 0.1, "norm.weight": 50.0, "bias": 50.0}
    experts = {e: {n: np.float32(sizes[n] * rng.normal(size=s)) for n, s in shapes.items()} for e in "xy"}
    result = merge_state_dicts("doge", base, experts, steps=0, density=0.5, eta=0.01)
    chosen = ("a.weight", "b.weight")
    for name in chosen:
        expected = np.zeros(shapes[name])
        for tensors in experts.values():
            flat = np.sort(np.abs(np.concatenate([tensors[n].ravel() for n in chosen])))
            kept = np.where(np.abs(tensors[name]) >= flat[-(int(0.5 * flat.size) + 1)], tensors[name], 0)
            expected += 0.01 / np.linalg.norm(tensors[name]) * kept
        np.testing.assert_allclose(result[name], expected, rtol=1e-5, atol=1e-9)
    assert all(result[n].tobytes() == base[n].tobytes() for n in ("norm.weight", "bias"))


def test_doge_keeps_entries_equal_to_the_last():
    base, expert = {"w": np.zeros((2, 4), np.float32)}, {"w": np.float32([[3, -2, 2, 2], [2, 1, 1, 1]])}
    result = merge_state_dicts("doge", base, {"a": expert}, steps=0, density=0.2, eta=1e-3)
    assert (result["w"] != 0).tolist() == [[True] * 4, [True, False, False, False]]


def test_doge_warns_of_coefficients_above_one():
    base, experts, _ = models((6, 6), 2, seed=1, spread=1e-4)
    with pytest.warns(UserWarning, match="coefficients above 1"):
        merged("doge", base, experts)


@pytest.mark.parametrize(("rest", "share"), [("base", 0.0), ("mean", 0.25)])
def test_rest_of_wudi(rest, share):
    shapes = {"layer.weight": (4, 4), "layer.bias": (4,), "embed.weight": (6, 4), "conv": (2, 2, 2)}
    rng = np.random.default_rng(0)
    base = {n: np.float32(rng.normal(size=s)) for n, s in shapes.items()}
    experts = {e: {n: np.float32(v + 0.1 * rng.normal(size=v.shape)) for n, v in base.items()} for e in "ab"}
    result = merge_state_dicts("wudi", base, experts, rest=rest, **{"lambda": 0.5})
    for name in ("layer.bias", "embed.weight", "conv"):
        expected = base[name] + share * sum(e[name] - base[name] for e in experts.values())
        np.testing.assert_allclose(result[name], expected, rtol=1e-5, atol=1e-6)
    assert np.abs(result["layer.weight"] - base["layer.weight"]).max() > 0.01


def test_rest_of_optmerge():
    shapes = {
        "layer.weight": (4, 4),
        "scale": (4,),
        "embed.weight": (6, 4),
        "lm_head.weight": (6, 4),
        "vision.w": (4, 4),
    }
    rng = np.random.default_rng(0)
    base = {n: np.float32(rng.normal(size=s)) for n, s in shapes.items()}
    experts = {e: {n: np.float32(v + 0.1 * rng.normal(size=v.shape)) for n, v in base.items()} for e in "ab"}
    told = {}
    result = merge_state_dicts("optmerge", base, experts, facts=told, exclude=r".*(vision|embed)", **{"lambda": 0.5})
    for name in ("scale", "lm_head.weight"):
        expected = base[name] + 0.25 * sum(e[name] - base[name] for e in experts.values())
        np.testing.assert_allclose(result[name], expected, rtol=1e-5, atol=1e-6)
    assert all(result[n].tobytes() == base[n].tobytes() for n in ("embed.weight", "vision.w"))
    assert told.keys() == {"layer.weight"}


def test_modality_takes_factors_without_a_base():
    rng = np.random.default_rng(1)
    shapes = {"q.lora_A.weight": (10, 16), "q.lora_B.weight": (24, 10), "q.magnitude": (24,)}
    experts = {e: {n: np.float32(rng.normal(size=s)) for n, s in shapes.items()} for e in ("vision", "audio", "video")}
    told = {}
    result = merge_state_dicts("optmerge", None, experts, variant="modality", facts=told)
    np.testing.assert_allclose(
        result["q.magnitude"], np.mean([e["q.magnitude"] for e in experts.values()], 0), rtol=1e-5
    )
    assert told.keys() == {"q.lora_A.weight", "q.lora_B.weight"}
    zero = {n: np.zeros(s, np.float32) for n, s in shapes.items()}
    around = merge_state_dicts("optmerge", zero, experts, variant="modality")
    for name in shapes:
        np.testing.assert_allclose(around[name], result[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", ["full", "lora"])
@pytest.mark.parametrize("shape", [(4, 4), (4,)])
def test_variants_of_models_need_a_base(variant, shape):
    experts = {e: {"w": np.full(shape, i, np.float32)} for i, e in enumerate("ab")}
    with pytest.raises(RecipeError, match=f"variant '{variant}' works on task vectors and needs a base"):
        merge_state_dicts("optmerge", None, experts, variant=variant, **{"lambda": 1.0})


def test_full_variant_must_be_given_lambda():
    base, experts, _ = models((4, 4), 2, seed=0)
    with pytest.raises(RecipeError, match=r"parameters\.lambda: variant full has no default"):
        merge_state_dicts("optmerge", base, experts, variant="full")


def test_divergence_is_refused_and_a_rise_is_told():
    base, experts, _ = models((12, 12), 3, seed=0)
    with pytest.raises(WorkError, match=r"tensor 'w': the optimisation diverged, .* use a smaller learning_rate"):
        merged("lora", base, experts, learning_rate=100.0)
    with pytest.warns(UserWarning, match="ended above its start"):
        result, told = merged("wudi", base, experts, learning_rate=0.5, learning_rate_unit="absolute", steps=3)
    assert told["w"]["objective"]["after"] > told["w"]["objective"]["before"] and np.isfinite(result["w"]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@each_run
def test_stored_types(run, dtype):
    base, experts, _ = models((10, 10), 2, seed=9, spread=0.1)
    base, experts = base["w"], [e["w"] for e in experts.values()]
    stored = [torch.from_numpy(v).to(dtype) for v in (base, *experts)]
    exact = [v.to(torch.float64) for v in stored]
    one, wide = (merged(run, {"w": b}, [{"w": x} for x in e])[0]["w"] for b, *e in (stored, exact))
    assert one.dtype == dtype
    assert torch.allclose(one.double(), wide, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_curvature_as_roots_or_as_a_square_is_the_same():
    generator = torch.Generator().manual_seed(0)
    start, *targets = torch.randn(3, 5, 30, generator=generator)
    roots = torch.randn(2, 4, 30, generator=generator) / 5
    thin, square = Quadratic(start, 8), Quadratic(start, 30)
    for objective in (thin, square):
        for target, root in zip(targets, roots, strict=True):
            objective.add(target, root, 2.0)
    for change in (lambda f: f.adam(1e-2, 20), lambda f: f.descend(1e-2, 20)):
        assert torch.allclose(change(thin), change(square), atol=1e-5)
        after = thin.value(change(thin))
        assert after < thin.initial and after == pytest.approx(square.value(change(square)), rel=1e-5)


@pytest.mark.parametrize("run", ["wudi", "lora"])
def test_adapters_are_merged_by_their_factors(tmp_path, run):
    from safetensors.torch import save_file

    base = llama_tensors(0)
    write_model(tmp_path / "base", base)
    dense = {}
    for seed, name in enumerate("ab", 1):
        generator, tensors = torch.Generator().manual_seed(seed), {}
        dense[name] = dict(base)
        for layer in range(4):
            module = f"model.layers.{layer}.mlp.down_proj"
            a, b = torch.randn(2, 32, generator=generator) / 8, torch.randn(16, 2, generator=generator) / 8
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b
            dense[name][f"{module}.weight"] = base[f"{module}.weight"] + 2 * b @ a
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["down_proj"]}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    method, values = RUNS[run][0], {**RUNS[run][1], "steps": 60}
    recipe = Recipe(
        method=method,
        base=str(tmp_path / "base"),
        experts={name: f"{tmp_path / 'base'}+{tmp_path / name}" for name in "ab"},
        parameters=values,
    )
    recipe.run(tmp_path / "out", workers=1, progress=False)
    result = load_arrays(tmp_path / "out" / "model.safetensors")
    told = {}
    arrays = {name: {n: t.numpy() for n, t in tensors.items()} for name, tensors in dense.items()}
    expected = merge_state_dicts(method, {n: t.numpy() for n, t in base.items()}, arrays, facts=told, **values)
    for name, tensor in expected.items():
        np.testing.assert_allclose(result[name], tensor, rtol=0, atol=2e-5, err_msg=name)
    manifest = json.loads((tmp_path / "out" / "consilience.json").read_text())
    changed = [n for n in manifest["tensors"] if re.fullmatch(r"model\.layers\.\d\.mlp\.down_proj\.weight", n)]
    assert len(changed) == 4
    for name in changed:
        ours, dense_ones = manifest["tensors"][name]["objective"], told[name]["objective"]
        assert ours == pytest.approx(dense_ones, rel=1e-3, abs=1e-5 * dense_ones["before"])
        assert ours["after"] < 0.5 * ours["before"]
