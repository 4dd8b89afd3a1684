"""Numbers per expert that training wrote down: from the recipe, from a JSON file, or from records beside the experts.

Read are, in this order: the state of Hugging Face's trainer (trainer_state.json in the checkpoint), our own record of
a run (expert.json in the folder of the run), and a list of checkpoints (trajectory.json there). A notice says what was
used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from consilience.checkpoints.model import Checkpoint
from consilience.errors import Problems, did_you_mean
from consilience.merging.adapter_inputs import run_folder, step_of
from consilience.merging.method import Method
from consilience.merging.parameters import MISSING, Level, ParameterTable
from consilience.merging.request import MergeRequest

__all__ = ["with_records"]


@dataclass(frozen=True)
class _Found:
    value: float
    where: str


def with_records(
    request: MergeRequest, method: Method, models: Mapping[str, Checkpoint], problems: Problems, notices: list[str]
) -> MergeRequest:
    """Return the request with the recorded parameters that the recipe leaves out, or gives as a JSON file, filled in.

    A JSON file holds {expert: number}. Problems name the expert and where a number was looked for.
    """
    for name, parameter in method.parameters.items():
        forms = list(request.parameters.forms(name))
        files = [form for level, form in forms if level.expert is None and isinstance(form, str)]
        if parameter.recorded is not None and len(request.experts) == 1:
            notices.append(f"one expert only; method {request.method!r} returns it unchanged")
        if parameter.recorded is None or (forms and not files):
            continue
        if files:
            values, source = _from_file(files[0], name, request, problems)
        else:
            metric = _setting(request, method, parameter.recorded.metric)
            window = int(_setting(request, method, parameter.recorded.window))
            values, source = _from_records(name, str(metric), window, request, models, problems)
        shown = ", ".join(f"{expert} {found.value:g}{found.where}" for expert, found in values.items())
        if shown:
            notices.append(f"parameters.{name}: taken from {source}: {shown}")
        levels = [_without(level, name) for level in request.parameters.levels]
        own = [Level({name: found.value}, expert=expert) for expert, found in values.items()]
        request = replace(request, parameters=ParameterTable((*own, *levels)))
    return request


def _without(level: Level, name: str) -> Level:
    return replace(level, values={key: form for key, form in level.values.items() if key != name})


def _setting(request: MergeRequest, method: Method, name: str) -> Any:
    """Return the value of a parameter of the whole merge."""
    value = request.parameters.value(name, expert=None, slice=0, source_name="", output_name="", position=0.0)
    return method.parameters[name].default if value is MISSING else value


def _from_file(written: str, name: str, request: MergeRequest, problems: Problems) -> tuple[dict[str, _Found], str]:
    path = next((p for p in (Path(written), request.folder / written) if p.is_file()), None)
    where = f"parameters.{name}: {written!r}"
    if path is None:
        problems.add(f"{where} is neither a number nor a JSON file that is there")
        return {}, written
    content = _json(path)
    if not isinstance(content, Mapping):
        problems.add(f"{where}: expected {{expert: number}} for {', '.join(request.experts)}")
        return {}, written
    for key in content:
        if key not in request.experts:
            problems.add(f"{where}: unknown expert {key!r}{did_you_mean(str(key), request.experts)}")
    found = {}
    for expert in request.experts:
        value = content.get(expert)
        if _is_number(value):
            found[expert] = _Found(float(value), "")
        else:
            problems.add(f"{where}: no number for expert {expert!r}")
    return found, written


def _from_records(
    name: str,
    metric: str,
    window: int,
    request: MergeRequest,
    models: Mapping[str, Checkpoint],
    problems: Problems,
) -> tuple[dict[str, _Found], str]:
    readers = {"loss": lambda folder: _loss(folder, window), "steps": _steps}
    if metric not in readers:
        problems.add(
            f"parameters.{name}: metric {metric!r} is recorded nowhere; give {{expert: number}} or a JSON file"
        )
        return {}, ""
    found = {}
    for expert in request.experts:
        model = models.get(expert)
        if model is None:
            continue
        folder = model.adapters[-1].folder if model.adapters else model.folder
        value = readers[metric](folder)
        if value is None:
            problems.add(
                f"parameters.{name}: no {metric} is recorded for expert {expert!r}: neither trainer_state.json nor "
                f"expert.json or trajectory.json of its run say it ({folder}); give {{expert: number}} or a JSON file"
            )
        else:
            found[expert] = value
    return found, "the records beside the experts"


def _json(path: Path) -> Any:
    """Return the content of a JSON file; None where there is none, or it is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _record(path: Path) -> Mapping[str, Any]:
    content = _json(path)
    return content if isinstance(content, Mapping) else {}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _steps(folder: Path) -> _Found | None:
    state = _record(folder / "trainer_state.json")
    if _is_number(state.get("global_step")):
        return _Found(float(state["global_step"]), " (global_step of trainer_state.json)")
    step = step_of(folder)
    if step is not None:
        return _Found(float(step), " (name of its folder)")
    record = _record(folder / "expert.json")
    settings = record.get("settings")
    for steps in (settings.get("steps") if isinstance(settings, Mapping) else None, record.get("steps")):
        if _is_number(steps):
            return _Found(float(steps), " (expert.json)")
    return None


def _loss(folder: Path, window: int) -> _Found | None:
    state = _record(folder / "trainer_state.json")
    logged = [
        entry["loss"]
        for entry in state.get("log_history") or []
        if isinstance(entry, Mapping)
        and _is_number(entry.get("loss"))
        and _is_number(entry.get("step"))
        and entry["step"] <= state.get("global_step", math.inf)
    ]
    if logged:
        return _mean(logged, window, "trainer_state.json")
    run, step = run_folder(folder), step_of(folder)
    losses = _record(run / "expert.json").get("loss")
    every = losses.get("every_step") if isinstance(losses, Mapping) else None
    if isinstance(every, list) and every and all(map(_is_number, every)) and (step or 0) <= len(every):
        return _mean(every[:step], window, "expert.json")
    checkpoints = _record(run / "trajectory.json").get("checkpoints")
    for entry in checkpoints if isinstance(checkpoints, list) else []:
        if isinstance(entry, Mapping) and entry.get("step") == step and _is_number(entry.get("train_loss")):
            return _Found(float(entry["train_loss"]), " (train_loss of trajectory.json)")
    return None


def _mean(logged: list[float], window: int, where: str) -> _Found:
    """Return the mean of the last logged values."""
    last = logged[-window:]
    return _Found(math.fsum(last) / len(last), f" (mean of the last {len(last)} of {where})")
