"""Expert Merging and Expert Merging++ on vision transformers for eight tasks of digits and letters.

ICLR 2026, arXiv 2509.25712: coefficients by tensor with which the merged model imitates every expert's hidden states
and logits on ten unlabelled inputs per task; ++ gives important tensors several. The views of digits, on a perceptron,
are in `adamerging.py`. Task arithmetic is tuned with labels, on dev; learners see training inputs without labels.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from consilience.bench.experiments import Options, Scores, Workbench, compare, run
from consilience.bench.experiments.images import Letters
from consilience.tuning.adamerging import adamerging
from consilience.tuning.expert_merging import chunk_counts, expert_merging, importance

SEEDS = (0, 1, 2)
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
START = 0.3
FEW = 10  # inputs per task
STEPS, RATE, PINNED = 150, 1e-2, 0.1  # the settings that the specification measured on the views of digits
BUDGET = 1.2  # coefficients per expert and tensor, of ++
OVER_START, OVER_ENTROPY, NEAR_BEST, SECOND = 0.04, 0.03, -0.01, -0.01


def measure(bench: Workbench, steps: int, facts: list[list[Any]]) -> dict[str, Scores]:
    """Learn in every way and score on test."""
    family = bench.family
    assert isinstance(family, Letters)
    models = {task: family.model(bench.base, task) for task in bench.tasks}
    images = {task: family.sets[task].view("unlabelled").sample(FEW, seed=bench.seed).images for task in bench.tasks}
    few = {task: [(image, 0) for image in found] for task, found in images.items()}
    names = [name for name, _ in models[bench.tasks[0]].module.named_modules()]
    given = (bench.base, bench.experts, models, few)
    shared: dict[str, Any] = {"start": START, "steps": steps, "learning_rate": RATE}
    imitate: dict[str, Any] = {**shared, "batch": FEW, "accumulation": len(bench.tasks), "regularisation": PINNED}
    imitate["hidden"] = [name for name in names if re.fullmatch(r"layers\.\d+", name)]
    first = expert_merging(*given, **imitate)
    pieces = chunk_counts(importance(first), round(BUDGET * len(first.composition.tensors)))
    learnt = {
        "Expert Merging": first,
        "Expert Merging++": expert_merging(*given, pieces=pieces, **imitate),
        "Expert Merging, no logits": expert_merging(*given, logit_weight=0.0, **imitate),
        "Expert Merging, no hidden states": expert_merging(*given, hidden_weight=0.0, **imitate),
        "Expert Merging, regulariser 5": expert_merging(*given, **{**imitate, "regularisation": 5.0}),
    }
    for name, learned in learnt.items():
        numbers = (learned.facts[key] for key in ("coefficients", "start", "end"))
        facts.append([bench.seed, name, *numbers, f"{float(learned.values.min()):.2f} .. {learned.values.max():.2f}"])
    entropy = adamerging(*given, tolerance=None, seed=bench.seed, **shared)
    states = {
        "average": bench.merge("linear"),
        "TA 0.3": bench.merge("task_arithmetic", lambda_=START),
        "TA best (dev, labels)": bench.tune("task_arithmetic", {"lambda_": ALPHAS}).state,
        "AdaMerging, no guard, same inputs": entropy.state(),
        **{name: learned.state() for name, learned in learnt.items()},
    }
    own = {"base": bench.base_scores(), "experts": bench.expert_scores()}
    return {**own, **{name: bench.scores(state) for name, state in states.items()}}


def main(options: Options) -> None:
    report = options.report("expert-merging", "Expert Merging", source="arXiv 2509.25712")
    family = Letters("small", "strong", **options.pick({}, {"base_steps": 8, "expert_steps": 4}))
    facts: list[list[Any]] = []
    found: dict[str, list[Scores]] = {}
    for bench in options.workbenches(family):
        for name, scores in measure(bench, options.pick(STEPS, 2), facts).items():
            found.setdefault(name, []).append(scores)
    rows = [[name, *[one.mean for one in held]] for name, held in found.items()]
    report.table(rows, ["model", *[f"seed {seed}" for seed in options.seeds]], "Test accuracy, mean of 8 tasks")
    columns = ["seed", "method", "coefficients", "loss at the start", "at the end", "coefficients from .. to"]
    report.table(facts, columns, "What was learnt; the loss of imitation is over the ten inputs of every task")

    ours = found["Expert Merging"]
    text = "4 points above task arithmetic at 0.3, its start, in every seed"
    report.difference(text, ours, found["TA 0.3"], margin=OVER_START, decide="every seed")
    text = "3 points above entropy minimisation on the same inputs, in every seed"
    entropy = found["AdaMerging, no guard, same inputs"]
    report.difference(text, ours, entropy, margin=OVER_ENTROPY, decide="every seed")
    text = "at most 1 point below task arithmetic tuned with labels"
    report.difference(text, ours, found["TA best (dev, labels)"], margin=NEAR_BEST)
    report.difference("++ is at most 1 point worse", found["Expert Merging++"], ours, margin=SECOND)
    without = compare(found["Expert Merging, no logits"], ours)
    report.claim("without logits the score is lower (the mean)", without.difference < 0, str(without))
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
