"""In-BoXBART: one text-to-text model for many tasks, with the instruction of its task before every input.

Parmar et al. 2022, In-BoXBART: Get Instructions into Biomedical Multi-Task Learning, arXiv 2204.07600. Here not on
biomedical data, which their owners license, and not with BART's weights: eight tasks on the same generated sentences,
told apart by their definitions, and a small encoder-decoder that was first trained to restore masked words of such
sentences. Of an instruction the definition alone is read: with a demonstration, so small a model copies from that.
Single-task models take as many steps as the multi-task model ("equal steps"), or as many passes over their instances,
an eighth of the steps ("equal passes"). Tasks, sizes and steps were chosen on dev sentences, with seed 100.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from consilience.bench.experiments import Options, Scores, compare, run
from consilience.bench.experiments.instructed_texts import InstructedTexts

SEEDS = (0, 1, 2)
STEPS = 300  # of every model on all training instances
SHOTS, FEW_STEPS = 32, 200  # instances per task, and steps of every model on them
ABOVE_PLAIN = 0.15  # with instructions above without them
BELOW_SINGLE = -0.02  # with instructions, of the single-task models
FEW_ABOVE_SINGLE = 0.10  # with instructions above the single-task models, on few instances
SHUFFLED = 0.20  # what instructions of other tasks take away
SMALL = {"train": 60, "dev": 4, "test": 6, "pretrain": 60, "pretrain_steps": 3, "batch": 4}
SINGLE, PASSES, PLAIN, TOLD, OTHERS = (
    "single-task, equal steps",
    "single-task, equal passes",
    "multi-task without instruction",
    "multi-task with instruction",
    "with instructions of other tasks",
)


def single_task(family: InstructedTexts, seed: int, steps: int, shots: int | None) -> Scores:
    found = {}
    for task in family.tasks:
        state = family.learn(seed, steps=steps, tasks=[task], instructed=False, shots=shots)
        found |= family.scores(state, tasks=[task], instructed=False).by_example
    return Scores(found)


def measure(family: InstructedTexts, seed: int, steps: int, shots: int | None) -> dict[str, Scores]:
    plain = family.learn(seed, steps=steps, instructed=False, shots=shots)
    told = family.learn(seed, steps=steps, shots=shots)
    return {
        SINGLE: single_task(family, seed, steps, shots),
        PASSES: single_task(family, seed, max(1, round(steps / len(family.tasks))), shots),
        PLAIN: family.scores(plain, instructed=False),
        TOLD: family.scores(told),
        OTHERS: family.scores(told, swapped=True),
    }


def table(family: InstructedTexts, held: dict[str, list[Scores]]) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = [
        [task, *(float(np.mean([one.by_task[task] for one in scores])) for scores in held.values())]
        for task in family.tasks
    ]
    return [*rows, ["mean", *(compare(scores) for scores in held.values())]]


def main(options: Options) -> None:
    report = options.report("in-boxbart", "In-BoXBART", source="arXiv 2204.07600")
    family = InstructedTexts(cache=options.cache, **options.pick({}, SMALL))
    settings = {
        "all instances": (options.pick(STEPS, 3), None),
        f"{SHOTS} instances per task": (options.pick(FEW_STEPS, 3), options.pick(SHOTS, 4)),
    }
    found: list[dict[str, list[Scores]]] = []
    for name, (steps, shots) in settings.items():
        measured = [measure(family, seed, steps, shots) for seed in options.seeds]
        held = {column: [one[column] for one in measured] for column in measured[0]}
        caption = f"Test score, {name}, {steps} steps, n={held[TOLD][0].n} per seed, 95 % intervals"
        report.table(table(family, held), ["task", *held], caption)
        found.append(held)
    size = sum(value.numel() for value in family.base(options.seeds[0]).values())
    report.note(
        f"The model has {size:,} parameters. Scores are exact match, entity F1 or Rouge-L, as each task has it, "
        "of greedy answers. Single-task models and the one without instruction read the sentence alone."
    )

    full, few = found
    text = f"with instruction, multi-task is above without by {100 * ABOVE_PLAIN:g} points"
    report.difference(text, full[TOLD], full[PLAIN], margin=ABOVE_PLAIN)
    text = f"with instruction, multi-task is at most {-100 * BELOW_SINGLE:g} points below single-task, equal steps"
    report.difference(text, full[TOLD], full[SINGLE], margin=BELOW_SINGLE)
    text = f"instructions of other tasks take {100 * SHUFFLED:g} points away: the model reads them"
    report.difference(text, full[TOLD], full[OTHERS], margin=SHUFFLED)
    for column in (SINGLE, PASSES):
        text = f"{SHOTS} instances per task: with instruction is {100 * FEW_ABOVE_SINGLE:g} points above {column}"
        report.difference(text, few[TOLD], few[column], margin=FEW_ABOVE_SINGLE)
    for column in (SINGLE, PASSES):
        report.note(
            f"All instances, with instruction less {column}, not asserted: {compare(full[TOLD], full[column])}."
        )
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
