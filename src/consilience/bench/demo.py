"""The demonstration: merge the bundled experts by the bundled recipes, measure everything, write the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from consilience.bench.compare import evaluate
from consilience.bench.evaluation import Evaluation
from consilience.data.suite import Suite
from consilience.errors import RequestError
from consilience.merging.recipe import load_recipe

__all__ = ["DemoResult", "run_demo"]

_SMALL = {"queries": 100, "documents": 200}
_FULL = {"queries": None, "documents": 1200}


@dataclass(frozen=True)
class DemoResult:
    """The measurements, the report's place, and how long merging and measuring took."""

    evaluation: Evaluation
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

    `examples` holds `recipes/*.yml`, `experts/*/` and `suite.yml`; results go to `out` (merges, `evaluation.json`,
    `report.html`). `full` takes all queries and 1,200 documents a domain for tight intervals, otherwise 100 and 200.
    Interrupted runs resume: finished merges and encoded texts are reused.

    Raises RequestError when the examples are not there.
    """
    started = time.process_time()
    recipes = {path.stem: path for path in sorted((examples / "recipes").glob("*.yml"))}
    if not recipes or not (examples / "suite.yml").is_file():
        raise RequestError(
            f"{examples}: no recipes or no suite.yml there; run from the project's folder or name its examples folder"
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
    say(f"evaluating base, {len(experts)} experts, their uniform average and {len(candidates)} merges on {suite.name}")
    evaluation = evaluate(
        suite,
        {**models, **candidates},
        experts=experts,
        oracle=None if full else "test",
        recipes=texts,
        cache=out / "cache",
        progress=progress,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(evaluation.to_json(), encoding="utf-8")
    report = out / "report.html"
    evaluation.to_html(report, title="Consilience demo: six experts of one encoder, merged")
    return DemoResult(evaluation, report, merged, time.process_time() - started)
