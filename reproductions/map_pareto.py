"""MAP: Pareto fronts of scaling coefficients from a few evaluations and quadratic surrogates (arXiv 2406.07529, 2024).

Perceptrons fine-tuned in the run on views of scikit-learn's digits; the truth is a grid of real evaluations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from consilience.bench.experiments import Options, Workbench, run
from consilience.bench.experiments.images import DigitViews
from consilience.tuning.pareto import ParetoFront, search_pareto
from consilience.tuning.pareto_front import hypervolume
from consilience.tuning.pareto_sampling import random_coefficients

SEEDS = (0, 1, 2, 3, 4)
TWO, FOUR = ("upright", "rotated"), ("upright", "rotated", "inverted", "mirrored_rolled")
STEPS = 21  # of the grid on [0, 1]: 441 evaluations for two experts
BUDGET, BUDGET_FOUR, BUDGET_NESTED = 20, 30, 3 * 20
FRONT = 40  # at most so many points of the surrogates' front are evaluated
RATIO = 0.95  # of the grid front's hypervolume that MAP's evaluated front reaches, mean of the seeds
OVER_RANDOM = 0.05  # and how much of it more than as many random coefficients
PREFERENCES = ((0.9, 0.1), (0.5, 0.5), (0.1, 0.9))
SMALL = {"base_steps": 20, "expert_steps": 10}  # a quick run

Metrics = Callable[[Sequence[float]], list[float]]


def accuracies(bench: Workbench, tasks: Sequence[str], split: str) -> Metrics:
    """Return coefficients -> accuracy of every task."""

    def measure(coefficients: Sequence[float]) -> list[float]:
        weight = dict(zip(tasks, map(float, coefficients), strict=True))
        state = bench.merge("task_arithmetic", tasks=tasks, weight=weight)
        return list(bench.scores(state, split=split, tasks=tasks).by_task.values())

    return measure


def volume(points: Sequence[Sequence[float]]) -> float:
    return hypervolume(points, [0.0] * len(points[0]))


def all_of(front: ParetoFront) -> list[list[float]]:
    """Return the coefficients of every point of the front that was evaluated."""
    return [list(point.coefficients) for point in (*front.points, *front.dominated)]


def two_experts(bench: Workbench, steps: int, seed: int) -> dict[str, Mapping[str, float]]:
    """Return hypervolumes by method, on dev (searched) and test, and accuracies by preference on test."""
    dev, test = (accuracies(bench, TWO, split) for split in ("dev", "test"))
    line = np.linspace(0, 1, steps)
    found = {
        split: {"grid": volume([measure(c) for c in np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)])}
        for split, measure in (("dev", dev), ("test", test))
    }
    settings = {"budget": BUDGET, "front": FRONT, "seed": seed}
    fronts = {
        "MAP": search_pareto(dev, TWO, TWO, **settings),
        "Bayesian MAP": search_pareto(dev, TWO, TWO, search="bayesian", **settings),
        "linear surrogate": search_pareto(dev, TWO, TWO, degree=1, **settings),
    }
    chosen = {name: all_of(front) for name, front in fronts.items()}
    chosen["random"] = random_coefficients(2, BUDGET, seed=seed).tolist()
    for name, points in chosen.items():
        found["dev"][name] = volume([dev(c) for c in points])
        found["test"][name] = volume([test(c) for c in points])
    found["evaluations"] = dict(fronts["MAP"].evaluations)
    for preference in PREFERENCES:
        scores = test(fronts["MAP"].select(preference).coefficients)
        found[f"preference {preference}"] = dict(zip(TWO, scores, strict=True))
    return found


def four_experts(bench: Workbench, seed: int) -> dict[str, float]:
    """Return hypervolumes on dev, and how often dev was evaluated by the nested search."""
    counted: list[int] = []
    measure = accuracies(bench, FOUR, "dev")

    def counting(coefficients: Sequence[float]) -> list[float]:
        counted.append(1)
        return measure(coefficients)

    front = search_pareto(measure, FOUR, FOUR, budget=BUDGET_FOUR, front=FRONT, seed=seed)
    nested = search_pareto(counting, FOUR, FOUR, budget=BUDGET_NESTED, search="nested", front=0, seed=seed)
    drawn = random_coefficients(4, BUDGET_FOUR, seed=seed)
    return {
        "MAP": volume([measure(c) for c in all_of(front)]),
        "random": volume([measure(c) for c in drawn]),
        "nested": volume([measure(point.coefficients) for point in nested.points]),
        "nested evaluations": len(counted),
    }


def main(options: Options) -> None:
    report = options.report("map-pareto", "MAP: amortised Pareto fronts", source="arXiv 2406.07529")
    benches = options.workbenches(DigitViews("strong", **options.pick({}, SMALL)))
    two = [two_experts(bench, options.pick(STEPS, 3), bench.seed) for bench in benches]
    four = [four_experts(bench, bench.seed) for bench in benches]
    shares = {
        split: {name: [found[split][name] / found[split]["grid"] for found in two] for name in two[0][split]}
        for split in ("dev", "test")
    }
    rows = [
        [name, *(f"{np.mean(shares[s][name]):.4f} ({min(shares[s][name]):.4f})" for s in ("dev", "test"))]
        for name in shares["dev"]
    ]
    columns = ["front", "dev, searched: mean (lowest seed)", "test, not searched"]
    report.table(rows, columns, f"Two experts: hypervolume as a share of the grid front's ({len(two)} seeds)")
    report.note(
        f"{BUDGET} evaluations to search; MAP's front is then evaluated at up to {FRONT} points "
        f"({two[0]['evaluations']['front']} in the first seed). The claims are about the search and decided on the "
        "data that all searches saw; the test column shows the same coefficients on images that none saw."
    )
    table = [
        [str(p), *(float(np.mean([f[f"preference {p}"][task] for f in two])) for task in TWO)] for p in PREFERENCES
    ]
    report.table(table, ["preference", *TWO], "Test accuracy of the point chosen on dev, mean of the seeds")
    report.table(
        [[name, float(np.mean([found[name] for found in four]))] for name in four[0]],
        ["four experts", "hypervolume on dev, mean"],
        f"MAP and random: {BUDGET_FOUR} evaluations to search; nested: {BUDGET_NESTED}",
    )
    dev = {name: float(np.mean(values)) for name, values in shares["dev"].items()}
    text = f"MAP's evaluated front reaches {RATIO:g} of the grid front's hypervolume"
    report.claim(text, dev["MAP"] >= RATIO, f"{dev['MAP']:.4f}, seeds {np.round(shares['dev']['MAP'], 4).tolist()}")
    ahead = dev["MAP"] - dev["random"]
    text = f"it is {100 * OVER_RANDOM:g} points above {BUDGET} random coefficients"
    report.claim(text, ahead >= OVER_RANDOM, f"{dev['MAP']:.4f} against {dev['random']:.4f}")
    text = "a linear surrogate has a lower hypervolume"
    report.claim(text, dev["linear surrogate"] < dev["MAP"], f"{dev['linear surrogate']:.4f} against {dev['MAP']:.4f}")
    first, second = ([row[column] for row in table] for column in (1, 2))
    falls, rises = first == sorted(first, reverse=True), second == sorted(second)
    report.claim("each task's test accuracy is monotone in its preference", falls and rises, f"{first}, {second}")
    means = {name: float(np.mean([found[name] for found in four])) for name in four[0]}
    text = f"four experts: MAP with {BUDGET_FOUR} evaluations is not below random search with as many"
    report.claim(text, means["MAP"] >= means["random"], f"{means['MAP']:.4f} against {means['random']:.4f}")
    counts = [found["nested evaluations"] for found in four]
    text = f"nested search of four experts evaluates {BUDGET_NESTED} times exactly"
    report.claim(text, all(count == BUDGET_NESTED for count in counts), f"{counts}")
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
