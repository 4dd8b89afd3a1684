"""A mixture-of-experts encoder against one dense encoder for all domains and one per domain, where domains conflict.

Hallee et al. 2024, Contrastive Learning and Mixture of Experts Enables Precise Vector Embeddings; here two layers of
all-MiniLM-L6-v2 on made sentences whose similarity means something else in each of three domains.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from consilience.bench.experiments import Options, Scores, compare, run
from consilience.bench.experiments.conflicts import Conflicts
from consilience.models.routed import RoutedEncoder, from_experts, upcycle
from consilience.training.routed import PairTraining

SEEDS = (0, 1, 2)
TRAINING = PairTraining(steps=60, batch=16, learning_rate=3e-4)  # of every model; chosen on dev, seed 0
EQUAL = 1e-6  # largest difference of vectors that should be the same
GAIN = 0.01  # ROC-AUC of the mixture above that of the dense encoder of all domains
SHARE = 0.97  # of the mean of the encoders of one domain


def largest_differences(family: Conflicts, routed: RoutedEncoder) -> tuple[float, float]:
    """Upcycled against dense for every assignment; a mixed batch against every row alone."""
    texts = [text for domain in family.domains for pair in family.sample(domain, "dev").positive[:4] for text in pair]
    dense = family.encoder().encode(texts)
    fresh = upcycle(family.encoder(), family.domains)
    apart = max(np.abs(fresh.encode(texts, [name] * len(texts)) - dense).max() for name in family.domains)
    mixed = [family.domains[place % len(family.domains)] for place in range(len(texts))]
    alone = np.concatenate([routed.encode([text], [name]) for text, name in zip(texts, mixed, strict=True)])
    return float(apart), float(np.abs(routed.encode(texts, mixed) - alone).max())


def main(options: Options) -> None:
    report = options.report("moe-embeddings", "Mixture-of-experts embeddings", source="Hallee et al. 2024")
    family = Conflicts(**options.pick({}, {"pairs": 4, "tested": 6}), cache=options.cache)
    settings = options.pick(TRAINING, PairTraining(steps=2, batch=2))
    turned = dict(zip(family.domains, (*family.domains[1:], family.domains[0]), strict=True))
    found: dict[str, list[Scores]] = {}

    def keep(name: str, scores: dict[str, np.ndarray]) -> None:
        found.setdefault(name, []).append(Scores(scores))

    differences, counts = (0.0, 0.0), {}
    for seed in options.seeds:
        keep("base", family.scores(family.encoder()))
        keep("dense, all domains", family.scores(family.trained("dense", seed, settings)))
        mixture = family.trained("mixture", seed, settings)
        keep("mixture", family.scores(mixture))
        keep("mixture, wrong domains", family.scores(mixture, through=turned))
        differences = tuple(map(max, differences, largest_differences(family, mixture)))
        counts = mixture.counts()
        own = {}
        with tempfile.TemporaryDirectory() as place:
            for name in family.domains:
                model = family.trained(name, seed, settings)
                own[name] = family.scores(model)[name]
                model.save(Path(place) / name)
            free = from_experts(family.encoder().checkpoint.folder, {n: Path(place) / n for n in family.domains})
        keep("dense, one per domain", own)
        keep("mixture without training", family.scores(free))

    rows = [
        [name, *(np.mean([one.by_task[d] for one in held]) for d in family.domains), compare(held)]
        for name, held in found.items()
    ]
    n = found["mixture"][0].n
    report.table(rows, ["model", *family.domains, "mean, 95 % interval"], f"ROC-AUC, n={n} positive pairs per seed")
    report.table([list(counts.values())], list(counts), "Numbers of parameters")
    report.note("Without training: feed-forward layers of the encoders of one domain, the rest their mean.")
    report.claim("upcycled, the mixture is the dense encoder", differences[0] <= EQUAL, f"{differences[0]:.1e}")
    report.claim(
        "a mixed batch gives each row its own expert's vector", differences[1] <= EQUAL, f"{differences[1]:.1e}"
    )
    moved = family.moved_by("what")
    report.claim("a batch of one domain moves no other expert", moved == ["what"], f"gradients of {moved}")
    dense, mixture_scores = found["dense, all domains"], found["mixture"]
    text = "the mixture is above the dense encoder of all domains by a point"
    report.difference(text, mixture_scores, dense, margin=GAIN)
    share = compare(mixture_scores).difference / compare(found["dense, one per domain"]).difference
    report.claim(f"the mixture keeps {SHARE:.0%} of one encoder per domain", share >= SHARE, f"{share:.1%}")
    report.difference("the domains decide: wrong ones are worse", mixture_scores, found["mixture, wrong domains"])
    fewer = counts["all"] < counts["separate encoders"]
    report.claim("the mixture has fewer parameters than separate encoders", fewer, f"{counts}")
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
