"""CoDiEmb: one encoder for retrieval and similarity, each task with the loss of its metric, against one loss for all.

CoDiEmb: A Collaborative yet Distinct Framework for Unified Representation Learning in IR and STS, 2025; here two layers
of all-MiniLM-L6-v2 on two retrieval and two similarity sets. The fusion of checkpoints is a reconstruction: its formula
was not found.
"""

from __future__ import annotations

import sys

import numpy as np

from consilience.bench.experiments import Options, compare, run
from consilience.bench.experiments.joint_encoders import JointEncoders, JointScores
from consilience.training import Joint

SEEDS = (0, 1, 2)
STEPS, BATCH, RATE = 300, 32, 1e-4  # of every training, chosen before the first full run; not tuned
ALIKE = 0.8  # a score of 4 of 5: pairs that InfoNCE takes as positives, in all trainings
MODES = {
    "InfoNCE only": Joint(objective="infonce", alike=ALIKE),
    "mixed batches": Joint(objective="infonce", sampler="mixed", alike=ALIKE),
    "CoDiEmb": Joint(alike=ALIKE),
}
FUSIONS = {
    "delta-guided, by element": ("delta_guided", {"granularity": "element"}),
    "delta-guided, by tensor": ("delta_guided", {"granularity": "tensor"}),
    "delta-guided, inverse": ("delta_guided", {"inverse": True}),
    "uniform soup": ("linear", {}),
}
GAIN = 2.0  # points of Spearman's correlation above InfoNCE only, mean over seeds
LOSS = 1.0  # points of nDCG@10 that may be lost


def row(name: str, held: list[JointScores]) -> list[object]:
    columns = [
        *(100 * float(np.mean([one.retrieval.by_task[task] for one in held])) for task in held[0].retrieval.by_task),
        *(100 * float(np.mean([one.similarity[task] for one in held])) for task in held[0].similarity),
    ]
    parts = [float(np.mean([getattr(one, part) for one in held])) for part in ("ndcg", "spearman", "mean")]
    return [name, *columns, *parts]


def main(options: Options) -> None:
    report = options.report("codiemb", "CoDiEmb: retrieval and similarity in one encoder", source="CoDiEmb, 2025")
    small = {"queries": 5, "documents": 20, "pairs": 20, "max_tokens": 8}
    family = JointEncoders(**options.pick({}, small), cache=options.cache)
    settings = options.pick(
        {"steps": STEPS, "batch": BATCH, "learning_rate": RATE}, {"steps": 2, "batch": 4, "learning_rate": RATE}
    )
    found = {"base": [family.scores()]}
    folders = []
    for seed in options.seeds:
        for name, joint in MODES.items():
            folder = family.trained(joint, seed, **settings)
            found.setdefault(name, []).append(family.scores(folder))
            if name == "CoDiEmb":
                folders.append(folder)
    fused = {
        name: [family.scores(family.fused(method, folders, **parameters))]
        for name, (method, parameters) in FUSIONS.items()
    }
    single = found["CoDiEmb"]
    best = max(single, key=lambda one: one.mean)
    columns = ["model", *single[0].retrieval.by_task, *single[0].similarity, "nDCG@10", "Spearman", "mean"]
    n = sum(len(pairs) for pairs in family.measured)
    caption = f"Test, x 100, means over {len(options.seeds)} seeds; {single[0].retrieval.n} queries, {n} pairs"
    report.table([row(name, held) for name, held in found.items()], columns, caption)
    rows = [row("best single (by test)", [best]), row("mean of the singles", single)]
    rows += [row(name, held) for name, held in fused.items()]
    report.table(rows, columns, f"Fusion of the CoDiEmb encoders of {len(folders)} seeds")

    plain = found["InfoNCE only"]
    gains = [ours.spearman - other.spearman for ours, other in zip(single, plain, strict=True)]
    text = f"CoDiEmb is at least {GAIN:g} points of Spearman's correlation above InfoNCE only, mean over seeds"
    report.claim(text, float(np.mean(gains)) >= GAIN, ", ".join(f"{gain:+.2f}" for gain in gains))
    report.difference(
        f"its nDCG@10 is at most {LOSS:g} point lower",
        [one.retrieval for one in single],
        [one.retrieval for one in plain],
        margin=-LOSS / 100,
        decide="mean",
    )
    mixed = [ours.spearman - other.spearman for ours, other in zip(single, found["mixed batches"], strict=True)]
    search = compare([one.retrieval for one in single], [one.retrieval for one in found["mixed batches"]])
    report.note(f"CoDiEmb less mixed batches: Spearman {np.mean(mixed):+.2f}, nDCG@10 {search} (0 to 1).")
    ours, mean = fused["delta-guided, by element"][0].mean, float(np.mean([one.mean for one in single]))
    report.claim("the fused encoder is not below the mean of the singles", ours >= mean, f"{ours:.2f}, {mean:.2f}")
    soup = fused["uniform soup"][0].mean
    report.note(f"Delta-guided fusion {ours:.2f}, uniform soup {soup:.2f}, best single {best.mean:.2f}.")
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
