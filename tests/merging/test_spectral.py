"""Spectral methods: the formulas in float64, and the cases where the formulas alone are not enough."""

import doctest
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from consilience.errors import NonFiniteError, RecipeError
from consilience.merging import singular
from consilience.merging.memory import merge_state_dicts
from consilience.merging.method import find_method
from consilience.merging.methods import knots as knots_module
from consilience.merging.recipe import Recipe
from tests.merging.checkpoints import llama_tensors, make_family, read_weights, write_model
from tests.merging.laws import same_bytes

SPECTRAL = ["tsv", "iso_c", "iso_cts", "r_tsvm", "knots"]
GOLDEN = Path(__file__).parents[1] / "golden" / "cases"

pytestmark = pytest.mark.filterwarnings("ignore:tsv:UserWarning", "ignore:r_tsvm:UserWarning")


def normal(*shape, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def models(shape, experts=3, seed=0, rank=None):
    """A base and experts near it with one matrix; updates of the given rank."""
    base = normal(*shape, seed=seed)
    made = {}
    for i in range(experts):
        if rank is None:
            change = normal(*shape, seed=seed + i + 1)
        else:
            change = normal(shape[0], rank, seed=seed + i + 1) @ normal(rank, shape[1], seed=seed + i + 50)
        made["abcdefgh"[i]] = {"w": base + np.float32(0.05) * change}
    return {"w": base}, made


def merge(method, base, experts, **parameters):
    """The change of the only matrix."""
    return merge_state_dicts(method, base, experts, **parameters)["w"].astype(float) - base["w"]


def deltas(base, experts):
    return [expert["w"].astype(float) - base["w"].astype(float) for expert in experts.values()]


def svd(matrix):
    return np.linalg.svd(matrix, full_matrices=False)


def P(matrix):
    u, s, v = svd(matrix)
    kept = s > 1e-6 * s[0]
    return u[:, kept] @ v[kept]


def tsv(taus):
    found = [svd(tau) for tau in taus]
    kept = [
        min(min(tau.shape) // len(taus), int((f[1] > 1e-6 * f[1][0]).sum())) for tau, f in zip(taus, found, strict=True)
    ]
    u = np.concatenate([f[0][:, :k] for f, k in zip(found, kept, strict=True)], 1)
    v = np.concatenate([f[2][:k] for f, k in zip(found, kept, strict=True)])
    return P(u) @ np.diag(np.concatenate([f[1][:k] for f, k in zip(found, kept, strict=True)])) @ P(v)


def iso_c(taus):
    return svd(sum(taus))[1].mean() * P(sum(taus))


def iso_cts(taus, fraction=0.8):
    r, count = min(taus[0].shape), len(taus)
    share = min(round((r - int(r * fraction)) / count), r // count)
    common = r - share * count
    u, s, v = (part[..., :common] if i < 2 else part[:common] for i, part in enumerate(svd(sum(taus))))
    found = [svd(tau - u @ u.T @ tau) for tau in taus]
    left = np.concatenate([*(f[0][:, :share] for f in found), u], 1)
    right = np.concatenate([*(f[2][:share] for f in found), v])
    return np.concatenate([*(f[1][:share] for f in found), s]).mean() * P(left) @ P(right)


FORMULAS = {"tsv": tsv, "iso_c": iso_c, "iso_cts": iso_cts}


@pytest.mark.parametrize("method", SPECTRAL)
def test_the_example_of_the_method_runs(method):
    (example,) = doctest.DocTestFinder().find(find_method(method).function, method, globs={})
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("method", FORMULAS)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(2, 4), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_the_formula_holds_for_every_shape(method, rows, columns, count, seed):
    base, experts = models((rows, columns), count, seed)
    if method == "tsv" and min(rows, columns) < count:
        assert np.array_equal(merge(method, base, experts), np.zeros((rows, columns)))
        return
    expected = FORMULAS[method](deltas(base, experts))
    assert np.allclose(merge(method, base, experts, alpha=0.7), 0.7 * expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("method", [*FORMULAS, "r_tsvm"])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_low_rank_updates_give_no_arbitrary_directions(method, shape):
    base = {"w": np.zeros(shape, np.float32)}  # so that the updates' rank is not blurred by rounding
    taus = [normal(shape[0], 2, seed=i) @ normal(2, shape[1], seed=i + 9) for i in range(3)]
    change = merge(method, base, {n: {"w": tau} for n, tau in zip("abc", taus, strict=True)})
    nearby = {n: {"w": tau * np.float32(1 + 1e-6 * i)} for i, (n, tau) in enumerate(zip("abc", taus, strict=True))}
    assert np.allclose(merge(method, base, nearby), change, atol=1e-3 * np.abs(change).max())
    rows = np.linalg.svd(np.concatenate(taus, 0), full_matrices=False)[2][:6]
    assert np.allclose(change @ rows.T @ rows, change, atol=1e-4 * np.abs(change).max())
    assert np.linalg.matrix_rank(change, tol=1e-4 * np.abs(change).max()) == 6


@pytest.mark.parametrize("method", ["tsv", "r_tsvm"])
def test_identical_experts_count_as_one(method):
    base, experts = models((16, 16), 1)
    same = dict.fromkeys("abc", experts["a"])
    u, s, v = svd(deltas(base, experts)[0])
    change = merge(method, base, same, **({"gamma": 0.0} if method == "r_tsvm" else {}))
    assert np.allclose(change, (u[:, :5] * s[:5]) @ v[:5], atol=1e-5)


def test_identical_experts_in_iso():
    base, experts = models((16, 12), 1)
    same, (tau,) = dict.fromkeys("abc", experts["a"]), deltas(base, experts)
    u, s, v = svd(tau)
    assert np.allclose(merge("iso_c", base, same), 3 * s.mean() * u @ v, atol=1e-5)
    change = merge("iso_cts", base, same)
    assert np.linalg.matrix_rank(change, tol=1e-4) == 10  # the common 9, and one more that all experts share
    assert np.allclose(change, ((3 * s[:9].sum() + 3 * s[9]) / 12) * u[:, :10] @ v[:10], atol=1e-5)


@pytest.mark.parametrize("method", ["tsv", "r_tsvm", "iso_cts", "iso_c"])
@pytest.mark.parametrize("shape", [(16, 16), (9, 20)])
def test_an_expert_equal_to_the_base_takes_no_room(method, shape):
    base, experts = models(shape, 2)
    change = merge(method, base, {**experts, "z": base})
    taus = [*deltas(base, experts), np.zeros(shape)]
    if method == "r_tsvm":
        facts = {}
        merge(method, base, {**experts, "z": base}, facts=facts)
        assert facts["w"]["weights"]["z"] == 0
        assert math.isclose(sum(facts["w"]["weights"].values()), 2)
        return
    kept = min(shape) // 3
    if method == "tsv":
        found = [svd(tau) for tau in taus[:2]]
        left, right = (np.concatenate([f[i][:, :kept] if i == 0 else f[i][:kept].T for f in found], 1) for i in (0, 2))
        expected = P(left) @ np.diag(np.concatenate([f[1][:kept] for f in found])) @ P(right).T
    elif method == "iso_c":
        expected = iso_c(taus)
    else:  # the room of the third stays empty
        room, share = min(shape), int(min(shape) * 0.8)
        own = round((room - share) / 3)
        u, s, v = svd(taus[0] + taus[1])
        common = room - 3 * own
        found = [svd(tau - u[:, :common] @ u[:, :common].T @ tau) for tau in taus[:2]]
        left = np.concatenate([*(f[0][:, :own] for f in found), u[:, :common]], 1)
        right = np.concatenate([*(f[2][:own] for f in found), v[:common]])
        total = s[:common].sum() + sum(f[1][:own].sum() for f in found)
        expected = total / room * P(left) @ P(right)
    assert np.allclose(change, expected, atol=2e-5)


@pytest.mark.parametrize("method", SPECTRAL)
def test_experts_equal_to_the_base_change_nothing(method):
    base, _ = models((6, 5), 1)
    moved = {"w": base["w"], "v": np.ones((3, 3), np.float32)}  # not all inputs are the same bytes
    start = {"w": base["w"], "v": np.zeros((3, 3), np.float32)}
    merged = merge_state_dicts(method, start, {"a": start, "b": moved})
    assert np.array_equal(merged["w"], base["w"]) and np.isfinite(merged["v"]).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 9), (9, 5), (8, 8)])
@pytest.mark.parametrize("method", ["tsv", "iso_cts", "knots"])
def test_one_expert_comes_out(method, shape):
    base, experts = models(shape, 1)
    parameters = {"density": 1.0} if method == "knots" else {}
    assert np.allclose(merge(method, base, experts, **parameters), deltas(base, experts)[0], atol=1e-6)


def test_iso_c_flattens_the_spectrum_of_one_expert():
    base, experts = models((6, 8), 1)
    values = svd(merge("iso_c", base, experts))[1]
    assert np.allclose(values, svd(deltas(base, experts)[0])[1].mean(), rtol=1e-5)


def test_more_experts_than_directions_are_told_of_by_name():
    base, experts = models((3, 9), 4)
    with pytest.warns(UserWarning, match=r"tsv: tensor 'w' \(3 x 9\).*4 experts"):
        assert not merge("tsv", base, experts).any()
    with pytest.warns(UserWarning, match=r"r_tsvm: tensor 'w' \(3 x 9\).*4 experts"):
        assert merge("r_tsvm", base, experts).any()


@pytest.mark.parametrize("method", SPECTRAL)
def test_tensors_that_are_not_taken(method):
    names = ["text_projection", "model.embed.weight", "layer.weight", "norm"]
    shapes = [(5, 4), (5, 4), (5, 4), (4,)]
    base = {n: normal(*s, seed=i) for i, (n, s) in enumerate(zip(names, shapes, strict=True))}
    experts = {e: {n: v + normal(*v.shape, seed=9 + k, scale=0.1) for n, v in base.items()} for k, e in enumerate("ab")}
    base["ids"] = np.arange(3)
    for expert in experts.values():
        expert["ids"] = np.arange(3)[::-1].copy()
    scale = {"lambda": 0.5} if method == "knots" else {"alpha": 0.5}

    def mean(name):
        return base[name] + 0.5 * sum(e[name].astype(float) - base[name] for e in experts.values()) / 2

    merged = merge_state_dicts(method, base, experts, **scale)
    assert np.array_equal(merged["ids"], base["ids"])
    assert np.allclose(merged["norm"], mean("norm"), atol=1e-6)
    assert np.allclose(merged["text_projection"], mean("text_projection"), atol=1e-6) == (method != "knots")
    assert not np.allclose(merged["layer.weight"], mean("layer.weight"), atol=1e-3)
    kept = merge_state_dicts(method, base, experts, exclude=r".*embed|norm", rest="base", **scale)
    assert np.array_equal(kept["norm"], base["norm"])
    assert np.array_equal(kept["model.embed.weight"], base["model.embed.weight"])
    only = merge_state_dicts(method, base, experts, include=r"layer", **scale)
    assert np.allclose(only["model.embed.weight"], mean("model.embed.weight"), atol=1e-6)
    with pytest.raises(RecipeError, match="exclude"):
        merge_state_dicts(method, base, experts, exclude="(")


@pytest.mark.parametrize("method", SPECTRAL)
def test_an_input_that_is_not_finite_is_named(method):
    base, experts = models((6, 5), 3)
    experts["b"]["w"][2, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r"tensor 'w': model 'b' holds nan at element 13"):
        merge(method, base, experts)


@pytest.mark.parametrize("method", SPECTRAL)
def test_updates_below_the_last_place_of_bfloat16_and_double_inputs(method):
    base = {"w": torch.randn(12, 10, generator=torch.Generator().manual_seed(0)).bfloat16()}
    near = {n: {"w": (base["w"].float() * (1 + 1e-4 * i)).bfloat16()} for i, n in enumerate("abc")}
    merged = merge_state_dicts(method, base, near)["w"]
    assert merged.dtype == torch.bfloat16 and torch.allclose(merged.float(), base["w"].float(), rtol=0.05, atol=0.05)
    single, doubled = models((12, 10), 3), models((12, 10), 3)
    wide = ({"w": doubled[0]["w"].astype(float)}, {n: {"w": e["w"].astype(float)} for n, e in doubled[1].items()})
    assert np.allclose(merge(method, *wide), merge(method, *single), atol=1e-5)


def golden(method, case):
    facts = json.loads((GOLDEN / method / f"{case}.json").read_text())
    groups = {}
    for name, tensor in load_file(GOLDEN / method / f"{case}.safetensors").items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = tensor
    experts = {name: tensors for name, tensors in groups.items() if name.startswith("expert")}
    return facts, groups["base"], experts, groups["merged"]


@pytest.mark.parametrize("case", ["default", "gamma2_attenuate_4experts"])
def test_weights_sparsity_and_ranks_of_r_tsvm(case):
    facts, base, experts, _ = golden("r_tsvm", case)
    told = {}
    merge_state_dicts("r_tsvm", base, experts, facts=told, **facts["params"])
    assert told.keys() == facts["per_tensor"].keys()
    for name, expected in facts["per_tensor"].items():
        assert list(told[name]["weights"].values()) == pytest.approx(expected["weights"], rel=1e-6)
        assert told[name]["sparsity"] == pytest.approx(expected["sparsity"], rel=1e-9)
        assert told[name]["rank"] == expected["rank"]


@pytest.mark.parametrize("case", ["default", "eig_alpha0.7_3experts"])
def test_r_tsvm_without_its_two_changes_is_tsv(case):
    facts, base, experts, merged = golden("tsv", case)
    found = merge_state_dicts("r_tsvm", base, experts, alpha=facts["params"]["alpha"], outlier_power=0.0, gamma=0.0)
    for name, expected in merged.items():
        assert torch.allclose(found[name].double(), expected.double(), atol=1e-5), name


@pytest.mark.parametrize(("power", "higher"), [(1.0, True), (-1.0, False)])
def test_a_larger_expert_weighs_more_or_less_by_the_sign_of_the_power(power, higher):
    base, experts = models((20, 20), 3)
    larger = {**experts, "b": {"w": base["w"] + 10 * (experts["b"]["w"] - base["w"])}}
    before, after = {}, {}
    merge("r_tsvm", base, experts, outlier_power=power, facts=before)
    merge("r_tsvm", base, larger, outlier_power=power, facts=after)
    assert (after["w"]["weights"]["b"] > before["w"]["weights"]["b"]) == higher
    assert math.isclose(sum(after["w"]["weights"].values()), 3)


def test_entries_of_one_magnitude_have_no_outliers():
    base = {"w": np.zeros((6, 6), np.float32)}
    signs = np.sign(normal(6, 6))
    experts = {"a": {"w": signs * np.float32(0.1)}, "b": {"w": normal(6, 6, seed=1)}}
    facts = {}
    merge("r_tsvm", base, experts, n_sigma=0.0, facts=facts)
    assert facts["w"]["weights"] == {"a": 1.0, "b": 1.0}


def test_exact_zeros_count_as_sparse():
    base = {"w": np.zeros((8, 8), np.float32), "v": np.zeros((8, 8), np.float32)}
    full = {"w": normal(8, 8), "v": normal(8, 8, seed=1)}
    half = {"w": normal(8, 8, seed=2), "v": normal(8, 8, seed=3)}
    half["v"][:4] = 0
    facts = {}
    merge_state_dicts("r_tsvm", base, {"a": full, "b": half}, eps_rel=1e-6, facts=facts)
    assert facts["w"]["sparsity"] == 0 and facts["v"]["sparsity"] == 0.25
    assert facts["w"]["rank"] == 4 and facts["v"]["rank"] == 3


def knots(taus, density, mean=True, vote=True, threshold=1e-5):
    """The formula for several matrices at once: {name: one task matrix per expert} to {name: change}."""
    bases, parts = {}, {}
    for name, matrices in taus.items():
        u, s, _ = svd(np.concatenate(matrices, 1))
        kept = s > threshold
        bases[name] = u[:, kept]
        parts[name] = [u[:, kept].T @ tau for tau in matrices]
    names, count = sorted(taus), len(next(iter(taus.values())))
    flat = np.stack([np.concatenate([parts[n][i].reshape(-1) for n in names]) for i in range(count)])
    if density < 1:
        least = np.sort(np.abs(flat), axis=1)[:, -min(int(density * flat.shape[1]) + 1, flat.shape[1])]
        flat = np.where(np.abs(flat) >= least[:, None], flat, 0)
    if vote:
        flat = np.where(np.sign(flat) == np.sign(flat.sum(0)), flat, 0)
    merged = flat.sum(0) / (np.maximum((flat != 0).sum(0), 1) if mean else 1)
    changes, start = {}, 0
    for name in names:
        size = bases[name].shape[1] * taus[name][0].shape[1]
        changes[name] = bases[name] @ merged[start : start + size].reshape(bases[name].shape[1], -1)
        start += size
    return changes


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("vote", [True, False])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_components_of_all_matrices_compete(mean, vote, density, monkeypatch):
    monkeypatch.setattr(knots_module, "_PIECE", 64)
    shapes = {"a": (9, 14), "b": (14, 9), "c": (80, 3), "d": (6, 6)}
    base = {n: normal(*s, seed=i) for i, (n, s) in enumerate(shapes.items())}
    experts = {
        e: {n: v + normal(*v.shape, seed=20 * k + i + 7, scale=0.1) for i, (n, v) in enumerate(base.items())}
        for k, e in enumerate("xyz")
    }
    taus = {n: [e[n].astype(float) - v.astype(float) for e in experts.values()] for n, v in base.items()}
    options = {"merge_function": "mean" if mean else "sum", "merge_method": "ties" if vote else "task_arithmetic"}
    merged = merge_state_dicts("knots", base, experts, density=density, lambda_=0.6, **options)
    for name, change in knots(taus, density, mean, vote).items():
        assert np.allclose(merged[name] - base[name], 0.6 * change, atol=1e-5), name


def test_signs_of_singular_directions_do_not_matter(monkeypatch):
    base, experts = models((10, 14), 3)
    experts["d"] = {"w": base["w"] - (experts["a"]["w"] - base["w"])}  # draws where only these two are left
    plain = merge("knots", base, experts, density=0.3)

    def flipped(square, plain=singular.eigen):
        values, vectors = plain(square)
        return values, vectors * torch.tensor([1.0, -1.0]).double().repeat(len(values))[: len(values)]

    monkeypatch.setattr(singular, "eigen", flipped)
    assert np.allclose(merge("knots", base, experts, density=0.3), plain, atol=1e-6)
    assert plain.any()
    opposite = {"a": experts["a"], "d": {"w": 2 * base["w"] - experts["a"]["w"]}}
    zero = {"w": np.zeros_like(base["w"])}
    tau = normal(10, 14, seed=4)
    assert np.allclose(merge("knots", zero, {"a": {"w": tau}, "d": {"w": -tau}}, density=1.0), 0, atol=1e-6)
    assert np.isfinite(merge("knots", base, opposite)).all()


def test_a_basis_of_the_inputs_is_the_transposed_merge():
    base, experts = models((7, 12), 3)
    turned = {"w": base["w"].T.copy()}, {n: {"w": e["w"].T.copy()} for n, e in experts.items()}
    one = merge("knots", base, experts, concat_across_output=False)
    assert np.allclose(one, merge("knots", *turned).T, atol=1e-6)
    assert not np.allclose(one, merge("knots", base, experts), atol=1e-4)


def test_weak_directions_are_dropped_in_knots():
    base = {"w": np.zeros((4, 4), np.float32)}
    experts = {"a": {"w": np.diag(np.float32([1, 1e-2, 1e-4, 0]))}, "b": {"w": np.diag(np.float32([1, 1e-2, 1e-4, 0]))}}
    assert np.allclose(merge("knots", base, experts, density=1.0).diagonal(), [1, 1e-2, 1e-4, 0], rtol=1e-4)
    cut = merge("knots", base, experts, density=1.0, singular_value_threshold=1e-3)
    assert np.allclose(cut.diagonal(), [1, 1e-2, 0, 0], rtol=1e-4, atol=1e-12)


def write_adapter(folder, base, seed, rank, modules):
    """Write a PEFT LoRA folder with alpha twice the rank; return {tensor: task matrix}."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    taus, tensors = {}, {}
    for name in [n for n in base if any(module in n for module in modules)]:
        a = torch.randn((rank, base[name].shape[1]), generator=generator)
        b = 0.1 * torch.randn((base[name].shape[0], rank), generator=generator)
        prefix = "base_model.model." + name.removesuffix(".weight")
        tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"] = a, b
        taus[name] = 2 * (b.double() @ a.double()).numpy()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(modules), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return taus


@pytest.fixture
def adapters(tmp_path):
    base = llama_tensors(0, width=24)
    write_model(tmp_path / "base", base)
    taus = {n: write_adapter(tmp_path / n, base, i, 3, ["q_proj", "down_proj"]) for i, n in enumerate("xyz")}
    request = {"base": str(tmp_path / "base"), "experts": {n: f"{tmp_path / 'base'}+{tmp_path / n}" for n in taus}}
    return request, base, taus


def changes_of(request, base, out, method, **parameters):
    Recipe(method=method, parameters=parameters, **request).run(out)
    merged = read_weights(out)
    return {name: (merged[name].double() - value.double()).numpy() for name, value in base.items()}


def test_knots_of_adapters_decomposes_nothing_larger_than_they_are(adapters, tmp_path, monkeypatch):
    request, base, taus = adapters
    monkeypatch.setattr(singular, "gram", lambda matrix: pytest.fail(f"Gram of {tuple(matrix.shape)}"))
    changes = changes_of(request, base, tmp_path / "out", "knots", density=0.3)
    expected = knots({n: [taus[e][n] for e in "xyz"] for n in taus["x"]}, 0.3)
    for name, change in changes.items():
        assert np.allclose(change, expected.get(name, 0), atol=1e-5), name


@pytest.mark.parametrize("method", ["tsv", "iso_c", "iso_cts", "r_tsvm"])
def test_adapters_are_merged_at_their_own_rank(adapters, tmp_path, method):
    request, base, taus = adapters
    changes = changes_of(request, base, tmp_path / "out", method)
    for name, change in changes.items():
        if name not in taus["x"]:
            assert not change.any()
            continue
        rows = np.linalg.svd(np.concatenate([taus[e][name] for e in "xyz"]), full_matrices=False)[2][:9]
        assert np.allclose(change @ rows.T @ rows, change, atol=1e-4 * np.abs(change).max()), name
        if method in ("tsv", "iso_c"):
            assert np.allclose(change, FORMULAS[method]([taus[e][name] for e in "xyz"]), atol=1e-4), name


@pytest.mark.parametrize("method", SPECTRAL)
def test_recipes_on_disk_give_what_memory_gives_and_tell_of_what_has_no_room(tmp_path, method):
    folders = make_family(tmp_path / "in", dtype="bfloat16", width=2)
    experts = {n: str(f) for n, f in folders.items() if n != "base"}
    done = Recipe(method=method, base=str(folders["base"]), experts=experts).run(tmp_path / "out")
    loaded = {name: read_weights(folder) for name, folder in folders.items()}
    expected = merge_state_dicts(method, loaded.pop("base"), loaded)
    assert same_bytes(read_weights(tmp_path / "out"), expected)
    told = [notice for notice in done.notices if "model.layers.0.self_attn.q_proj.weight" in notice]
    assert len(told) == (method in ("tsv", "r_tsvm"))
