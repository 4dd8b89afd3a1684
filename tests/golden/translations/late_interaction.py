"""Late interaction: similarities, normalised lists, the loss and its gradient, lengths of queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from consilience.models.late_interaction import query_length
from consilience.models.token_vectors import TokenVectors, max_similarity
from consilience.training.late_interaction_loss import distillation_loss, late_interaction_scores, min_max
from tests.golden.translate import Groups, Translation, fixed, without_effect


def _check(case: Mapping[str, Any], groups: Groups, ours: Mapping[str, Any], merged: Any) -> list[str]:
    given = {name: np.asarray(value) for name, value in groups["aux"].items()}
    query = torch.from_numpy(given["query_tokens"]).requires_grad_(True)
    documents, mask = torch.from_numpy(given["doc_tokens"]), torch.from_numpy(given["doc_mask"])
    scores = late_interaction_scores(query, documents, mask)
    loss = distillation_loss(scores, torch.from_numpy(given["teacher"]))
    (gradient,) = torch.autograd.grad(loss, query)
    plain = []
    for row in range(len(scores)):
        pairs = zip(given["doc_tokens"][row], given["doc_mask"][row], strict=True)
        held = TokenVectors.from_list([tokens[counts > 0] for tokens, counts in pairs])
        plain.append(max_similarity(given["query_tokens"][row], held))
    found = {
        "maxsim": scores.detach().numpy(),
        "student_norm": min_max(scores.detach()).numpy(),
        "teacher_norm": min_max(torch.from_numpy(given["teacher"])).numpy(),
        "kl_loss": loss.detach().numpy().reshape(1),
        "kl_grad_query": gradient.numpy(),
        "padded_len": np.array([query_length(int(tokens)) for tokens in given["query_len"]]),
    }
    limits = case["tolerance"]
    problems = [
        f"{name} is off by {np.abs(value - given[name]).max():.3g}"
        for name, value in found.items()
        if not np.allclose(value, given[name], rtol=limits["rtol"], atol=limits["atol"])
    ]
    if not np.allclose(np.stack(plain), given["maxsim"], rtol=limits["rtol"], atol=1e-5):
        problems.append("max_similarity differs")
    return problems


_SOURCE = (
    "no training code released; formulas from the paper, KL reduction as in common late-interaction trainers (softmax "
    "of both normalised score lists, mean over the batch)"
)
TABLE: Mapping[tuple[str, str], Translation] = {
    ("jacolbert", _SOURCE): Translation(
        {
            "ways": without_effect,
            "normalise": fixed("minmax both"),
            "reduction": fixed("batchmean"),
            "multiple": fixed(32),
            "min_mask_tokens": fixed(8),
            "checkpoints": without_effect,
        },
        extra=_check,
        method="linear",
    )
}
