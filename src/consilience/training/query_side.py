"""Query-side experts: a LoRA adapter that encodes queries only, against documents that stay where they are.

Every query has to find its document among those of the batch (cross-entropy of cosine x scale), as in `train_encoder`;
the documents' vectors are the base's and are made once, so an index of them serves all experts.

Source: Lee et al. 2025, RouterRetriever, arXiv 2409.02685 (LoRA on a frozen retriever, InfoNCE, frozen documents).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from consilience.data import RetrievalData
from consilience.errors import RequestError

if TYPE_CHECKING:
    import torch

    from consilience.training.batches import Batches

__all__ = ["QueryTraining", "train_query_adapter"]


@dataclass(frozen=True)
class QueryTraining:
    """How a query-side adapter is trained; the meaning of each is that of `train_encoder`."""

    steps: int = 120
    batch: int = 32
    learning_rate: float = 5e-4
    rank: int = 8
    alpha: float = 16.0
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    scale: float = 20.0
    max_tokens: int = 32


def train_query_adapter(
    base: str,
    data: Sequence[RetrievalData],
    out: str | Path,
    settings: QueryTraining,
    *,
    seed: int = 0,
    check: Callable[[], None] | None = None,
) -> list[float]:
    """Train an adapter of `base` on the queries of the train splits, write it to the folder `out`, return the losses.

    data: one dataset, or several, of which each step takes one batch in turn; queries identical to dev or test queries
    of any of them are left out. Order and initial adapter are functions of `seed`. The adapter is stored as float32.
    check: called after every step; it may raise to stop.

    Raises RequestError without data, DataError where a batch is larger than the data, WorkError where it diverges.
    """
    import torch

    from consilience.core.progress import Progress
    from consilience.models import load_encoder
    from consilience.training.batches import Batches
    from consilience.training.fitting import fit
    from consilience.training.loop import embed
    from consilience.training.lora import adapter_config, add_adapter, write_adapter
    from consilience.training.loss import in_batch_negatives

    if not data:
        raise RequestError("a query-side adapter is trained on at least one dataset")
    encoder = load_encoder(base, max_tokens=settings.max_tokens)
    sets = [Batches(one.training_pairs(against=data), size=settings.batch, seed=seed) for one in data]
    used = [_used(one, place, len(sets), settings.steps) for place, one in enumerate(sets)]
    vectors = [
        torch.from_numpy(encoder.encode([one.documents[row] for row in rows]))
        for one, rows in zip(sets, used, strict=True)
    ]
    places = [{row: place for place, row in enumerate(rows)} for rows in used]
    tokens = [encoder.tokenise(one.queries) for one in sets]
    parameters, targets, transposed = add_adapter(
        encoder.stack.transformer, rank=settings.rank, alpha=settings.alpha, targets=None, seed=seed
    )

    def loss_at(step: int) -> tuple[torch.Tensor, int]:
        turn, own = step % len(sets), step // len(sets)
        batch = sets[turn].at(own)
        queries = embed(encoder, tokens[turn], batch[:, 0])
        documents = vectors[turn][[places[turn][row] for row in batch[:, 1].tolist()]].to(queries.device)
        relevant = torch.from_numpy(sets[turn].relevant(batch)).to(queries.device)
        loss = in_batch_negatives(queries, documents, relevant, scale=settings.scale)
        return loss, int(tokens[turn].lengths[batch[:, 0]].sum())

    encoder.stack.eval()  # the base's dropout stays off
    with Progress(settings.steps, "step", f"query expert ({', '.join(one.name for one in data)})") as bar:
        state = fit(loss_at, parameters, settings, check=check, progress=bar)
    config = adapter_config(
        base=base, rank=settings.rank, alpha=settings.alpha, targets=targets, fan_in_fan_out=transposed
    )
    write_adapter(Path(out), parameters, config, dtype="float32")
    return state.losses


def _used(batches: Batches, turn: int, turns: int, steps: int) -> list[int]:
    """Return the documents that the steps of one dataset touch."""
    rows = [batches.at(step // turns)[:, 1] for step in range(turn, steps, turns)]
    return sorted(set(np.concatenate(rows).tolist())) if rows else []
