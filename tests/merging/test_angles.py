"""Methods of angles and norms: slerp's relatives, the Karcher mean, Model Stock, and what they do at the edges."""

import itertools

import numpy as np
import pytest

from consilience.errors import NonFiniteError, RecipeError, WorkError
from consilience.merging.memory import merge_state_dicts
from tests.merging.laws import make_models, same_bytes


def merge(method, experts, base=None, **parameters):
    """Merge one tensor."""
    named = {f"e{i}": {"w": np.asarray(e)} for i, e in enumerate(experts)}
    return merge_state_dicts(method, None if base is None else {"w": np.asarray(base)}, named, **parameters)["w"]


def spread_out(count, shape, seed=0):
    """Tensors that point anywhere."""
    return list(np.random.default_rng(seed).normal(size=(count, *shape)))


def slerped(a, b, t):
    angle = np.arccos(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4), (5,), (6, 1), (1, 6)])
@pytest.mark.parametrize("row_wise", [False, True])
def test_nuslerp_takes_an_angle_per_vector(shape, row_wise):
    base, a, b = spread_out(3, shape)
    merged = merge("nuslerp", [a, b], base, weight=[1.0, 2.0], nuslerp_flatten=False, nuslerp_row_wise=row_wise)
    axis = 0 if row_wise else -1
    x, y, out = (np.moveaxis(v - base, axis, -1).reshape(-1, shape[axis]) for v in (a, b, merged))
    for one, two, got in zip(x, y, out, strict=True):
        if len(one) > 1:
            assert got == pytest.approx(slerped(one, two, 2 / 3), rel=1e-9)
        else:  # numbers are parallel or opposite: linear
            assert got == pytest.approx((one + 2 * two) / 3, rel=1e-9)


def test_nuslerp_of_a_vanished_or_parallel_vector():
    x = np.array([3.0, 4.0])
    assert merge("nuslerp", [x, 2 * x], weight=[1.0, 1.0]) == pytest.approx(1.5 * x)
    assert merge("nuslerp", [x, 0 * x], weight=[1.0, 1.0]) == pytest.approx(x * np.sin(np.pi / 4))
    assert merge("nuslerp", [x, x[::-1].copy()], weight=[1.0, -1.0]) == pytest.approx(slerped(x, x[::-1], 0.5))
    base = np.array([1.0, -0.0])
    assert merge("nuslerp", [base, base], base, weight=[0.3, 0.4]).tobytes() == base.tobytes()


def test_nuslerp_takes_two():
    with pytest.raises(RecipeError, match="at most 2"):
        merge("nuslerp", spread_out(3, (2,)), weight=1.0)


def test_multislerp_is_the_mean_direction_with_the_mean_norm():
    experts, weight = spread_out(4, (3, 5)), np.array([0.1, 0.2, 0.3, 0.4])
    norms = [np.linalg.norm(e) for e in experts]
    mean = sum(w * e / n for w, e, n in zip(weight, experts, norms, strict=True))
    wanted = mean / np.linalg.norm(mean) * (weight @ norms)
    assert merge("multislerp", experts, weight=list(weight * 3)) == pytest.approx(wanted, rel=1e-9)
    wanted = mean / np.linalg.norm(mean) * (weight @ norms) * 3
    unscaled = merge("multislerp", experts, weight=list(weight * 3), normalize_weights=False)
    assert unscaled == pytest.approx(wanted, rel=1e-9)


def test_multislerp_of_inputs_that_cancel():
    x, y = np.array([3.0, 4.0]), np.array([-4.0, 3.0])
    assert merge("multislerp", [x, -2 * x]) == pytest.approx(-0.5 * x)
    with pytest.raises(WorkError, match=r"tensor 'w'.*4 inputs cancel"):
        merge("multislerp", [x, -x, y, -y])
    third = np.array([np.cos(2), np.sin(2)]), np.array([np.cos(2 + 2 * np.pi / 3), np.sin(2 + 2 * np.pi / 3)])
    with pytest.raises(WorkError, match=r"tensor 'w'"):
        merge("multislerp", [*third, -(third[0] + third[1])])
    with pytest.raises(RecipeError, match="sum to 0"):
        merge("multislerp", [x, y], weight=[1.0, -1.0])
    assert merge("multislerp", [0 * x] * 3).tolist() == [0, 0]
    assert merge("multislerp", [x, x, x], x).tolist() == x.tolist()
    assert merge("multislerp", [x + y, x, x], x) == pytest.approx(x + y / 3)


def karcher_by_hand(experts, steps):
    """The iteration on the vectors themselves."""
    units = [e / np.linalg.norm(e) for e in experts]
    u = sum(units) / np.linalg.norm(sum(units))
    for _ in range(steps):
        angles = [np.arccos(np.clip(u @ v, -1, 1)) for v in units]
        step = sum(a / np.sin(a) * (v - np.cos(a) * u) for a, v in zip(angles, units, strict=True)) / len(units)
        size = np.linalg.norm(step)
        if size < 1e-5:
            break
        u = np.cos(size) * u + np.sin(size) * step / size
    return u * np.mean([np.linalg.norm(e) for e in experts])


@pytest.mark.parametrize("steps", [0, 1, 2, 30])
@pytest.mark.parametrize("size", [3, 40])
def test_karcher_iterates_in_coefficients(steps, size):
    experts = [e * (i + 1) for i, e in enumerate(spread_out(4, (size,)))]
    assert merge("karcher", experts, max_iter=steps) == pytest.approx(karcher_by_hand(experts, steps), rel=1e-7)


def test_karcher_of_vanished_opposite_and_tiny_tensors():
    x, y = np.array([3.0, 4.0]), np.array([4.0, -3.0])
    assert merge("karcher", [x, 0 * x, x]) == pytest.approx(x * 2 / 3)
    assert merge("karcher", [0 * x, 0 * x]).tolist() == [0, 0]
    assert merge("karcher", [2 * x, -x]) == pytest.approx(1.5 * x)
    assert merge("karcher", [x]).tolist() == x.tolist()
    assert merge("karcher", [1e-9 * x, 1e-9 * y]) == pytest.approx(1e-9 * (x + y) / np.sqrt(2), abs=1e-15)
    assert merge("karcher", [x, x * 1.5, x * 2]) == pytest.approx(1.5 * x)


def stock_ratio(deltas):
    """The ratio from the definition."""
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.combinations(deltas, 2)]
    cosine, count = np.mean(cosines), len(deltas)
    return count * cosine / (1 + (count - 1) * cosine)


@pytest.mark.filterwarnings("ignore:model_stock")
@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_by_definition(filter_wise):
    base, *experts = spread_out(4, (5, 7))
    deltas = [e - base for e in experts]
    rows = range(5) if filter_wise else [slice(None)]
    wanted = base + np.mean(deltas, axis=0)
    for row in rows:
        wanted[row] = base[row] + stock_ratio([d[row].ravel() for d in deltas]) * np.mean(deltas, axis=0)[row]
    assert merge("model_stock", experts, base, filter_wise=filter_wise) == pytest.approx(wanted, rel=1e-9)


def test_model_stock_at_the_edges():
    base, x, y = np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([4.0, -3.0])
    assert merge("model_stock", [base + x, base + x], base) == pytest.approx(base + x)
    assert merge("model_stock", [base + x, base + y], base) == pytest.approx(base)
    with pytest.warns(UserWarning, match="negative"):
        pushed = merge("model_stock", [base + x, base + y - x / 2], base)
    assert pushed == pytest.approx(base + stock_ratio([x, y - x / 2]) * (x / 4 + y / 2))
    for filter_wise in (False, True):
        assert merge("model_stock", [base + x, base - x], base, filter_wise=filter_wise).tolist() == base.tolist()
        assert merge("model_stock", [base, base], base, filter_wise=filter_wise).tolist() == base.tolist()
        assert merge("model_stock", [base + x, base], base, filter_wise=filter_wise).tolist() == base.tolist()
    tiny = [base * 0 + x * 1e-4, base * 0 + x * 1e-4]
    assert merge("model_stock", tiny, 0 * base) == pytest.approx(x * 1e-4)
    shrunk = merge("model_stock", tiny, 0 * base, guard="absolute")  # cosine 25e-8 / 1e-6
    assert shrunk == pytest.approx(x * 1e-4 * 2 * 0.25 / 1.25)
    with pytest.raises(RecipeError, match="at least 2"):
        merge("model_stock", [x], base)


@pytest.mark.filterwarnings("ignore:model_stock")
@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("nuslerp", {"weight": 1.0}),
        ("nuslerp", {"weight": 1.0, "nuslerp_flatten": False}),
        ("nuslerp", {"weight": 1.0, "nuslerp_flatten": False, "nuslerp_row_wise": True}),
        ("multislerp", {}),
        ("karcher", {}),
        ("model_stock", {}),
        ("model_stock", {"filter_wise": True}),
    ],
)
def test_chunks_and_broken_numbers(method, values):
    base, models = make_models({"w": (90, 100), "v": (5000,), "c": (9, 3, 200)}, ["a", "b"], 3, "bfloat16")
    whole = merge_state_dicts(method, base, models, chunk=1 << 20, **values)
    for chunk in (1, 4096, 8192):
        assert same_bytes(merge_state_dicts(method, base, models, chunk=chunk, **values), whole), chunk
    for broken in (float("nan"), float("inf")):
        models["b"]["w"][50, 7] = broken
        with pytest.raises(NonFiniteError, match="'w': model 'b' holds"):
            merge_state_dicts(method, base, models, **values)
