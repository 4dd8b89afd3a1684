"""CoDiEmb's losses: values, and gradients where the case holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from consilience.training.loss import grouped_infonce
from consilience.training.similarity_loss import (
    alike_infonce,
    pearson_loss,
    preference_loss,
    rank_divergence,
    similarity_loss,
)
from tests.golden.translate import Groups, Rule, Translation, same


def _weights(value: Mapping[str, float], experts: int) -> dict[str, Any]:
    names = {"infonce": "middle", "pearson": "pearson", "pro": "preference", "rankkl": "rank"}
    return {"weights": {names[name]: weight for name, weight in value.items()}}


def _check(case: Mapping[str, Any], groups: Groups, ours: Mapping[str, Any], merged: Any) -> list[str]:
    given = {name: torch.from_numpy(np.asarray(value)) for name, value in groups["aux"].items()}
    scores, first, second = given["sts_score"], given["sts_a"], given["sts_b"]
    contrast = {"temperature": ours["temperature"], "alike": ours["alike"]}
    ranked = {"temperature": ours["rank_temperature"]}
    found: dict[str, torch.Tensor] = {}
    for name, loss, options in (
        ("pearson", pearson_loss, {}),
        ("pro", preference_loss, ranked),
        ("rankkl", rank_divergence, ranked),
    ):
        similarity = given["sts_sim"].clone().requires_grad_(True)
        value = loss(similarity, scores, **options)
        found[f"loss.{name}"] = value.detach()
        (found[f"grad.{name}"],) = torch.autograd.grad(value, similarity)
    found["loss.sts_infonce"] = alike_infonce(first, second, scores, **contrast)
    found["loss.sts_total"] = similarity_loss(
        first,
        second,
        scores,
        (first, second),
        weights=ours["weights"],
        rank_temperature=ours["rank_temperature"],
        **contrast,
    )
    queries = given["ir_query"]
    passages = given["ir_passages"].view(len(queries), ours["slots"] + ours["negatives"], -1)
    groups_of = (passages[:, : ours["slots"]], passages[:, ours["slots"] :])
    found["loss.ir_infonce"] = grouped_infonce(queries, *groups_of, temperature=ours["temperature"])
    limits = case["tolerance"]
    problems = []
    for name, value in found.items():
        if not np.allclose(value.numpy(), groups["aux"][name], rtol=limits["rtol"], atol=limits["atol"]):
            problems.append(f"{name} is off by {np.abs(value.numpy() - groups['aux'][name]).max():.3g}")
    return problems


_RULES: Mapping[str, Rule] = {
    "temperature": same("temperature"),
    "rank_temperature": same("rank_temperature"),
    "positive_group_size": same("slots"),
    "negative_group_size": same("negatives"),
    "sts_infonce_threshold": same("alike"),
    "weights": _weights,
}

TABLE: Mapping[tuple[str, str], Translation] = {
    ("codiemb", "TencentCloudADP/youtu-embedding"): Translation(_RULES, extra=_check),
}
