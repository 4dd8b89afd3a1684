"""AdaMerging and Expert Merging on the toy "digit views": coefficients learnt from unlabelled training inputs.

AdaMerging (ICLR 2024, arXiv 2310.02575) makes the merged model sure of its predictions, with agreement with the experts
as a guard; Expert Merging (ICLR 2026, arXiv 2509.25712) makes it imitate the experts on ten inputs per task.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from consilience.bench.experiments import Options, Scores, Workbench, compare, run
from consilience.bench.experiments.images import DigitViews
from consilience.tuning.adamerging import adamerging
from consilience.tuning.expert_merging import chunk_counts, expert_merging, importance
from consilience.tuning.learning import Learned

SEEDS = (0, 1, 2, 3, 4)
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
START, BAD = 0.3, 0.8
STEPS, RATE = 150, 1e-2
FEW = 10  # inputs per task of Expert Merging
PERCEPTRON = ("layers.0", "layers.1", "layers.2")
SMALL = {"base_steps": 20, "expert_steps": 10}
GAP = 0.5  # share of the gap between the bad start and the best task arithmetic that is won back
ENTROPY = 0.1  # fall of the entropy from the bad start
GOOD_START = -0.01  # from the good start at most this is lost
GUARDED = -0.02  # strong: with the guard at most this is lost
OVER_START, OVER_ADA, NEAR_BEST, SECOND = 0.04, 0.03, -0.01, -0.01


def learn(bench: Workbench, steps: int) -> dict[str, Learned]:
    """Learn coefficients in every way, from the same unlabelled training images."""
    family = bench.family
    assert isinstance(family, DigitViews)
    models = {task: family.model(bench.base, task) for task in bench.tasks}
    images = {task: family.sets[task].view("unlabelled") for task in bench.tasks}
    inputs = {task: [(image, 0) for image in found.images] for task, found in images.items()}
    few = {task: [(image, 0) for image in found.sample(FEW).images] for task, found in images.items()}
    descent: dict[str, Any] = {"steps": steps, "learning_rate": RATE}
    given = (bench.base, bench.experts, models)
    imitate: dict[str, Any] = {**descent, "start": START, "regularisation": 0.1, "batch": FEW, "accumulation": 4}
    hidden = [name for name, _ in models[bench.tasks[0]].module.named_modules() if name in PERCEPTRON]
    first = expert_merging(*given, few, hidden=hidden, **imitate)
    tensors = len(first.composition.tensors)
    pieces = chunk_counts(importance(first), round(1.2 * tensors))
    return {
        "AdaMerging": adamerging(*given, inputs, start=START, seed=bench.seed, **descent),
        "AdaMerging, start 0.8": adamerging(*given, inputs, start=BAD, seed=bench.seed, **descent),
        "AdaMerging, no guard": adamerging(*given, inputs, start=START, tolerance=None, seed=bench.seed, **descent),
        "AdaMerging, task-wise": adamerging(
            *given, inputs, start=START, granularity="model", seed=bench.seed, **descent
        ),
        "AdaMerging++": adamerging(*given, inputs, start=START, vectors="ties", seed=bench.seed, **descent),
        "Expert Merging": first,
        "Expert Merging++": expert_merging(*given, few, hidden=hidden, pieces=pieces, **imitate),
        "Expert Merging, hidden states only": expert_merging(*given, few, hidden=hidden, logit_weight=0.0, **imitate),
    }


def measure(bench: Workbench, found: Mapping[str, Learned]) -> dict[str, Scores]:
    """Score the learnt models and task arithmetic on test."""
    states = {
        "TA 0.3": bench.merge("task_arithmetic", lambda_=START),
        "TA 0.8": bench.merge("task_arithmetic", lambda_=BAD),
        "TA best (dev)": bench.tune("task_arithmetic", {"lambda_": ALPHAS}).state,
        **{name: learned.state() for name, learned in found.items()},
    }
    return {"experts": bench.expert_scores(), **{name: bench.scores(state) for name, state in states.items()}}


def table(found: Mapping[str, Sequence[Scores]]) -> list[list[Any]]:
    return [
        [name, sum(one.mean for one in held) / len(held), *[one.mean for one in held]] for name, held in found.items()
    ]


def main(options: Options) -> None:
    report = options.report("adamerging", "Learnt coefficients on digit views", source="see the file's first lines")
    scores: dict[str, dict[str, list[Scores]]] = {}
    learnt: dict[str, list[dict[str, Learned]]] = {}
    facts = []
    for setting in ("mild", "strong"):
        scores[setting], learnt[setting] = {}, []
        for bench in options.workbenches(DigitViews(setting, **options.pick({}, SMALL))):
            found = learn(bench, options.pick(STEPS, 4))
            learnt[setting].append(found)
            for name, one in measure(bench, found).items():
                scores[setting].setdefault(name, []).append(one)
            for name, learned in found.items():
                if "AdaMerging" in name:
                    start, end = learned.facts["start"], learned.facts["end"]
                    numbers = (start["entropy"], end["entropy"], start["score"], end["score"])
                    facts.append([setting, bench.seed, name, *numbers, learned.facts["steps"]])
        columns = ["model", "mean", *[f"seed {seed}" for seed in options.seeds]]
        report.table(table(scores[setting]), columns, f"Test accuracy, {setting}, mean of 4 tasks")
    columns = ["setting", "seed", "method", "entropy", "after", "agreement", "after", "steps"]
    report.table(facts, columns, "Entropy (sum over tasks, nats) and agreement with the experts, training inputs")
    report.note("`TA best` has its coefficient from 200 labelled dev images per task; the learners see no label.")

    mild, strong = scores["mild"], scores["strong"]
    adapted, bad, best = mild["AdaMerging, start 0.8"], mild["TA 0.8"], mild["TA best (dev)"]
    shares = [
        (one.mean - low.mean) / (top.mean - low.mean) if top.mean > low.mean else 1.0
        for one, low, top in zip(adapted, bad, best, strict=True)
    ]
    told = ", ".join(f"{share:.2f}" for share in shares)
    report.claim("mild: from 0.8 at least half of the gap to TA best is won back, every seed", min(shares) >= GAP, told)
    falls = [
        1
        - run["AdaMerging, start 0.8"].facts["end"]["entropy"] / run["AdaMerging, start 0.8"].facts["start"]["entropy"]
        for run in learnt["mild"]
    ]
    told = ", ".join(f"{100 * fall:.0f} %" for fall in falls)
    report.claim("mild: from 0.8 the entropy falls by at least 10 %, every seed", min(falls) >= ENTROPY, told)

    def difference(text: str, held: Mapping[str, Any], ours: str, theirs: str, margin: float) -> None:
        report.difference(text, held[ours], held[theirs], margin=margin, decide="every seed")

    difference("mild: from 0.3 at most 1 point is lost, every seed", mild, "AdaMerging", "TA 0.3", GOOD_START)
    difference("strong: guarded, at most 2 points are lost", strong, "AdaMerging", "TA 0.3", GUARDED)
    lost = compare(strong["AdaMerging, no guard"], strong["TA 0.3"])
    report.claim("strong: without the guard more is lost (the mean)", lost.difference < GUARDED, str(lost))
    difference("strong: Expert Merging beats its start by 4 points", strong, "Expert Merging", "TA 0.3", OVER_START)
    difference("strong: and AdaMerging without guard by 3", strong, "Expert Merging", "AdaMerging, no guard", OVER_ADA)
    difference("mild: Expert Merging is within 1 point of TA best", mild, "Expert Merging", "TA best (dev)", NEAR_BEST)
    difference("strong: ++ is at most 1 point worse", strong, "Expert Merging++", "Expert Merging", SECOND)
    without = compare(strong["Expert Merging, hidden states only"], strong["Expert Merging"])
    report.claim("strong: without the logit term the score is lower", without.difference < 0, str(without))
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
