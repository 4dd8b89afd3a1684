"""The steps of joint training: a batch of one task, and the loss that this task is measured by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consilience.core.randomness import stream_key
from consilience.data.graded import GradedPairs
from consilience.data.pairs import TrainingPairs
from consilience.data.task_batches import DatasetSize, TaskBatches
from consilience.training.groups import Groups
from consilience.training.loop import embed, embed_with_middle
from consilience.training.loss import grouped_infonce
from consilience.training.similarity_loss import alike_infonce, similarity_loss

if TYPE_CHECKING:
    from consilience.models.encoder import DenseEncoder
    from consilience.training.settings import Joint, Settings

__all__ = ["JointSteps"]

_Rows = NDArray[np.int64]


class JointSteps:
    """The loss of each step, a function of (seed, step) and the encoder's parameters.

    `batches` says which dataset a step takes. Retrieval: InfoNCE over grouped positives and hard negatives. Graded
    pairs: `similarity_loss`, or with objective "infonce" the pairs of a score of at least `alike` as positives. A mixed
    batch is one InfoNCE over the positives of all its datasets.
    """

    def __init__(
        self,
        encoder: DenseEncoder,
        datasets: Sequence[TrainingPairs | GradedPairs],
        settings: Settings,
        joint: Joint,
    ) -> None:
        self.encoder, self.settings, self.joint = encoder, settings, joint
        self.groups: dict[str, Groups] = {}
        self.graded: dict[str, GradedPairs] = {}
        self.starts: dict[str, int] = {}
        texts: list[str] = []
        for data in datasets:
            self.starts[data.name] = len(texts)
            if isinstance(data, GradedPairs):
                self.graded[data.name] = data
                texts += [*data.first, *data.second]
                continue
            groups = Groups(data, positives=joint.positives, negatives=joint.negatives, seed=settings.seed)
            self.groups[data.name] = groups
            texts += [*groups.queries, *groups.documents]
        graded = joint.similarity_batch or settings.batch
        sizes = {
            data.name: DatasetSize(len(data), graded if data.name in self.graded else settings.batch)
            for data in datasets
        }
        self.batches = TaskBatches(sizes, sampler=joint.sampler, seed=settings.seed)
        self.tokens = encoder.tokenise(texts)

    def __call__(self, step: int) -> tuple[Tensor, int]:
        """Return the loss of a step (0, 1, ...) and the number of tokens it took."""
        batch = self.batches.at(step)
        if self.settings.dropout:  # a function of (seed, step), so that a resumed run drops the same units
            torch.manual_seed(stream_key(self.settings.seed, "dropout", str(step)) >> 1)
        if self.joint.sampler == "mixed":
            return self._mixed(batch, step)
        ((name, rows),) = batch.items()
        return self._graded(name, rows) if name in self.graded else self._retrieval(name, rows, step)

    def _retrieval(self, name: str, rows: _Rows, step: int) -> tuple[Tensor, int]:
        groups, start = self.groups[name], self.starts[name]
        group = groups.at(rows, step // len(self.batches))
        documents = np.concatenate([group.positives.ravel(), group.negatives.ravel()])
        vectors, used = self._vectors(np.concatenate([start + rows, start + len(groups) + documents]))
        sizes = [len(rows), group.positives.size, group.negatives.size]
        queries, positives, negatives = torch.split(vectors, sizes)
        loss = grouped_infonce(
            queries,
            positives.view(*group.positives.shape, -1),
            negatives.view(len(rows), group.negatives.shape[1], vectors.shape[1]),
            temperature=self.joint.temperature,
            left_out=torch.from_numpy(group.left_out).to(vectors.device),
        )
        return loss, used

    def _pair_rows(self, name: str, rows: _Rows) -> _Rows:
        start = self.starts[name]
        return np.concatenate([start + rows, start + len(self.graded[name]) + rows])

    def _scores(self, name: str, rows: _Rows) -> Tensor:
        scores = self.graded[name].scores
        return torch.tensor([scores[row] for row in rows.tolist()], device=self.encoder.device)

    def _graded(self, name: str, rows: _Rows) -> tuple[Tensor, int]:
        joint, scores = self.joint, self._scores(name, rows)
        wanted = self._pair_rows(name, rows)
        if joint.objective == "infonce":
            vectors, used = self._vectors(wanted)
            first, second = vectors.chunk(2)
            return alike_infonce(first, second, scores, alike=joint.alike, temperature=joint.temperature), used
        vectors, states = embed_with_middle(self.encoder, self.tokens, wanted)
        first, second = vectors.chunk(2)
        middle = states.chunk(2)
        loss = similarity_loss(
            first,
            second,
            scores,
            (middle[0], middle[1]),
            weights=joint.weights,
            temperature=joint.temperature,
            rank_temperature=joint.rank_temperature,
            alike=joint.alike,
        )
        return loss, self._used(wanted)

    def _mixed(self, batch: Mapping[str, _Rows], step: int) -> tuple[Tensor, int]:
        """All positives of all datasets in one InfoNCE: the first slot, other relevant documents left out."""
        asked: list[_Rows] = []
        found: list[_Rows] = []
        masks: list[NDArray[np.bool_]] = []
        for name, rows in batch.items():
            if name in self.groups:
                groups, start = self.groups[name], self.starts[name]
                group = groups.at(rows, step // len(self.batches))
                asked.append(start + rows)
                found.append(start + len(groups) + group.positives[:, 0])
                masks.append(group.left_out[0, :, : len(rows)])
                continue
            kept = rows[self._scores(name, rows).cpu().numpy() >= self.joint.alike]
            first, second = np.split(self._pair_rows(name, kept), 2)
            asked.append(first)
            found.append(second)
            masks.append(np.zeros((len(kept), len(kept)), np.bool_))
        count = sum(map(len, asked))
        left_out = np.zeros((count, count), np.bool_)
        place = 0
        for mask in masks:
            left_out[place : place + len(mask), place : place + len(mask)] = mask
            place += len(mask)
        if not count:  # a batch of nothing but pairs that are not alike has nothing to teach
            vectors, used = self._vectors(self._pair_rows(*next(iter(batch.items()))))
            return vectors.sum() * 0.0, used
        vectors, used = self._vectors(np.concatenate([*asked, *found]))
        queries, documents = vectors.chunk(2)
        outside = torch.from_numpy(left_out).to(vectors.device)
        loss = grouped_infonce(queries, documents[:, None], temperature=self.joint.temperature, left_out=outside[None])
        return loss, used

    def _vectors(self, wanted: _Rows) -> tuple[Tensor, int]:
        return embed(self.encoder, self.tokens, wanted), self._used(wanted)

    def _used(self, wanted: _Rows) -> int:
        return int(self.tokens.lengths[wanted].sum())
