"""Fusion-X: a target learns from several language models, a trained selector says from which, against simple rules.

Enabling Flexible Multi-LLM Integration for Scalable Knowledge Aggregation, 2025, arXiv 2505.23844; here small
character-level models of four text domains and one of shuffled texts. The paper's own equations were not available
beyond its code; the selector is one trained network, as the paper says, not a new one at every step as in the code.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from consilience.bench.experiments import Options, Scores, compare, run
from consilience.bench.experiments.source_models import SourceModels

SEEDS = (0, 1, 2)
TRAINING = {"steps": 400, "batch": 16, "learning_rate": 4e-3}
FUSION = {"likelihood": 0.9, "fusion": 0.1, "feedback": 0.5}  # as published
RULES: dict[str, dict[str, Any]] = {
    "LM loss only": {"rule": "uniform", "likelihood": 1.0, "fusion": 0.0},
    "uniform average": {**FUSION, "rule": "uniform"},
    "best source per text (MinCE)": {**FUSION, "rule": "best"},
    "Fusion-X": {**FUSION, "rule": "fusion_x"},
    "Fusion-X without feedback": {**FUSION, "rule": "fusion_x", "feedback": 0.0},
}
SMALL = {"texts": 40, "own": 8, "tested": 4, "hidden": 16, "steps": 3}


def main(options: Options) -> None:
    report = options.report("fusion-x", "Fusion-X", source="arXiv 2505.23844")
    family = SourceModels(**options.pick({}, SMALL), cache=options.cache)
    training = options.pick(TRAINING, {"steps": 3, "batch": 4, "learning_rate": 4e-3})
    scores: dict[str, list[Scores]] = {}
    listened: dict[str, list[Any]] = {}
    for seed in options.seeds:
        sources = family.sources(seed)
        for name, settings in RULES.items():
            target, fused = family.learn(seed, sources, **training, **settings)
            scores.setdefault(name, []).append(family.scores(target))
            listened.setdefault(name, []).append(fused)
        for name, source in sources.items():
            scores.setdefault(f"source: {name}", []).append(family.scores(source))

    perplexities = {name: [family.perplexity(one) for one in held] for name, held in scores.items()}
    means = {name: [float(np.mean(list(one.values()))) for one in held] for name, held in perplexities.items()}
    plain = perplexities["LM loss only"]
    worse = {
        name: sum(one[d] > base[d] for one, base in zip(held, plain, strict=True) for d in family.domains)
        for name, held in perplexities.items()
    }
    n = scores["Fusion-X"][0].n
    rows = [
        [
            name,
            *(float(np.mean([one[d] for one in held])) for d in family.domains),
            float(np.mean(means[name])),
            *means[name],
            worse[name] if name in RULES else None,
        ]
        for name, held in perplexities.items()
    ]
    columns = ["model", *family.domains, "mean", *(f"seed {seed}" for seed in options.seeds), "domains worse"]
    caption = f"Test perplexity per character, {n} texts; domains worse than LM loss only, of {len(plain)} seeds"
    report.table(rows, columns, caption)
    share = [
        [name, seed, *fused.share.values(), fused.kept, fused.entropy]
        for name in ("Fusion-X", "Fusion-X without feedback")
        for seed, fused in zip(options.seeds, listened[name], strict=True)
    ]
    report.table(share, ["selector", "seed", *family.names, "sources kept", "entropy"], "Mean weight of each source")

    ours, uniform = means["Fusion-X"], means["uniform average"]
    report.claim(
        "Fusion-X is no worse than the uniform average in every seed (mean perplexity)",
        all(a <= b for a, b in zip(ours, uniform, strict=True)),
        ", ".join(f"{a:.3f} against {b:.3f}" for a, b in zip(ours, uniform, strict=True)),
    )
    alone = float(np.mean(means["LM loss only"]))
    text = f"{np.mean(ours):.3f} against {alone:.3f}"
    report.claim("Fusion-X is no worse than the LM loss alone, on average", float(np.mean(ours)) <= alone, text)
    counts = f"{worse['Fusion-X']} against {worse['uniform average']}"
    fewer = worse["Fusion-X"] <= worse["uniform average"]
    report.claim("Fusion-X harms no more domains than the uniform average", fewer, counts)
    bad = [fused.share[family.noise] for fused in listened["Fusion-X"]]
    limit = 1 / len(family.names)
    shares = ", ".join(f"{value:.3f}" for value in bad)
    report.claim("the shuffled source gets less than its equal share", max(bad) < limit, f"{shares}; limit {limit:.3f}")
    entropies = [[fused.entropy for fused in listened[name]] for name in ("Fusion-X", "Fusion-X without feedback")]
    detail = f"{np.mean(entropies[1]):.3f} without, {np.mean(entropies[0]):.3f} with"
    lower = bool(np.mean(entropies[1]) < np.mean(entropies[0]))
    report.claim("without the feedback loss the selector's entropy is lower", lower, detail)
    for other in ("best source per text (MinCE)", "uniform average"):
        found = compare(scores["Fusion-X"], scores[other])
        report.note(f"Fusion-X less {other}, log-likelihood per character: {found}.")
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
