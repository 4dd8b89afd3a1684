"""Frank-Wolfe merging: the picks of every iteration first, then the weights, then the loss within 0.1 %."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilience.tuning.frank_wolfe import FrankWolfe, frank_wolfe
from tests.golden.translate import Groups, Translation, choose, fixed, same, without_effect
from tests.tuning.toy import ToyPredictor

SOURCE = "tanganke/fusion_bench"


class Toy(ToyPredictor):
    """The network of the cases, with a frozen head; tensors have the cases' names."""

    def __init__(self, name: str, head: Any) -> None:
        module = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        super().__init__(name, module, torch.from_numpy(head))
        self.inner = {
            f"{2 * layer}.{part}": f"encoder.layer.{layer}.dense.{part}" for layer in (0, 1) for part in PARTS
        }
        self.names = self.inner

    def logits(self, batch: Any, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        given = {inner: (parameters or {})[tensor] for inner, tensor in self.inner.items()}
        return super().logits(batch, given)

    def batches(self, examples: Sequence[Any], size: int) -> Iterator[Any]:
        for start in range(0, len(examples), size):
            inputs, labels = zip(*examples[start : start + size], strict=True)
            yield torch.from_numpy(np.stack(inputs)), torch.tensor(labels)


PARTS = ("weight", "bias")


def _run(groups: Groups, names: Sequence[str], ours: Mapping[str, Any]) -> FrankWolfe:
    aux = groups["aux"]
    tasks = [f"t{i}" for i in range(len(names))]
    base, *experts = ({k: torch.from_numpy(v) for k, v in groups[name].items()} for name in ("base", *names))
    models = {task: Toy(task, aux[f"head{i}"]) for i, task in enumerate(tasks)}
    examples = {t: list(zip(aux[f"x{i}"], aux[f"y{i}"].tolist(), strict=True)) for i, t in enumerate(tasks)}
    return frank_wolfe(base, dict(zip(tasks, experts, strict=True)), models, examples, **ours)


def _merge(case: Mapping[str, Any], groups: Groups, names: Sequence[str], ours: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value.numpy() for name, value in _run(groups, names, ours).state.items()}


def _check(case: Mapping[str, Any], groups: Groups, ours: Mapping[str, Any], merged: Any) -> list[str]:
    names = sorted(name for name in groups if name.startswith("expert"))
    found = _run(groups, names, ours)
    picks = [pick for entry in found.trace for pick in entry["picks"]]
    problems = []
    if picks != case["selected_per_iteration"]:
        problems.append(f"picked {picks}")
    margin = min(entry["margin"] for entry in found.trace)
    if ours["variant"] == "hard" and abs(margin / case["smallest_selection_margin"] - 1) > 0.01:
        problems.append(f"the smallest margin is {margin:.6g}")
    for what, value in (("initial", found.start_loss), ("final", found.trace[-1]["loss"])):
        if abs(value / case["objective"][what] - 1) > 1e-3:
            problems.append(f"{what} loss {value:.6g}, not {case['objective'][what]:.6g}")
    return problems


TABLE: Mapping[tuple[str, str], Translation] = {
    ("fw", SOURCE): Translation(
        {
            "variant": same("variant"),
            "granularity": same("granularity"),
            "merge_fn": choose(
                "learning_steps", {"task_arithmetic": 0, "task_arithmetic (0.3 * step)": 0, "adamerging": 500}
            ),
            "max_iters": same("iterations"),
            "step_size": same("step_size"),
            "scaling_factor": same("scale"),
            "loss": same("loss"),
            "init": without_effect,  # the variants' own starting points
            "ada_iters": same("learning_steps"),
            "ada_coeff": lambda value, experts: {"later_start": value} if value else {},
            "ada_loss": lambda value, experts: {"learning_loss": value.removesuffix("_loss")} if value else {},
            "ada_lr": same("learning_rate"),
            "ada_batch_size": fixed(16),
        },
        merge=_merge,
        extra=_check,
    ),
}
