"""Statistics kept for the whole model: the same surveys, finished over all tensors at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from consilience.core.executor import run_tasks
from consilience.merging.steps import Statistics, WholeSurvey
from consilience.merging.task import DEFAULT_CHUNK, TensorTask, survey_tensor

__all__ = ["model_statistics"]


def model_statistics(
    tasks: Sequence[TensorTask],
    *,
    workers: int = 1,
    chunk: int = DEFAULT_CHUNK,
    check: Callable[[], None] = lambda: None,
    advance: Callable[[float], None] = lambda amount: None,
    device: str = "cpu",
) -> dict[str, Statistics]:
    """Return the statistics of every tensor whose method keeps them globally; empty where none does.

    Tensors count in the order of their names, whatever order or number of threads read them. `advance` is told the
    bytes read.
    """
    merged = [t for t in sorted(tasks, key=lambda t: t.name) if t.copy is None and t.numel]
    bound = [(task, task.steps()) for task in merged]
    chosen = [(task, steps) for task, steps in bound if steps.scope == "global"]
    if not chosen:
        return {}
    known: list[Statistics] = [{} for _ in chosen]
    surveyed = [place for place, (task, steps) in enumerate(chosen) if steps.surveyed(task.name, task.shape)]
    sizes = [chosen[place][0].numel for place in surveyed]
    for index, survey in enumerate(chosen[0][1].surveys if surveyed else ()):

        def one(place: int, index: int = index) -> object:
            task, steps = chosen[place]
            state = survey_tensor(task, steps, index, known[place], chunk, check, device)
            advance(task.pass_bytes)
            return state

        at_once = 1 if isinstance(survey, WholeSurvey) else workers
        states = [state for _, state in run_tasks(one, surveyed, workers=at_once)]
        survey.finish(states, sizes, [known[place] for place in surveyed])
    return {task.name: statistics for (task, _), statistics in zip(chosen, known, strict=True)}
