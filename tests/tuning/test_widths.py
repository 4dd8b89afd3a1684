"""The search for widths: within the budget, wider where preferred, wrong requests named."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.errors import RequestError
from consilience.models.slimmable import SlimmableConfig
from consilience.tuning.widths import search_widths

CONFIG = SlimmableConfig(16, (24, 12), 20, {"a": 5, "b": 2, "c": 9})
SCORES = {task: {(e, d): 0.3 * e + 0.7 * d for e in CONFIG.choices for d in CONFIG.choices} for task in CONFIG.outputs}
SHARES = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda values: sum(values) > 1e-3)


@settings(max_examples=80, deadline=None)
@given(SHARES, st.floats(0.3, 1.5))
def test_the_budget_is_kept_and_tasks_of_no_interest_cost_nothing(values, budget):
    preference = dict(zip("abc", values, strict=True))
    found = search_widths(CONFIG, SCORES, budget=budget, preference=preference)
    assert found.cost == CONFIG.cost(found.widths) <= budget * CONFIG.cost(CONFIG.full)
    for task, value in preference.items():
        assert (found.widths.decoders[task] == 0) == (value == 0)


def test_a_task_gets_wider_with_its_preference():
    widths = []
    for share in (0.05, 0.35, 0.9):
        preference = {"a": share, "b": (1 - share) / 2, "c": (1 - share) / 2}
        widths.append(search_widths(CONFIG, SCORES, budget=0.5, preference=preference).widths.decoders["a"])
    assert widths == sorted(widths) and widths[0] < widths[-1]


def test_wrong_requests_are_named():
    with pytest.raises(RequestError, match=r"(?s)'x' is unknown.*b is -1"):
        search_widths(CONFIG, SCORES, budget=1, preference={"x": 1, "b": -1})
    with pytest.raises(RequestError, match="all preferences are 0"):
        search_widths(CONFIG, SCORES, budget=1, preference={"a": 0})
    with pytest.raises(RequestError, match="budget is nan"):
        search_widths(CONFIG, SCORES, budget=float("nan"), preference={"a": 1})
    least = CONFIG.cost(CONFIG.smallest)
    with pytest.raises(RequestError, match=f"the smallest network for a, b, c takes {least}"):
        search_widths(CONFIG, SCORES, budget=0.05, preference={"a": 1, "b": 1, "c": 1})
