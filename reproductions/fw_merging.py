"""FW-Merging: Frank-Wolfe over a pool of checkpoints, some of them irrelevant (arXiv 2503.12649, ICCV 2025).

Perceptrons fine-tuned in the run on four views of scikit-learn's digits; irrelevant models are fine-tuned on
shuffled labels.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from consilience.bench.experiments import Options, Scores, State, Workbench, run
from consilience.bench.experiments.digit_pool import DigitPool
from consilience.merging import merge_state_dicts
from consilience.tuning.frank_wolfe import frank_wolfe

SEEDS = (0, 1, 2, 3, 4)
SCALE = 0.3  # of task arithmetic, which hard Frank-Wolfe starts from
SAMPLES = 100  # labelled training images per task
HARD = {"variant": "hard", "step_size": 1.0, "iterations": 10, "scale": SCALE, "batch": SAMPLES}
SOFT = {
    "variant": "soft",
    "granularity": "task",
    "iterations": 3,
    "learning_steps": 100,
    "learning_rate": 1e-2,
    "learning_loss": "cross_entropy",
    "scale": SCALE,
    "batch": SAMPLES,
}
IRRELEVANT = 8
START_MARGIN = 0.03  # hard-layer over its own start, strong, every seed
DROP_TA, DROP_SOFT = 0.05, -0.02  # what irrelevant models may cost: at least, at most
SMALL = {"base_steps": 20, "expert_steps": 10}  # a quick run
REPORTED = {  # a reference implementation: mild, strong; mean of five seeds
    "task arithmetic 0.3": (0.915, 0.767),
    "hard, layer": (0.920, 0.829),
    "hard, task": (0.917, 0.796),
    "soft": (0.919, 0.865),
    "task arithmetic 0.3 with irrelevant": (0.665, 0.481),
    "soft with irrelevant": (0.915, 0.863),
}


def merge(bench: Workbench, pool: Mapping[str, State], **settings: Any) -> Any:
    """Run Frank-Wolfe on training images of every task; the state has the tasks' heads."""
    models = {task: bench.family.model(bench.base, task) for task in bench.tasks}
    examples = {task: bench.family.examples(task, SAMPLES) for task in bench.tasks}
    return frank_wolfe(bench.base, pool, models, examples, **settings)


def arithmetic(bench: Workbench, pool: Mapping[str, State]) -> State:
    return merge_state_dicts("task_arithmetic", bench.base, pool, weight=SCALE)


def measure(bench: Workbench, irrelevant: int) -> tuple[dict[str, Scores], dict[str, float]]:
    """Score all merges of a seed; return the shares of relevant models among the first picks as well."""
    relevant = dict(bench.experts)
    pool = relevant | {f"irrelevant-{i}": bench.family.irrelevant(i, bench.seed) for i in range(irrelevant)}
    soft, robust = (merge(bench, models, **SOFT) for models in (relevant, pool))
    inner = merge(bench, pool, **{**SOFT, "iterations": 1, "score": "inner_product"})
    states = {
        "task arithmetic 0.3": arithmetic(bench, relevant),
        "hard, layer": merge(bench, relevant, granularity="layer", **HARD).state,
        "hard, task": merge(bench, relevant, granularity="task", **HARD).state,
        "soft": soft.state,
        "task arithmetic 0.3 with irrelevant": arithmetic(bench, pool),
        "soft with irrelevant": robust.state,
    }
    shares = {
        name: float(np.mean([pick in relevant for pick in found.trace[0]["picks"]]))
        for name, found in (("cosine", robust), ("inner product", inner))
    }
    return {name: bench.scores({**bench.base, **state}) for name, state in states.items()}, shares


def main(options: Options) -> None:
    report = options.report("fw-merging", "Frank-Wolfe merging on digit views", source="arXiv 2503.12649")
    found: dict[str, dict[str, list[Scores]]] = {"mild": {}, "strong": {}}
    shares: dict[str, list[dict[str, float]]] = {"mild": [], "strong": []}
    for setting, table in found.items():
        for bench in options.workbenches(DigitPool(setting, **options.pick({}, SMALL))):
            scores, share = measure(bench, options.pick(IRRELEVANT, 2))
            shares[setting].append(share)
            for name, values in scores.items():
                table.setdefault(name, []).append(values)
    rows = []
    for name in found["mild"]:
        ours = [float(np.mean([scores.mean for scores in found[setting][name]])) for setting in found]
        rows.append([name, *ours, *REPORTED[name]])
    columns = ["merge", "mild", "strong", "reference, mild", "reference, strong"]
    report.table(rows, columns, f"Test accuracy: mean of 4 tasks and {len(options.seeds)} seeds")
    rows = [
        [score, *(float(np.mean([share[score] for share in shares[setting]])) for setting in shares)]
        for score in ("cosine", "inner product")
    ]
    report.table(rows, ["score", "mild", "strong"], "Share of relevant models among the first picks of soft")
    report.note(
        f"Relevant: 4 experts; irrelevant: {IRRELEVANT} models, the base fine-tuned on shuffled labels for as "
        "long as an expert. In a reference run half of the cosine score's first picks were relevant (mild)."
    )
    strong = found["strong"]
    text = f"strong: hard by layer is {100 * START_MARGIN:g} points above its start in every seed"
    start = strong["task arithmetic 0.3"]
    report.difference(text, strong["hard, layer"], start, margin=START_MARGIN, decide="every seed")
    for setting, scores in found.items():
        for name, margin in (("task arithmetic 0.3", DROP_TA), ("soft", DROP_SOFT)):
            alone, beside = scores[name], scores[f"{name} with irrelevant"]
            if name == "soft":
                text = f"{setting}: soft loses at most {-100 * margin:g} points to irrelevant models in every seed"
                report.difference(text, beside, alone, margin=margin, decide="every seed")
            else:
                text = f"{setting}: task arithmetic loses at least {100 * margin:g} points to irrelevant models"
                report.difference(text, alone, beside, margin=margin, decide="every seed")
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
