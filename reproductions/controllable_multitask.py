"""One slimmable multi-task network against networks trained for one width each; budgets and preferences to widths.

Aich et al. 2023, Efficient Controllable Multi-Task Architectures, arXiv 2308.11744, reconstructed from its abstract;
three tasks on noisy digits.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch

from consilience.bench.experiments import Options, Scores, compare, run
from consilience.bench.experiments.digit_tasks import DigitTasks
from consilience.models.slimmable import SlimmableNetwork, Widths
from consilience.training.slimmable import SlimmableTraining
from consilience.tuning.pareto_front import hypervolume
from consilience.tuning.widths import Found, search_widths

SEEDS = (0, 1, 2)
TRAINING = SlimmableTraining(steps=600)  # of every network; chosen on dev, seed 0
EQUAL = 1e-5  # exported against slimmed outputs
NEAR = 0.03  # mean score that the slimmed network may lose to one trained for its width
BUDGET = 0.5  # of the full network's multiply-adds
PREFERENCES = (0.1, 0.3, 0.5, 0.7, 0.9)
NOISE = 0.005  # a score may fall by this where its preference rises
ABLATION = 0.005  # without distillation the slimmed networks may be better by this at most
REQUESTS = 200


def uniform(family: DigitTasks, width: float) -> Widths:
    return Widths(width, dict.fromkeys(family.tasks, width))


def export_difference(family: DigitTasks, network: SlimmableNetwork, step: int) -> float:
    x = torch.from_numpy(family.inputs("dev")[:32])
    apart = 0.0
    for widths in list(family.config.every())[::step]:
        slim, dense = network(x, widths), network.exported(widths)(x)
        apart = max(apart, *(float((slim[task] - dense[task]).detach().abs().max()) for task in slim))
    return apart


def dense_cost(network: SlimmableNetwork) -> int:
    """Multiply-adds of an exported network, counted from its weights."""
    return sum(value.numel() for name, value in network.named_parameters() if value.ndim == 2 and "norm" not in name)


def preferring(family: DigitTasks, task: str, share: float) -> dict[str, float]:
    others = (1 - share) / (len(family.tasks) - 1)
    return {name: share if name == task else others for name in family.tasks}


def encoder_only(family: DigitTasks) -> Widths:
    """The widest encoder within the budget, decoders as they are."""
    full = dict.fromkeys(family.tasks, 1.0)
    limit = BUDGET * family.config.cost(family.config.full)
    return max(
        (Widths(w, full) for w in family.config.choices if family.config.cost(Widths(w, full)) <= limit), key=str
    )


def main(options: Options) -> None:
    report = options.report("controllable-multitask", "Controllable widths", source="arXiv 2308.11744")
    family, settings = DigitTasks(), options.pick(TRAINING, replace(TRAINING, steps=3))
    config, requests = family.config, options.pick(REQUESTS, 10)
    whole = config.cost(config.full)
    half = min(config.choices, key=lambda width: abs(config.cost(uniform(family, width)) / whole - BUDGET))
    slim: dict[float, list[Scores]] = {width: [] for width in config.choices}
    plain: dict[float, list[Scores]] = {width: [] for width in config.choices}
    own: dict[float, list[Scores]] = {half: [], 1.0: []}
    swept: dict[tuple[str, float], list[float]] = {}
    areas: list[tuple[float, float]] = []
    apart, exact, kept = 0.0, True, 0
    for seed in options.seeds:
        network = family.trained(settings, seed)
        without = family.trained(replace(settings, distil=0.0), seed)
        for width in config.choices:
            slim[width].append(family.scores(network, uniform(family, width)))
            plain[width].append(family.scores(without, uniform(family, width)))
        for width, found in own.items():
            dedicated = family.trained(settings, seed, only=uniform(family, width))
            found.append(family.scores(dedicated, uniform(family, width)))
        apart = max(apart, export_difference(family, network, options.pick(1, 16)))
        table, points = family.table(network), []

        def search(preference: dict[str, float], budget: float, table: dict = table) -> Found:
            return search_widths(config, table, budget=budget, preference=preference)

        for task in family.tasks:
            for share in PREFERENCES:
                result = search(preferring(family, task, share), BUDGET)
                scores = family.scores(network, result.widths).by_task
                swept.setdefault((task, share), []).append(scores[task])
                points.append([scores["digit"], scores["denoise"]])
        fixed = family.scores(network, encoder_only(family)).by_task
        baseline = [[fixed["digit"], fixed["denoise"]]]
        areas.append((hypervolume(points, [0, 0]), hypervolume(baseline, [0, 0])))
        random = np.random.default_rng(seed)
        for _ in range(requests):
            budget = random.uniform(0.15, 1.0)
            result = search(dict(zip(family.tasks, random.dirichlet([1, 1, 1]), strict=True)), budget)
            kept += config.cost(result.widths) <= budget * whole
            exact &= dense_cost(network.exported(result.widths)) == result.cost

    n = slim[1.0][0].n
    rows = []
    for width in config.choices:
        held = [compare(scores[width]) if width in scores else None for scores in (slim, plain, own)]
        rows.append([width, config.cost(uniform(family, width)) / whole, *held])
    columns = ["width", "share of cost", "slimmable", "without distillation", "trained for this width"]
    report.table(rows, columns, f"Mean score of three tasks, n={n} per seed, 95 % intervals")
    swept_rows = [[task, *(float(np.mean(swept[task, share])) for share in PREFERENCES)] for task in family.tasks]
    report.table(swept_rows, ["score of", *(f"preference {s}" for s in PREFERENCES)], f"At {BUDGET:.0%} of the cost")
    report.claim("exported networks give the slimmed outputs, all widths", apart <= EQUAL, f"{apart:.1e}")
    report.claim("the cost is that counted from exported weights", exact, f"{requests * len(options.seeds)} networks")
    for width in own:
        text = f"at width {width:g} the slimmed network is within {100 * NEAR:g} points of one trained for it"
        report.difference(text, slim[width], own[width], margin=-NEAR)
    falls = min(float(np.diff(row[1:]).min()) for row in swept_rows)
    text = f"a task's score does not fall with its preference by more than {100 * NOISE:g} points"
    report.claim(text, falls >= -NOISE, f"largest fall {min(falls, 0):.4f}")
    means = np.mean(areas, axis=0)
    report.claim(
        "preferences reach more than slimming the encoder alone", means[0] > means[1], f"{means[0]:.4f}, {means[1]:.4f}"
    )
    narrow = config.choices[:-1]
    pairs = [
        [
            Scores({f"{w:g} {t}": one for w in narrow for t, one in held[w][i].by_example.items()})
            for i in range(len(options.seeds))
        ]
        for held in (plain, slim)
    ]
    lost = compare(*pairs)
    report.claim("without distillation slimmed networks are not better", lost.difference <= ABLATION, f"{lost}")
    report.claim("the search keeps to the budget", kept == requests * len(options.seeds), f"{kept} requests")
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
