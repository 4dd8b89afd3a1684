"""The demonstration: merge the bundled experts, route among them, measure, search, and write the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from consilience.bench.compare import evaluate
from consilience.bench.demo_search import DemoSearch, search_demo
from consilience.bench.evaluation import Evaluation
from consilience.bench.pareto import run_pareto
from consilience.bench.routing import fit_domain_router
from consilience.bundles.creation import create_bundle
from consilience.data.suite import Suite
from consilience.errors import RequestError
from consilience.merging.recipe import load_recipe
from consilience.tuning.pareto import ParetoFront

__all__ = ["DemoResult", "run_demo"]

_SMALL = {"queries": 100, "documents": 200}
_FULL = {"queries": None, "documents": 1200}
_SEARCHED = {"queries": 50, "documents": 100}
_FRONT = {"queries": 20, "documents": 40}  # of each of two domains
_POINTS = 5
_ROUTED = "bundle + router"
_TAUGHT = 1000  # training queries of each domain for the router


@dataclass(frozen=True)
class DemoResult:
    """The measurements, the search over the demo's documents, the report's place, and how long everything took."""

    evaluation: Evaluation
    search: DemoSearch
    report: Path
    merge_seconds: float
    cpu_seconds: float


def run_demo(
    examples: Path,
    out: Path,
    *,
    full: bool = False,
    say: Callable[[str], None] = lambda message: None,
    progress: bool | None = None,
) -> DemoResult:
    """Merge, evaluate and report.

    `examples` holds `recipes/*.yml`, `experts/*/`, `pareto.yml` and `suite.yml`; results go to `out` (merges, bundle,
    Pareto front, `evaluation.json`, `report.html`, index). `full` takes all queries and 1,200 documents a domain for
    tight intervals, otherwise 100 and 200. Interrupted runs resume: finished merges and encoded texts are reused.

    Raises RequestError when the examples are not there.
    """
    started = time.process_time()
    recipes = {path.stem: path for path in sorted((examples / "recipes").glob("*.yml"))}
    if not recipes or not all((examples / name).is_file() for name in ("suite.yml", "pareto.yml")):
        raise RequestError(
            f"{examples}: no recipes, no suite.yml or no pareto.yml there; run from the project's folder or name its "
            "examples folder"
        )
    suite = Suite.open(examples / "suite.yml", **(_FULL if full else _SMALL))
    models: dict[str, str] = {}
    texts: dict[str, str] = {}
    candidates: dict[str, str] = {}
    clock = time.monotonic()
    for name, path in recipes.items():
        recipe = load_recipe(path)
        say(f"merging by {path}")
        result = recipe.run(out / "models" / name, progress=progress)
        base = str(recipe.request.models[str(recipe.request.base)])
        models.setdefault("base", base)
        for expert in recipe.request.experts:
            folder = (path.parent / recipe.request.models[expert]).resolve()
            models.setdefault(expert, f"{base}+{folder}")
        candidates[name] = f"{base}+{result.out}" if result.error is not None else str(result.out)
        texts[name] = recipe.to_yaml()
    merged = time.monotonic() - clock
    experts = [name for name in models if name != "base"]
    say(f"keeping {len(experts)} experts in a bundle, and fitting a router to training queries")
    bundle = create_bundle(
        out / "bundle", models["base"], {name: models[name] for name in experts}, residual="adapter", encodes="both"
    )
    bundle = bundle.set_router(fit_domain_router(bundle, suite, queries=_TAUGHT))
    say(f"trade-offs of the weights in {examples / 'pareto.yml'}")
    front = _front(examples, out / "pareto", progress)
    say(f"evaluating base, {len(experts)} experts, {len(candidates) + 1} merges and the bundle on {suite.name}")
    evaluation = evaluate(
        suite,
        {**models, **candidates, _ROUTED: bundle},
        experts=experts,
        oracle=None if full else "test",
        recipes=texts,
        cache=out / "cache",
        progress=progress,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(evaluation.to_json(), encoding="utf-8")
    report = out / "report.html"
    evaluation.to_html(report, title="Consilience demo: six experts of one encoder", fronts=[front])
    best = max(candidates, key=lambda name: evaluation.value(name))
    say(f"indexing the documents of all domains with {best}, and searching")
    some = suite if full else replace(suite, queries=_SEARCHED["queries"], documents=_SEARCHED["documents"])
    search = search_demo(
        some.evaluation_sets(), candidates[best], out / "index", max_tokens=suite.max_tokens, progress=progress
    )
    return DemoResult(evaluation, search, report, merged, time.process_time() - started)


def _front(examples: Path, out: Path, progress: bool | None) -> ParetoFront:
    """Return the trade-off between the weights of a few experts, each measured in its own domain."""
    recipe = load_recipe(examples / "pareto.yml")
    whole = Suite.open(examples / "suite.yml", **_FRONT)
    suite = replace(whole, domains={name: whole.domains[name] for name in recipe.request.experts})
    return run_pareto(recipe, suite, out, front=_POINTS, progress=progress).front
