"""Pareto fronts on a suite: merge in memory, measure on dev, report the front on held-out queries with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from consilience.bench.bootstrap import combine
from consilience.bench.embeddings import Embedder, role_prompt
from consilience.bench.search import search
from consilience.checkpoints.dtypes import DTYPES, decode
from consilience.core.atomic import write_text_atomic
from consilience.core.hashing import fingerprint
from consilience.core.jobs import MANIFEST, Job
from consilience.core.progress import Progress
from consilience.core.records import read_record
from consilience.data import Suite, measure
from consilience.errors import Problems, RecipeError, RequestError
from consilience.merging.global_scope import model_statistics
from consilience.merging.method import find_method
from consilience.merging.recipe import Recipe, load_recipe
from consilience.merging.task import DEFAULT_CHUNK, merge_tensor
from consilience.tuning.pareto import ParetoFront, ParetoPoint, Search, default_budget, search_pareto
from consilience.tuning.references import moved_reference

if TYPE_CHECKING:
    from consilience.models.encoder import DenseEncoder

__all__ = ["BASE", "ParetoRun", "SuiteObjective", "run_pareto"]

BASE = "base"
_RESAMPLES = 2000
_RECORD = "pareto.json"
_PICTURE = "pareto.svg"

Array = NDArray[np.float64]


class SuiteObjective:
    """A recipe's merge as a function of its experts' weights, measured on a suite.

    recipe: a native recipe whose method has a `weight` per expert that may be 0 for the base (task_arithmetic, ties,
    dare_linear, ...). Experts are read from disk for every merge; memory holds one merged model. Raises RecipeError
    where the recipe cannot be varied, DataError where the suite lacks a split.
    """

    def __init__(self, recipe: Recipe, suite: Suite, *, device: str | None = None, progress: Progress | None = None):
        self.recipe, self.suite = recipe, suite
        self._device, self._progress = device, progress
        self._content = _variable(recipe)
        self._encoder: DenseEncoder | None = None
        self._sets: dict[str, Any] = {}

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts, in the recipe's order."""
        return self.recipe.request.experts

    def content(self, coefficients: Sequence[float]) -> dict[str, Any]:
        """Return the recipe with these weights, as plain data."""
        weights = dict(zip(self.experts, map(float, coefficients), strict=True))
        return {**self._content, "parameters": {**(self._content.get("parameters") or {}), "weight": weights}}

    def scores(self, coefficients: Sequence[float], split: str) -> dict[str, Array]:
        """Merge, and return the suite's metric of every query of every domain of a split."""
        encoder = self._merged(coefficients)
        embedder = Embedder(encoder, progress=self._progress)
        prompts = {role: role_prompt(encoder, role, self.suite.prompts) for role in ("query", "document")}
        metric = self.suite.metrics[0]
        found = {}
        for domain, drawn in self.sets(split).items():
            documents = embedder.vectors(drawn.documents, prompts["document"])
            queries = embedder.vectors(drawn.queries, prompts["query"])
            ranking = search(queries, documents, metric.cutoff, similarity=self.suite.similarity)
            found[domain] = measure([metric], ranking, drawn.qrels)[metric]
        return found

    def sets(self, split: str) -> Mapping[str, Any]:
        """Return the queries and documents of a split, drawn once."""
        if split not in self._sets:
            self._sets[split] = self.suite.evaluation_sets(split=split)
        return dict(self._sets[split])

    def texts(self, split: str) -> int:
        """Return how many texts one measurement encodes."""
        return sum(len(drawn.queries) + len(drawn.documents) for drawn in self.sets(split).values())

    def _merged(self, coefficients: Sequence[float]) -> DenseEncoder:
        import torch

        from consilience.models import load_encoder

        request = self.recipe.request
        written = self.content(coefficients)
        keys = {key: value for key, value in written.items() if key not in ("version", "method", "experts")}
        recipe = Recipe(method=written["method"], experts=written["experts"], folder=request.folder, **keys)
        plan = recipe.plan()
        if self._encoder is None:
            base = plan.models[str(request.base)]
            self._encoder = load_encoder(base, device=self._device, max_tokens=self.suite.max_tokens)
        parameters = self._encoder.parameters()
        statistics = model_statistics(plan.tasks, chunk=DEFAULT_CHUNK)
        for task in plan.tasks:
            if task.name not in parameters:
                continue
            raw = np.empty(task.numel, DTYPES[task.dtype].storage)

            def write(start: int, part: NDArray[Any], raw: NDArray[Any] = raw) -> None:
                raw[start : start + part.size] = part

            if task.copy is not None:
                raw[:] = task.copy.read_raw(0, task.numel)
            else:
                merge_tensor(task, write, statistics=statistics.get(task.name), hash_inputs=False)
            values = np.empty(task.numel, np.float32)
            decode(raw, task.dtype, values)
            with torch.no_grad():
                parameters[task.name].copy_(torch.from_numpy(values).reshape(task.shape))
        return self._encoder


def _variable(recipe: Recipe) -> dict[str, Any]:
    """Return the content of a recipe whose weights can be varied; raise RecipeError listing every obstacle."""
    request = recipe.request
    content: Any = yaml.safe_load(recipe.to_yaml())
    problems = Problems()
    if not isinstance(content, dict) or "method" not in content:
        raise RecipeError(f"{request.origin}: a native recipe (`method:`) is needed to vary its weights")
    method = find_method(request.method)
    weight = method.parameters.get("weight")
    if weight is None or not weight.per_expert or "zero_weight" not in method.laws:
        problems.add(f"method {request.method!r} has no weight per expert that may be 0; use task_arithmetic")
    if request.base is None:
        problems.add("base: none is given; coefficients scale the changes from a base")
    if (content.get("parameters") or {}).get("normalize"):
        problems.add("parameters.normalize: normalised weights have no size of their own; leave it out")
    for key in ("tokenizer", "chat_template"):
        if key in content:
            problems.add(f"{key}: the models are measured with the base's tokenizer; leave it out here")
    problems.raise_if_any(RecipeError, request.origin)
    return content


@dataclass(frozen=True)
class ParetoRun:
    """A front on disk: `pareto.json` and `pareto.svg` in the folder `out`, and the recipe it varies."""

    front: ParetoFront
    out: Path
    objective: SuiteObjective

    def write_recipe(self, point: ParetoPoint, path: str | Path) -> Path:
        """Write the recipe of a point; paths of models are made relative to its new place."""
        place = Path(path)
        content = self.objective.content(point.coefficients)
        start = self.objective.recipe.request.folder

        def move(value: Any) -> Any:
            return moved_reference(value, start, place.parent)

        content["base"] = move(content["base"])
        experts = content["experts"]
        named = experts if isinstance(experts, dict) else dict(zip(self.objective.experts, experts, strict=True))
        content["experts"] = {name: move(value) for name, value in named.items()}
        if "aux" in content:
            content["aux"] = _deep(content["aux"], move)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(place, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        return place


def _deep(value: Any, move: Callable[[Any], Any]) -> Any:
    return {key: _deep(part, move) for key, part in value.items()} if isinstance(value, dict) else move(value)


def run_pareto(
    recipe: Recipe | str | Path,
    suite: Suite,
    out: str | Path,
    *,
    budget: int | None = None,
    search: Search = "map",
    front: int = 8,
    preference: Mapping[str, float] | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool | None = None,
) -> ParetoRun:
    """Find the front of a recipe's weights on a suite and write it to the folder `out`.

    The search and the choice see the dev split only. The front, the base and every expert alone are then measured on
    the suite's own split, with 95 % intervals over its queries; nothing is chosen there. `preference` is for the nested
    search. budget, search, front, seed: see `search_pareto`. A killed run resumes; a finished one is read again.

    Raises RecipeError, DataError or RequestError before the first evaluation: a suite without dev queries, or whose
    own split is dev, leaves nothing held out to report on.
    """
    opened = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    place = Path(out)
    problems = Problems()
    if not suite.has_split("dev"):
        problems.add("not every domain has dev queries; coefficients are never chosen on test")
    if suite.split == "dev":
        problems.add("its split is dev, where coefficients are chosen; set `split: test` to report on held-out queries")
    problems.raise_if_any(RequestError, f"pareto on suite {suite.name}")
    objective = SuiteObjective(opened, suite, device=device)
    tasks, experts = tuple(suite.domains), objective.experts
    chosen = default_budget(len(experts)) if budget is None else budget
    wanted = {
        "recipe": {k: v for k, v in objective.content([0.0] * len(experts)).items() if k != "name"},
        "inputs": {name: model.fingerprint for name, model in opened.plan().models.items()},
        "suite": suite.content_hash,
        "budget": chosen,
        "search": search,
        "front": front,
        "seed": seed,
        **({"preference": dict(preference or {})} if search == "nested" else {}),
    }
    if (found := _finished(place, wanted)) is not None:
        return ParetoRun(found, place, objective)
    reported = 1 + len(experts) + front
    total = (chosen + front) * objective.texts("dev") + reported * objective.texts(suite.split)
    with Job(place, kind="pareto", request=wanted) as job, Progress(total, "texts", "pareto", enabled=progress) as bar:
        objective._progress = bar
        result = search_pareto(
            lambda c: [float(values.mean()) for values in objective.scores(c.tolist(), "dev").values()],
            experts,
            tasks,
            budget=chosen,
            search=search,
            front=front,
            preference=preference if search == "nested" else None,
            seed=seed,
            job=job,
        )
        result = _held_out(result, objective, job)
        result.write(job.work / _RECORD)
        from consilience.bench.report.front import front_picture

        write_text_atomic(job.work / _PICTURE, front_picture(result, metric=str(suite.metrics[0])))
        job.publish()
    return ParetoRun(result, place, objective)


def _finished(out: Path, wanted: Mapping[str, Any]) -> ParetoFront | None:
    if not (out / MANIFEST).is_file() or not (out / _RECORD).is_file():
        return None
    manifest = read_record(out / MANIFEST, "manifest", 1)
    same = manifest.get("kind") == "pareto" and fingerprint(manifest.get("request")) == fingerprint(wanted)
    return ParetoFront.read(out / _RECORD) if same else None


def _held_out(result: ParetoFront, objective: SuiteObjective, job: Job) -> ParetoFront:
    """Measure the front, the base and every expert alone on the suite's own split."""

    def one(coefficients: Sequence[float]) -> tuple[tuple[float, float, float], ...]:
        key = f"held out {fingerprint(list(coefficients))}"
        if key not in job.done:
            job.check()
            scores = objective.scores(coefficients, objective.suite.split)
            found = [combine({task: scores[task]}, resamples=_RESAMPLES, seed=result.seed) for task in result.tasks]
            job.record(key, values=[[d.difference, d.low, d.high] for d in found])
        return tuple((value, low, high) for value, low, high in job.done[key]["values"])

    points = tuple(replace(point, held_out=one(point.coefficients)) for point in result.points)
    alone = np.eye(len(result.experts)).tolist()
    names = {BASE: [0.0] * len(result.experts), **dict(zip(result.experts, alone, strict=True))}
    return replace(result, points=points, references={name: one(c) for name, c in names.items()})
