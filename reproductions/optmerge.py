"""OptMerge on the toy "digit views": removing interference from the sum of task vectors, without data or tuning.

Wei et al. 2025, Unifying Multimodal LLM Capabilities and Modalities via Model Merging, arXiv 2505.19892; perceptrons
fine-tuned in the run on four views of scikit-learn's digits. OptMerge is not expected to beat tuned task arithmetic.
"""

from __future__ import annotations

import sys

import numpy as np

from consilience.bench.experiments import Options, Scores, Workbench, run
from consilience.bench.experiments.images import DigitViews

SEEDS = (0, 1, 2, 3, 4)
SMALL = {"base_steps": 20, "expert_steps": 10}  # a quick run
TA_ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
FULL_MARGIN = 0.04  # the full variant, rate 0.02 x RMS, over its start (the sum), mild, every seed
LORA_MARGIN = -0.015  # the LoRA variant over the best task arithmetic, mild, every seed
REPORTED = {  # mean of five seeds of a reference implementation: mild, strong
    "mean": (0.916, 0.797),
    "TA best": (0.916, 0.852),
    "TA 1.0 (the sum)": (0.826, 0.421),
    "full, rate 1e-4": (0.910, None),
    "full, rate 0.02 x RMS": (None, 0.49),
    "LoRA": (0.915, 0.76),
}


def measure(bench: Workbench) -> tuple[dict[str, Scores], list[list[object]]]:
    """Score the variants on test; return the objectives of each matrix too."""
    facts: dict[str, dict[str, dict[str, dict[str, float]]]] = {"full": {}, "lora": {}}
    rms = {"learning_rate": 0.02, "learning_rate_unit": "rms"}
    states = {
        "base": bench.base,
        "mean": bench.merge("linear"),
        "TA best": bench.tune("task_arithmetic", {"lambda_": TA_ALPHAS}).state,
        "TA 1.0 (the sum)": bench.merge("task_arithmetic"),
        "full, rate 1e-5": bench.merge("optmerge", variant="full", lambda_=1.0),
        "full, rate 1e-4": bench.merge("optmerge", variant="full", lambda_=1.0, learning_rate=1e-4),
        "full, rate 0.02 x RMS": bench.merge("optmerge", variant="full", lambda_=1.0, facts=facts["full"], **rms),
        "LoRA": bench.merge("optmerge", variant="lora", facts=facts["lora"]),
        "WUDI": bench.merge("wudi"),
    }
    falls = [
        [bench.family.name, bench.seed, variant, tensor, *told["objective"].values()]
        for variant, tensors in facts.items()
        for tensor, told in tensors.items()
        if "objective" in told
    ]
    return {"experts": bench.expert_scores(), **{name: bench.scores(state) for name, state in states.items()}}, falls


def main(options: Options) -> None:
    report = options.report("optmerge", "OptMerge on digit views", source="arXiv 2505.19892")
    found: dict[str, dict[str, list[Scores]]] = {}
    falls: list[list[object]] = []
    for setting in ("mild", "strong"):
        found[setting] = {}
        for bench in options.workbenches(DigitViews(setting, **options.pick({}, SMALL))):
            measured, objectives = measure(bench)
            falls += objectives
            for name, scores in measured.items():
                found[setting].setdefault(name, []).append(scores)
    n = found["mild"]["base"][0].n
    rows = []
    for name in found["mild"]:
        ours = [float(np.mean([scores.mean for scores in found[setting][name]])) for setting in found]
        rows.append([name, *ours, *REPORTED.get(name, (None, None))])
    columns = ["model", "mild", "strong", "reference, mild", "reference, strong"]
    report.table(rows, columns, f"Test accuracy: mean of 4 tasks ({n} images in all) and {len(options.seeds)} seeds")
    report.note("The best task arithmetic has its coefficient from dev; OptMerge and WUDI have nothing tuned.")
    columns = ["setting", "seed", "variant", "tensor", "before", "after"]
    report.table([row for row in falls if row[1] == options.seeds[0]], columns, "The objective, first seed")

    mild, strong = found["mild"], found["strong"]
    full, start = mild["full, rate 0.02 x RMS"], mild["TA 1.0 (the sum)"]
    text = f"mild: the full variant beats the sum by {100 * FULL_MARGIN:g} points in every seed"
    report.difference(text, full, start, margin=FULL_MARGIN, decide="every seed")
    text = f"mild: the LoRA variant is within {-100 * LORA_MARGIN:g} points of the best task arithmetic in every seed"
    report.difference(text, mild["LoRA"], mild["TA best"], margin=LORA_MARGIN, decide="every seed")
    falling = all(row[-1] <= row[-2] for row in falls)
    report.claim("the objective never rises from start to end", falling, f"{len(falls)} matrices")
    for name in ("full, rate 0.02 x RMS", "LoRA"):
        report.difference(f"strong: {name} beats the best task arithmetic", strong[name], strong["TA best"])
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
