"""Ranks found in one pass where the first chunk told the truth, and in two where it did not."""

import numpy as np
import pytest

from consilience.merging import task
from consilience.merging.memory import merge_state_dicts

ROWS, ROW = 90, 100
METHODS = {
    "ties": {"density": 0.3},
    "breadcrumbs": {"density": 0.5, "gamma": 0.05, "definition": "paper"},
    "sce": {"select_topk": 0.3},
}


@pytest.fixture
def passes(monkeypatch):
    """The surveys that were run, in order."""
    run: list[int] = []
    survey = task.survey_tensor

    def counted(one, steps, index, *rest):
        run.append(index)
        return survey(one, steps, index, *rest)

    monkeypatch.setattr(task, "survey_tensor", counted)
    return run


def models(scales):
    rng = np.random.default_rng(0)
    base = {"w": rng.normal(size=(ROWS, ROW)).astype(np.float32)}
    noise = [rng.normal(size=(ROWS, ROW)) * scales[:, None] for _ in range(2)]
    return base, {f"e{i}": {"w": (base["w"] + n).astype(np.float32)} for i, n in enumerate(noise)}


@pytest.mark.parametrize("method", METHODS)
def test_one_pass_is_enough_where_the_tensor_is_alike_all_over(method, passes):
    base, experts = models(np.ones(ROWS))
    merged = merge_state_dicts(method, base, experts, chunk=8192, **METHODS[method])["w"]
    assert passes == ([0, 2] if method == "sce" else [0])
    again = merge_state_dicts(method, base, experts, chunk=1 << 20, **METHODS[method])["w"]
    assert merged.tobytes() == again.tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_a_second_pass_corrects_a_first_chunk_that_misleads(method, passes):
    base, experts = models(np.where(np.arange(ROWS) < 41, 1e-4, 1.0))
    merged = merge_state_dicts(method, base, experts, chunk=8192, **METHODS[method])["w"]
    assert passes == ([0, 1, 2] if method == "sce" else [0, 1])
    again = merge_state_dicts(method, base, experts, chunk=1 << 20, **METHODS[method])["w"]
    assert merged.tobytes() == again.tobytes()


def test_what_is_kept_is_what_sorting_keeps(passes):
    base, experts = models(np.ones(ROWS))
    delta = (experts["e0"]["w"].astype(float) - base["w"]).astype(np.float32).ravel()
    merged = merge_state_dicts("ties", base, {"e0": experts["e0"]}, chunk=8192, density=0.3)["w"].ravel()
    largest = np.argsort(-np.abs(delta), kind="stable")[: int(0.3 * delta.size)]
    assert set(np.flatnonzero(merged != base["w"].ravel())) == set(largest) and passes == [0]
