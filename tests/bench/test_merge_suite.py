"""Suites for merged experts: what is refused, what is measured, what the numbers mean."""

import numpy as np
import pytest
import torch

from consilience.bench.experiments import Workbench
from consilience.bench.experiments.merge_suite import Entry, MergeSuite
from consilience.bench.experiments.suite_run import SuiteRun
from consilience.errors import DataError, RequestError
from tests.bench.test_experiments import Toy

SUITE = """
version: 1
domains:
  first: {expert: a, tests: [a@test], validation: [a@dev]}
  second: {expert: b, tests: [b@test], validation: [b@dev]}
forgetting: [c@test]
methods:
  - {name: average, method: linear}
  - {name: TA, method: task_arithmetic, grid: {lambda: [0.0, 1.0, 2.0]}}
  - {name: trimmed, method: ties, parameters: {density: 0.5}, grid: {lambda: [0.5, 1.0]}}
  - {name: Fisher, method: fisher, needs: [fisher]}
"""


class Biased(Toy):
    """A base that knows a little of every task."""

    def base(self, seed):
        return {"w": torch.full((12,), 0.1), "steps": torch.tensor(3)}

    def expert(self, task, seed):
        return {"w": self.base(seed)["w"] + self._direction(task), "steps": torch.tensor(9)}


@pytest.fixture
def ran(tmp_path):
    (tmp_path / "small.yml").write_text(SUITE)
    suite = MergeSuite.open(tmp_path / "small.yml")
    return SuiteRun(suite, Workbench(Biased(), cache=tmp_path, tasks=suite.experts))


def test_a_suite_is_read(tmp_path):
    (tmp_path / "small.yml").write_text(SUITE)
    suite = MergeSuite.open(tmp_path / "small.yml")
    assert suite.name == "small" and suite.experts == ("a", "b") and suite.forgetting == (Entry("c", "test"),)
    assert suite.domains["second"].validation == (Entry("b", "dev"),) and not suite.subtract_chance
    assert suite.methods[2].parameters == {"density": 0.5} and suite.methods[3].needs == ("fisher",)


def test_all_problems_of_a_suite_are_told_together():
    content = {
        "domains": {
            "x": {"expert": "a", "tests": ["a@test"], "validation": ["a@test"], "metrik": 1},
            "y": {"expert": "a", "tests": ["b"]},
        },
        "forgetting": ["a@test"],
        "methods": [
            {"name": "m", "method": "linear", "grid": {"weight": [1]}},
            {"name": "m", "method": "ties"},
            "ties",
        ],
    }
    with pytest.raises(DataError) as caught:
        MergeSuite.of(content)
    for part in (
        "unknown key 'domains.x.metrik'",
        "a@test: in validation and in test; a task serves one purpose",
        "domains.x.validation: a@test: the split has to be dev",
        "'b': TASK@SPLIT is expected",
        "an expert is there twice",
        "forgetting: a@test: an expert was trained on it",
        "methods: m, m",
        "no validation to choose by",
        "'ties': a mapping with the key 'method'",
    ):
        assert part in str(caught.value), part
    with pytest.raises(DataError, match="cannot be read"):
        MergeSuite.open("nowhere.yml")


def test_references_are_1_by_definition(ran):
    found = {one.name: one for one in ran.references()}
    assert set(found) == {"base", "expert a", "expert b", "multi-task training"}
    assert found["expert a"].performance.by_task["first"] == pytest.approx(1)
    assert found["expert b"].performance.by_task["second"] == pytest.approx(1)
    assert found["base"].forgetting.by_task == {"c@test": pytest.approx(1)}
    assert found["expert a"].accuracy.keys() == {"a@test", "b@test", "c@test"}


def test_methods_are_tuned_timed_and_measured(ran):
    found = {one.name: one for one in ran.methods(repeats=2)}
    assert set(found) == {"average", "TA", "trimmed"}
    assert "cannot be run" in ran.skipped["Fisher"]
    tuned = found["TA"]
    assert tuned.parameters == {"lambda": 1.0} and tuned.trials == 3 and tuned.validation_seconds > 0
    assert 0 < tuned.validation_share < 1 and found["average"].validation_share == 0
    assert len(tuned.cost.cpu) == len(tuned.again.cpu) == 2
    direct = ran.bench.scores(ran.bench.merge("task_arithmetic", **{"lambda": 1.0}))
    own = ran.bench.expert_scores().by_task
    assert tuned.performance.by_task["first"] == pytest.approx(direct.by_task["a"] / own["a"])
    assert found["trimmed"].parameters.keys() == {"density", "lambda"}


def test_several_tests_of_a_domain_count_the_same(tmp_path):
    class Uneven(Biased):
        def scores(self, state, task, split):
            scores = super().scores(state, task, split)
            return scores[:20] if task == "c" else scores

    domains = {
        "x": {"expert": "a", "tests": ["a@test", "c@test"], "validation": ["a@dev"]},
        "y": {"expert": "b", "tests": ["b@test"], "validation": ["b@dev"]},
    }
    suite = MergeSuite.of({"domains": domains, "methods": [{"method": "linear"}]})
    ran = SuiteRun(suite, Workbench(Uneven(), cache=tmp_path, tasks=("a", "b")))
    base = ran.measure(ran.bench.base, "base", "base")
    expert = ran.measure(ran.bench.experts["a"], "expert a", "expert")
    assert expert.performance.by_task["x"] == pytest.approx(1) and len(base.performance.by_example["x"]) == 100
    ratios = [base.accuracy[test] / expert.accuracy[test] for test in ("a@test", "c@test")]
    assert base.performance.by_task["x"] == pytest.approx(np.mean(ratios))


def test_chance_is_taken_off_where_asked(tmp_path):
    content = {
        "domains": {task: {"expert": task, "tests": [f"{task}@test"], "validation": [f"{task}@dev"]} for task in "ab"},
        "forgetting": ["c@test"],
        "methods": [{"method": "linear"}],
        "chance": {"a": 0.5, "b": 0.5, "c": 1.0},
        "subtract_chance": True,
    }
    ran = SuiteRun(MergeSuite.of(content), Workbench(Biased(), cache=tmp_path, tasks=("a", "b")))
    base = ran.measure(ran.bench.base, "base", "base")
    expert = ran.bench.expert_scores().by_task["a"]
    assert base.performance.by_task["a"] == pytest.approx((base.accuracy["a@test"] - 0.5) / (expert - 0.5))
    assert np.isnan(base.forgetting.mean)  # the base is not above the chance of c: undefined, not 0


def test_a_suite_of_other_experts_is_refused(ran, tmp_path):
    with pytest.raises(RequestError, match=r"experts \['a', 'b'\]"):
        SuiteRun(ran.suite, Workbench(Toy(), cache=tmp_path, tasks=("a", "c")))
