"""WIDEN: ranking how much columns changed lets a light expert survive beside one that moved much further.

Yu et al. 2024, Extend Model Merging from Fine-Tuned to Pre-Trained LLMs via Weight Disentanglement, arXiv 2408.03092;
here a small language model: an expert for kinds of questions (light) and one that went on training on law (heavy).
"""

from __future__ import annotations

import sys

import numpy as np

from consilience import merge_state_dicts
from consilience.bench.experiments import Options, State, Workbench, run
from consilience.bench.experiments.passages import Passages

SEEDS = (0, 1, 2)
RATIO = 5.0  # the heavy expert's change is at least so many times as long as the light one's
TOP = 3  # WIDEN's mean has to be among so many of the seven methods
NO_CALIBRATION = 1e9  # above_average_value_ratio
SMALL = {"base_steps": 3, "question_steps": 2, "law_steps": 2, "hidden": 16, "size": 10}


def merges(bench: Workbench) -> dict[str, State]:
    """Return the seven methods with the settings of the paper's repository, then WIDEN's ablations."""
    light, heavy = bench.experts["questions"], bench.experts["law"]
    return {
        "average": merge_state_dicts("linear", None, bench.experts),
        "task arithmetic": bench.merge("task_arithmetic", lambda_=1.0),
        "SLERP": merge_state_dicts("slerp", light, {"law": heavy}, t=0.7),
        "TIES": bench.merge("ties", density=0.5, lambda_=0.5),
        "Model Stock": bench.merge("model_stock"),
        "Breadcrumbs": bench.merge("breadcrumbs", density=0.9, gamma=0.05, lambda_=0.5),
        "WIDEN": bench.merge("widen"),
        "WIDEN, no ranking": bench.merge("widen", ranking=False),
        "WIDEN, no calibration": bench.merge("widen", above_average_value_ratio=NO_CALIBRATION),
    }


def norm(bench: Workbench, task: str) -> float:
    return float(sum(float(change.double().square().sum()) for change in bench.task_vectors()[task].values()) ** 0.5)


def main(options: Options) -> None:
    report = options.report("widen", "A light and a heavy expert", source="arXiv 2408.03092")
    family = Passages(**options.pick({}, SMALL))
    raw: dict[str, list[dict[str, float]]] = {}
    gains: dict[str, list[list[float]]] = {}
    norms = []
    for bench in options.workbenches(family):
        light, heavy = norm(bench, "questions"), norm(bench, "law")
        norms.append([bench.seed, light, heavy, heavy / light])
        base = bench.base_scores().by_task
        own = bench.expert_scores().by_task
        for name, expert in bench.experts.items():
            raw.setdefault(f"expert {name}", []).append(bench.scores(expert).by_task)
        raw.setdefault("base", []).append(base)
        for name, state in merges(bench).items():
            found = bench.scores(state).by_task
            raw.setdefault(name, []).append(found)
            gains.setdefault(name, []).append(
                [(found[t] - base[t]) / (own[t] - base[t] or float("nan")) for t in family.tasks]
            )

    def mean(name: str, task: str) -> float:
        return float(np.mean([found[task] for found in raw[name]]))

    smallest = {name: float(np.mean([min(pair) for pair in pairs])) for name, pairs in gains.items()}
    overall = {name: float(np.mean(pairs)) for name, pairs in gains.items()}
    rows = []
    for name in raw:
        known = [*np.mean(gains[name], axis=0), overall[name], smallest[name]] if name in gains else [None] * 4
        rows.append([name, mean(name, "questions"), -mean(name, "law"), *known])
    columns = ["model", "questions: accuracy", "law: loss", "share of A's gain", "share of B's gain", "mean", "minimum"]
    counts = {task: len(family.examples(task, split="test")) for task in family.tasks}
    caption = f"Test ({counts['questions']} questions, {counts['law']} paragraphs), mean of {len(norms)} seeds; "
    report.table(rows, columns, caption + "shares: (merged - base) / (expert - base)")
    report.table(norms, ["seed", "light (questions)", "heavy (law)", "ratio"], "Length of the experts' changes")
    seeds = [[name, *[f"{min(pair):.3f}" for pair in pairs]] for name, pairs in gains.items()]
    report.table(seeds, ["method", *[f"seed {row[0]}" for row in norms]], "Minimum over the two experts, by seed")

    apart = min(row[-1] for row in norms)
    report.claim(f"the heavy expert moved at least {RATIO:g} times as far", apart >= RATIO, f"least ratio {apart:.2f}")
    detail = f"{smallest['WIDEN']:.3f} against {smallest['average']:.3f}"
    report.claim("WIDEN's minimum is above the uniform average's", smallest["WIDEN"] > smallest["average"], detail)
    ranked = sorted(list(overall)[:7], key=lambda name: -overall[name])
    place = ranked.index("WIDEN") + 1
    report.claim(f"WIDEN's mean is among the top {TOP} of 7", place <= TOP, f"place {place}: {', '.join(ranked)}")
    for name in list(overall)[7:]:
        detail = f"{smallest['WIDEN']:.3f} against {smallest[name]:.3f}"
        report.claim(f"the minimum is higher than that of {name}", smallest["WIDEN"] > smallest[name], detail)
    report.note("The mean over seeds decides; two domains and three seeds give no interval worth printing.")
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
