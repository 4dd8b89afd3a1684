"""TALL-masks, Consensus, EMR, Localize-and-Stitch: by definition and at the edges."""

import numpy as np
import pytest

from consilience.errors import NonFiniteError, RecipeError
from consilience.merging.memory import merge_state_dicts
from tests.merging.laws import make_models, same_bytes

METHODS = ("tall_mask", "consensus", "emr", "localize_and_stitch")


def merge(method, deltas, **parameters):
    """Merge experts given by their task vectors; the base is zero."""
    named = {f"e{i}": {"w": np.asarray(d, np.float32)} for i, d in enumerate(deltas)}
    base = {"w": np.zeros_like(named["e0"]["w"])}
    return merge_state_dicts(method, base, named, **parameters)["w"]


def random_deltas(experts, size, seed=0):
    return (np.random.default_rng(seed).normal(size=(experts, size)) * 1e-2).astype(np.float32)


def masks_of(deltas, total, thresholds):
    wide = deltas.astype(np.float64)
    return np.abs(wide) > np.asarray(thresholds)[:, None] * np.abs(total - wide)


def ties_sum(deltas, density):
    """The authors' TIES over the whole model: trim, elect, sum what agrees."""
    keep = min(int(density * deltas.shape[1]) + 1, deltas.shape[1])
    limits = np.sort(np.abs(deltas), axis=1)[:, -keep]
    kept = np.where(np.abs(deltas) >= limits[:, None], deltas, 0).astype(np.float64)
    sign = np.sign(kept.sum(axis=0))
    sign[sign == 0] = np.sign(sign.sum())
    return np.where(np.sign(kept) == sign, kept, 0).sum(axis=0)


@pytest.mark.parametrize("kind", ["task_arithmetic", "ties"])
def test_tall_mask_by_definition(kind):
    deltas, thresholds = random_deltas(4, 3000), [0.2, 0.4, 0.5, 0.6]
    total = deltas.astype(np.float64).sum(axis=0) if kind == "task_arithmetic" else ties_sum(deltas, 0.3)
    values = {"merge": kind, "density": 0.3, "tall_mask_lambda": thresholds}
    assert merge("tall_mask", deltas, **values) == pytest.approx(total, rel=1e-6)
    for expert, mask in enumerate(masks_of(deltas, total, thresholds)):
        found = merge("tall_mask", deltas, task=f"e{expert}", **values)
        assert found == pytest.approx(total * mask, rel=1e-6)
        assert 0.1 < mask.mean() < 0.9


def test_masks_are_strict_and_leave_what_nobody_changed():
    deltas = [[1.0, 0.0, 1.0, 2.0], [2.0, 0.0, -1.0, 0.0]]
    kept = merge("tall_mask", deltas, task="e0", tall_mask_lambda=0.5)
    assert kept.tolist() == [0, 0, 0, 2]  # 1 > 0.5 * 2 is false
    assert merge("tall_mask", deltas, task="e0", tall_mask_lambda={"e0": 0.49, "e1": 3.0}).tolist() == [3, 0, 0, 2]
    one = merge("tall_mask", [[1.0, 0.0, -2.0]], task="e0")
    assert one.tolist() == [1, 0, -2]


@pytest.mark.parametrize("value", [0.0, -0.4, float("inf"), float("nan")])
@pytest.mark.parametrize("method", ["tall_mask", "consensus"])
def test_thresholds_that_mean_nothing_are_refused(method, value):
    with pytest.raises(RecipeError, match=r"parameters\.tall_mask_lambda.*" + f"{value:g}"):
        merge(method, [[1.0], [2.0]], tall_mask_lambda=[0.4, value])


def test_unknown_tasks_are_refused_by_name():
    for method in ("tall_mask", "emr"):
        with pytest.raises(RecipeError, match=r"parameters\.task: unknown expert 'e9'"):
            merge(method, [[1.0], [2.0]], task="e9")


@pytest.mark.parametrize("kind", ["task_arithmetic", "ties"])
def test_consensus_by_definition_and_its_counts(kind):
    deltas = random_deltas(4, 3000, 1)
    deltas[:, :100] = 0
    total = deltas.astype(np.float64).sum(axis=0) if kind == "task_arithmetic" else ties_sum(deltas, 0.2)
    used = masks_of(deltas, total, [0.4] * 4).sum(axis=0)
    named = {f"e{i}": {"w": d} for i, d in enumerate(deltas)}
    for k in range(5):
        facts = {}
        found = merge_state_dicts(
            "consensus", {"w": np.zeros(3000, np.float32)}, named, k=k, alpha=0.5, merge=kind, facts=facts
        )["w"]
        assert found == pytest.approx(np.where(used >= k, 0.5 * total, 0), rel=1e-6)
        assert facts["w"] == {
            "catastrophic": int((used == 0).sum()) - 100,
            "selfish": int((used == 1).sum()),
            "general": int((used > 1).sum()),
        }
        assert sum(facts["w"].values()) == 2900


def test_consensus_counts_do_not_depend_on_chunks():
    deltas = random_deltas(3, 9000, 2)
    named = {f"e{i}": {"w": d} for i, d in enumerate(deltas)}
    told = []
    for chunk in (4096, 1 << 20):
        facts = {}
        merge_state_dicts("consensus", {"w": np.zeros(9000, np.float32)}, named, chunk=chunk, facts=facts)
        told.append(facts)
    assert told[0] == told[1]


def test_consensus_at_the_edges():
    deltas = [[1.0, -2.0, 0.0], [1.0, 3.0, 0.0]]
    plain = merge("task_arithmetic", deltas, lambda_=0.7)
    assert merge("consensus", deltas, k=0, alpha=0.7).tolist() == plain.tolist()
    with pytest.warns(UserWarning, match=r"k 3 is more than the 2 expert\(s\)"):
        assert merge("consensus", deltas, k=3).tolist() == [0, 0, 0]
    with pytest.warns(UserWarning, match="k 2 is more than the 1"):
        assert merge("consensus", deltas[:1]).tolist() == [0, 0, 0]
    assert merge("consensus", deltas[:1], k=1, alpha=1.0).tolist() == deltas[0]
    for wrong in (-1, 1.5, True, "two"):
        with pytest.raises(RecipeError, match=r"parameters\.k"):
            merge("consensus", deltas, k=wrong)


def test_emr_by_definition():
    deltas = random_deltas(3, 2000, 3)
    deltas[:, ::7] = 0
    sign = np.where(deltas.astype(np.float64).mean(axis=0) > 0, 1.0, -1.0)
    agrees = deltas * sign > 0
    unified = sign * np.where(agrees, np.abs(deltas), 0).max(axis=0)
    base = {"a": np.zeros(500, np.float32), "b": np.zeros(1500, np.float32)}
    named = {f"e{i}": {"a": d[:500], "b": d[500:]} for i, d in enumerate(deltas)}

    def together(merged):
        return np.concatenate([merged["a"], merged["b"]])

    assert together(merge_state_dicts("emr", base, named)).tolist() == unified.astype(np.float32).tolist()
    parts = (slice(0, 500), slice(500, 2000))
    for expert in range(3):
        own, kept = np.abs(deltas[expert].astype(np.float64)), np.abs(agrees[expert] * unified)
        rescaler = sum(own[p].mean() for p in parts) / sum(kept[p].mean() for p in parts)
        facts = {}
        found = together(merge_state_dicts("emr", base, named, task=f"e{expert}", facts=facts))
        assert found == pytest.approx(rescaler * agrees[expert] * unified, rel=1e-6)
        assert facts["a"]["rescaler"] == pytest.approx(rescaler) == facts["b"]["rescaler"]


def test_emr_at_the_edges():
    assert merge("emr", [[1.0, -1.0], [-1.0, 1.0]]).tolist() == [-1, -1]  # a mean of zero elects minus
    one = [1.0, -2.0, 0.0]
    assert merge("emr", [one], task="e0").tolist() == one
    assert merge("emr", [one, [0.0] * 3], task="e1").tolist() == [0, 0, 0]
    with pytest.warns(UserWarning, match="mask is empty"):
        assert merge("emr", [[3.0, -3.0], [-1.0, 1.0]], task="e1").tolist() == [0, 0]


def test_localize_and_stitch_by_definition():
    deltas, shares = random_deltas(4, 5000, 4), [0.1, 0.3, 0.5, 1.0]
    limits = [np.sort(np.abs(d))[-int(s * 5000)] for d, s in zip(deltas, shares, strict=True)]
    masks = np.abs(deltas) >= np.array(limits)[:, None]
    wanted = (masks * deltas.astype(np.float64)).sum(axis=0) / np.maximum(masks.sum(axis=0), 1)
    cut = 1700
    base = {"a": np.zeros(cut, np.float32), "b": np.zeros(5000 - cut, np.float32)}
    named = {f"e{i}": {"a": d[:cut], "b": d[cut:]} for i, d in enumerate(deltas)}
    merged = merge_state_dicts("localize_and_stitch", base, named, sparsity=shares)
    assert np.concatenate([merged["a"], merged["b"]]) == pytest.approx(wanted, rel=1e-6, abs=1e-10)


def test_localize_and_stitch_at_the_edges():
    equal = [2.0, -2.0, 2.0, 1.0]
    assert merge("localize_and_stitch", [equal], sparsity=0.25).tolist() == [2, -2, 2, 0]  # equals stay together
    assert merge("localize_and_stitch", [equal], sparsity=0.0).tolist() == [0, 0, 0, 0]
    assert merge("localize_and_stitch", [equal], sparsity=0.01).tolist() == [2, -2, 2, 0]  # at least one
    sparse = [[4.0, 0.0, 0.0, 0.0], [2.0, 1.0, 1.0, 1.0]]
    # what an expert did not change is not in its mask, also where the share is larger than its changes
    assert merge("localize_and_stitch", sparse, sparsity=1.0).tolist() == [3, 1, 1, 1]
    with pytest.raises(RecipeError, match="sparsity"):
        merge("localize_and_stitch", [equal], sparsity=1.5)


CASES = [
    ("tall_mask", {"task": "b"}),
    ("tall_mask", {"task": "a", "merge": "ties"}),
    ("consensus", {"merge": "ties", "alpha": 1.0}),
    ("consensus", {"k": 1}),
    ("emr", {}),
    ("emr", {"task": "a"}),
    ("localize_and_stitch", {}),
]


@pytest.mark.parametrize(("method", "values"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_never_change_a_byte_and_broken_numbers_are_named(method, values, dtype):
    base, models = make_models({"w": (90, 100), "v": (5000,), "one": (1,), "scalar": ()}, ["a", "b", "c"], 3, dtype)
    whole = merge_state_dicts(method, base, models, chunk=1 << 20, **values)
    for chunk in (1, 8192):
        assert same_bytes(merge_state_dicts(method, base, models, chunk=chunk, **values), whole), chunk
    for broken in (float("nan"), float("inf")):
        models["b"]["w"][50, 7] = broken
        with pytest.raises(NonFiniteError, match="'w': model 'b' holds"), np.errstate(all="ignore"):
            merge_state_dicts(method, base, models, **values)


@pytest.mark.parametrize("method", METHODS)
def test_integers_come_from_the_base_and_small_changes_from_nowhere(method):
    import torch

    base = {"ids": torch.arange(3), "w": torch.full((8,), 256.0, dtype=torch.bfloat16)}
    lost = {"ids": torch.arange(3) + 5, "w": base["w"].clone()}  # changes below the base's last place are gone
    other = {"ids": torch.arange(3), "w": (base["w"] + 8).to(torch.bfloat16)}
    merged = merge_state_dicts(method, base, {"a": lost, "b": other})
    assert merged["ids"].tolist() == [0, 1, 2]
    assert set(merged["w"].tolist()) <= {256.0, 264.0}
    assert same_bytes(merge_state_dicts(method, base, {"a": lost, "b": lost}), base)
