"""When learners stop: flat and diverging objectives, NaN, no data, too little data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from consilience.core.jobs import Job
from consilience.errors import CancelledError, RequestError, WorkError
from consilience.tuning.adamerging import adamerging
from consilience.tuning.atlas import atlas
from consilience.tuning.atlas_adaptation import atlas_adaptation
from consilience.tuning.evolution import evolution
from consilience.tuning.expert_merging import expert_merging
from consilience.tuning.frank_wolfe import frank_wolfe
from consilience.tuning.self_positioning import self_positioning
from tests.tuning.tasks import Tasks
from tests.tuning.test_self_positioning import Setting as Words

Learner = Callable[..., Any]
State = dict[str, Tensor]

CLASSIFIED: dict[str, tuple[Learner, dict[str, Any]]] = {
    "adamerging": (adamerging, {"steps": 2}),
    "expert_merging": (expert_merging, {"steps": 2, "batch": 8}),
    "atlas": (atlas, {"steps": 2}),
    "atlas_adaptation": (atlas_adaptation, {"steps": 2}),
    "frank_wolfe": (frank_wolfe, {"iterations": 1}),
    "frank_wolfe_soft": (frank_wolfe, {"iterations": 1, "variant": "soft", "learning_steps": 2}),
    "evolution": (evolution, {"budget": 7}),
}
NAMES = [*CLASSIFIED, "self_positioning"]
NAN = float("nan")


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    return Tasks()


@pytest.fixture(scope="module")
def words() -> Words:
    return Words()


class Case:
    """A learner with what it is given, ready to be spoilt."""

    def __init__(self, name: str, tasks: Tasks, words: Words) -> None:
        given = words if name == "self_positioning" else tasks
        self.learner, options = CLASSIFIED.get(name, (self_positioning, {"steps": 2, "batch": 16}))
        self.options = dict(options)
        self.base: State = dict(given.base)
        self.experts: dict[str, State] = dict(given.experts)
        self.models: dict[str, Any] = dict(given.models)
        self.examples: dict[str, list[Any]] = dict(words.probes if isinstance(given, Words) else given.examples)
        self.task = next(iter(self.models))

    def run(self) -> Any:
        return self.learner(self.base, self.experts, self.models, self.examples, **self.options)


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest, tasks: Tasks, words: Words) -> Case:
    return Case(request.param, tasks, words)


def broken(state: State) -> tuple[State, str]:
    """The state with one NaN in its first float tensor, and the tensor's name."""
    name = next(n for n, value in state.items() if value.is_floating_point())
    value = state[name].clone()
    value.view(-1)[0] = NAN
    return {**state, name: value}, name


def test_nan_in_the_base_is_named(case: Case) -> None:
    case.base, tensor = broken(case.base)
    with pytest.raises(RequestError, match=f"the base: NaN or infinity in {tensor}"):
        case.run()


def test_nan_in_an_expert_is_named(case: Case) -> None:
    case.experts[case.task], tensor = broken(case.experts[case.task])
    with pytest.raises(RequestError, match=rf"'{case.task}': NaN or infinity in {tensor}"):
        case.run()


@pytest.mark.parametrize("name", CLASSIFIED)
def test_nan_in_the_examples_names_the_task(name: str, tasks: Tasks, words: Words) -> None:
    case = Case(name, tasks, words)
    case.examples["blue"] = [(x * NAN, y) for x, y in case.examples["blue"]]
    with pytest.raises((RequestError, WorkError), match="blue") as caught:
        case.run()
    assert "'red'" not in str(caught.value)


def test_no_data_is_refused(case: Case) -> None:
    case.examples[case.task] = []
    with pytest.raises(RequestError, match=rf"task '{case.task}' has (no|0) (examples|inputs|pairs)"):
        case.run()
    case.models, case.examples = {}, {}
    with pytest.raises(RequestError, match=r"each task needs"):
        case.run()


def test_too_few_examples_are_refused(case: Case) -> None:
    case.models[case.task].in_batch = True  # what is to be chosen from is the batch
    try:
        case.examples[case.task] = case.examples[case.task][:1]
        if case.learner is not self_positioning:
            case.options["batch"] = 1
            batches = f".*'{case.task}': batches of 1; .* use 2 or more"
        else:
            batches = ""
        wanted = rf"(?s)task '{case.task}' has (one example|1 pairs).*(2|4).*{batches}"
        if case.learner is atlas_adaptation:
            wanted = rf"task '{case.task}': its outcomes are the documents of a batch; adaptation needs a classifier"
        with pytest.raises(RequestError, match=wanted):
            case.run()
    finally:
        del case.models[case.task].in_batch


def test_coefficients_without_a_slope_end_the_work(tasks: Tasks) -> None:
    found = adamerging(tasks.base, tasks.experts, tasks.models, tasks.examples, start=1.2, steps=90, tolerance=None)
    assert found.trace[-1]["step"] == 30  # the clamp leaves no gradient, whatever is in the batches
    assert found.notices[0] == (
        "no coefficient moved over the last 30 steps: the objective is flat; stopped at step 30 of 90"
    )
    same = dict.fromkeys(tasks.experts, tasks.base)
    nothing = atlas(tasks.base, same, tasks.models, tasks.examples, steps=90, every=5)
    assert nothing.trace[-1]["step"] == 20 and "the objective is flat" in nothing.notices[0]
    assert not nothing.values.any()


def test_a_loss_that_stays_ends_the_work_though_coefficients_move(tasks: Tasks) -> None:
    same = dict.fromkeys(tasks.experts, tasks.base)
    given: dict[str, Any] = {"regularisation": 0.0, "batch": 48, "accumulation": 2, "weight_decay": 0.1}
    found = expert_merging(tasks.base, same, tasks.models, tasks.examples, steps=90, **given)
    assert found.trace[-1]["step"] == 30 and not torch.allclose(found.values, torch.tensor(0.1))
    assert "the loss stayed at" in found.notices[0] and "stopped at step 30 of 90" in found.notices[0]
    assert found.facts["end"] == pytest.approx(found.facts["start"])


def test_slow_descent_is_not_flat(tasks: Tasks) -> None:
    given: dict[str, Any] = {
        "steps": 60,
        "learning_rate": 1e-4,
        "tolerance": None,
        "batch": 48,
        "batches": 1,
    }  # all inputs, each step
    found = adamerging(tasks.base, tasks.experts, tasks.models, tasks.examples, **given)
    assert found.trace[-1]["step"] == 60 and not any("flat" in notice for notice in found.notices)
    assert found.facts["end"]["entropy"] < found.facts["start"]["entropy"]


@pytest.mark.parametrize("learner", [atlas, expert_merging])
def test_a_loss_that_rises_far_ends_the_work_at_the_best_point(tasks: Tasks, learner: Learner) -> None:
    free = {"constrained": False, "batch": 16} if learner is expert_merging else {"penalty": 2}
    found = learner(
        tasks.base, tasks.experts, tasks.models, tasks.examples, steps=60, every=5, learning_rate=1e4, clip=None, **free
    )
    assert found.trace[-1]["step"] < 60
    assert "it diverges; stopped there" in found.notices[0] and "lower the learning rate" in found.notices[0]
    best = max(found.trace, key=lambda entry: entry["score"])
    if learner is expert_merging:
        assert found.facts["end"] == pytest.approx(best["imitation"])
    accuracy = tasks.mean_accuracy(found.state())
    assert accuracy >= tasks.mean_accuracy(tasks.base) - 0.05


def test_a_resumed_run_stops_where_the_whole_one_does(tasks: Tasks, tmp_path: Path) -> None:
    same = dict.fromkeys(tasks.experts, tasks.base)
    given = (tasks.base, same, tasks.models, tasks.examples)
    options: dict[str, Any] = {"steps": 90, "batch": 48, "accumulation": 2, "regularisation": 0.0}
    whole = expert_merging(*given, **options)
    with Job(tmp_path / "out", kind="learn", request={"x": 1}) as job:
        record = job.record

        def stop(key: str, **facts: Any) -> None:
            record(key, **facts)
            if key == "step 20":
                job.cancel()

        job.record = stop  # type: ignore[method-assign]
        with pytest.raises(CancelledError):
            expert_merging(*given, job=job, **options)
    with Job(tmp_path / "out", kind="learn", request={"x": 1}) as job:
        again = expert_merging(*given, job=job, **options)
    assert torch.equal(again.values, whole.values)
    assert (again.trace, again.notices) == (whole.trace, whole.notices) and whole.trace[-1]["step"] == 30
