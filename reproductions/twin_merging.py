"""Twin-Merging: a shared model, compressed exclusive experts, and a trained router that mixes them per input.

Lu et al. 2024, Twin-Merging: Dynamic Integration of Modular Expertise in Model Merging, arXiv 2406.15479; here on four
views of digits, whose images come in one pool: the router sees the shared model's vector, never the task's name.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from consilience.bench.experiments import Options, Scores, Workbench, run
from consilience.bench.experiments.images import DigitViews
from consilience.bench.experiments.routed_images import RoutedImages
from consilience.bundles.creation import create_bundle
from consilience.bundles.routers.perceptron import fit_perceptron

SEEDS = (0, 1, 2, 3, 4)
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)  # of task arithmetic, on dev
SHARED = 0.3  # scale of the shared model's task arithmetic, as the authors have it
RANKS = (0.1, 0.3)  # shares of a matrix's rank; the claims are about the first
EPOCHS = (50, 10)  # of the router, in a quick run the second; learning rate and batch are the authors'
GAIN, BELOW_ORACLE = 0.05, -0.04  # above tuned task arithmetic, and below an oracle router, in every seed
LOST = 0.5  # of the gain, by weights that belong to other images
BYTES = 0.60  # of the full experts
EXACT = 1e-4  # largest difference between the layer-wise mix and the dense model


def measure(bench: Workbench, epochs: int, facts: dict[str, Any]) -> dict[str, Scores]:
    family, tasks = bench.family, bench.tasks
    assert isinstance(family, DigitViews)
    tuned = bench.tune("task_arithmetic", {"lambda_": ALPHAS})
    found = {
        "experts": bench.expert_scores(),
        "average": bench.scores(bench.merge("linear")),
        f"task arithmetic|{tuned.parameters['lambda_']}": bench.scores(tuned.state),
    }
    for share in RANKS:
        with tempfile.TemporaryDirectory() as folder:
            bundle = create_bundle(
                Path(folder) / "bundle",
                bench.base,
                bench.experts,
                shared="task_arithmetic",
                parameters={"lambda": SHARED},
                density=share,
            )
            routed = RoutedImages(family, bundle)
            train, dev, (vectors, labels) = (routed.features(tasks, split) for split in ("train", "dev", "test"))
            router = fit_perceptron(*train, dev, epochs=epochs, seed=bench.seed)
            routing = router.route(vectors)
            weights = routing.weights[:, [routing.names.index(name) for name in bundle.experts]]
            own = np.array([[float(name == label) for name in bundle.experts] for label in labels])
            others = weights[np.random.default_rng(bench.seed).permutation(len(weights))]
            accuracy = float(np.mean([a == b for a, b in zip(routing.chosen, labels, strict=True)]))
            found[f"oracle router, rank {share:.0%}|"] = routed.scores(tasks, "test", own)
            found[f"trained router, rank {share:.0%}|accuracy {accuracy:.3f}"] = routed.scores(tasks, "test", weights)
            found[f"shuffled router, rank {share:.0%}|"] = routed.scores(tasks, "test", others)
            if share == RANKS[0]:
                images = family.sets[tasks[0]].examples("dev").images
                mixed, dense = (make(images, weights[: len(images)]) for make in (routed.mixed, routed.dense))
                facts["difference"].append(float((mixed - dense).abs().max()))
                facts["bytes"].append(bundle.sizes["files"] / bundle.sizes["full"])
                facts["sizes"] = bundle.info()
    return found


def main(options: Options) -> None:
    report = options.report("twin-merging", "Twin-Merging", source="arXiv 2406.15479")
    facts: dict[str, Any] = {"difference": [], "bytes": []}
    found: dict[str, list[Scores]] = {}
    table = []
    for bench in options.workbenches(DigitViews("strong")):
        for label, scores in measure(bench, options.pick(*EPOCHS), facts).items():
            name, _, setting = label.partition("|")
            found.setdefault(name, []).append(scores)
            table.append([bench.seed, name, setting, scores.mean, *scores.by_task.values()])
    report.table(table, ["seed", "model", "setting", "mean", *DigitViews.tasks], "Test accuracy, all views in one pool")
    report.table(facts["sizes"], ["part", "bytes", "of the full experts"], f"Sizes at rank {RANKS[0]:.0%}")

    plain, rank = found["task arithmetic"], f"rank {RANKS[0]:.0%}"
    trained, oracle, shuffled = (found[f"{kind} router, {rank}"] for kind in ("trained", "oracle", "shuffled"))
    text = f"{rank} with a trained router is above tuned task arithmetic by {GAIN:.0%} in every seed"
    report.difference(text, trained, plain, margin=GAIN, decide="every seed")
    text = f"{rank} with a trained router is at most {-BELOW_ORACLE:.0%} below an oracle router in every seed"
    report.difference(text, trained, oracle, margin=BELOW_ORACLE, decide="every seed")
    pairs = zip(trained, shuffled, plain, strict=True)
    lost = [(good.mean - bad.mean) / (good.mean - other.mean) for good, bad, other in pairs]
    detail = "share of the gain that is lost, by seed: " + ", ".join(f"{value:.2f}" for value in lost)
    report.claim(f"a shuffled router loses at least {LOST:.0%} of the gain in every seed", min(lost) >= LOST, detail)
    worst = max(facts["difference"])
    text = f"the layer-wise mix of a batch is the dense models' within {EXACT:g}"
    report.claim(text, worst <= EXACT, f"largest difference {worst:.2g}")
    share = max(facts["bytes"])
    report.claim(f"the bundle of four takes less than {BYTES:.0%} of the experts", share < BYTES, f"{share:.1%}")
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
