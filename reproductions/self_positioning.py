"""Self Positioning: the place between embedding experts found on a few pairs of texts (Li et al., 2024).

A mean-pooled encoder of 0.5 million weights, trained in the run on queries with documents (software_debian) and on a
tenth as many graded pairs (stsb). No code was published: a reconstruction.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np
import torch

from consilience.bench.experiments import Options, State, run
from consilience.bench.experiments.word_pairs import WordPairs
from consilience.tuning.self_positioning import self_positioning
from consilience.tuning.slerp_positions import SlerpPositions

SEEDS = (0, 1, 2)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of "similarity" in SLERP
NORMS = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8)
PROBE = 128  # training pairs of each task
MU, HUGE = 0.01, 10.0
BEHIND_GRID = 0.005  # points of the mean metric that the grid's best may be ahead
COST = 1 / 5  # of the texts that the grid search encodes
SMALL = {"pairs": 200, "steps": 3, "queries": 10, "documents": 30}  # a quick run


def mean(found: Mapping[str, float]) -> float:
    return float(np.mean(list(found.values())))


def grid(family: WordPairs, positions: SlerpPositions, quick: bool) -> tuple[State, int]:
    """Return the state with the best mean on dev, and how many texts were encoded to find it."""
    best, top, count = None, -1.0, 0
    for share in SHARES[::4] if quick else SHARES:
        for norm in NORMS[::4] if quick else NORMS:
            a = torch.tensor([2 * (1 - share), 2 * share])
            state = positions.parameters(positions.coefficients(a, torch.tensor(norm)))
            score = mean(family.measure(state, "dev"))
            count += 1
            if score > top:
                best, top = state, score
    assert best is not None
    return best, count * family.texts("dev")


def measure(family: WordPairs, seed: int, quick: bool) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return test metrics of every model of a seed, and facts of the search."""
    base = family.base(seed)
    experts = {task: family.expert(task, base, seed) for task in family.tasks}
    positions = SlerpPositions(base, experts)
    half = torch.ones(2)
    models = {task: family.model(task) for task in family.tasks}
    probes = {task: family.probe(task, PROBE) for task in family.tasks}
    found = self_positioning(base, experts, models, probes, mu=MU, seed=seed)
    texts = sum(model.texts for model in models.values())
    best, searched = grid(family, positions, quick)
    states = {
        "base": base,
        "retrieval only": experts["retrieval"],
        "similarity only": experts["similarity"],
        "joint training": family.joint(base, seed),
        "joint training, even": family.joint(base, seed, balanced=True),
        "uniform average": {name: sum(state[name] for state in experts.values()) / 2 for name in base},
        "SLERP 0.5": positions.parameters(positions.coefficients(half, torch.tensor(1.0))),
        "SLERP and norm, grid": best,
        "Self Positioning": found.state,
    }
    punished = self_positioning(base, experts, models, probes, mu=HUGE, seed=seed)
    facts = {"texts": texts, "texts of the grid": searched, "norm": found.norm, "norm at a huge price": punished.norm}
    facts |= {f"a of {task}": value for task, value in zip(family.tasks, found.a, strict=True)}
    return {name: family.measure(state, "test") for name, state in states.items()}, facts


def main(options: Options) -> None:
    report = options.report("self-positioning", "Self Positioning of two embedding experts", source="Li et al., 2024")
    family = WordPairs(**options.pick({}, SMALL))
    runs = [measure(family, seed, options.quick) for seed in options.seeds]
    means = {name: [mean(metrics[name]) for metrics, _ in runs] for name in runs[0][0]}
    rows = []
    for name, values in means.items():
        parts = [float(np.mean([metrics[name][task] for metrics, _ in runs])) for task in family.tasks]
        rows.append([name, *parts, float(np.mean(values)), " ".join(f"{value:.4f}" for value in values)])
    columns = ["model", "nDCG@10", "Spearman", "mean", "mean of each seed"]
    report.table(rows, columns, f"Test, mean of {len(runs)} seeds")
    facts = {name: [found[name] for _, found in runs] for name in runs[0][1]}
    report.table([[name, float(np.mean(values))] for name, values in facts.items()], ["Self Positioning", "mean"])
    report.note(
        f"The grid has {len(SHARES)} directions and {len(NORMS)} norms, chosen on dev; Self Positioning sees {PROBE} "
        "training pairs of each task and no dev data. `texts`: encoded in forward passes, held-out half included."
    )
    ours = float(np.mean(means["Self Positioning"]))
    for other in ("uniform average", "joint training"):
        theirs = float(np.mean(means[other]))
        report.claim(f"its mean is not below that of: {other}", ours >= theirs, f"{ours:.4f} against {theirs:.4f}")
    top = float(np.mean(means["SLERP and norm, grid"]))
    text = f"it is at most {100 * BEHIND_GRID:g} points behind the grid's best point"
    report.claim(text, ours >= top - BEHIND_GRID, f"{ours:.4f} against {top:.4f}")
    shares = [a / b for a, b in zip(facts["texts"], facts["texts of the grid"], strict=True)]
    report.claim(f"it encodes at most {COST:g} of the grid's texts", max(shares) <= COST, f"{np.round(shares, 4)}")
    norms = facts["norm at a huge price"]
    report.claim(f"mu = {HUGE:g} drives the norm below 0.2", max(norms) < 0.2, f"{np.round(norms, 4)}")
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
