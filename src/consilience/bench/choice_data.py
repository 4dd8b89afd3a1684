"""Questions with answer options: a dataset folder whose queries name their options, and a head trained to choose.

Source: Xiao et al. 2024, RAR-b: Reasoning as Retrieval Benchmark (arXiv 2404.06347).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consilience.bench.search import normalised
from consilience.core.randomness import stream_key
from consilience.data.retrieval import RetrievalData
from consilience.errors import DataError, MissingExtraError, Problems, RequestError

__all__ = ["ChoiceData", "choose_by_head", "read_choice_data"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ChoiceData:
    """Questions, the pool of all options, the options of each question as rows of the pool, and the right one's place.

    relevant: of every question, the row of its right option.
    """

    name: str
    questions: tuple[str, ...]
    pool: tuple[str, ...]
    options: tuple[tuple[int, ...], ...]
    right: tuple[int, ...]

    @property
    def relevant(self) -> tuple[int, ...]:
        """Row of the right option in the pool, of every question."""
        return tuple(own[place] for own, place in zip(self.options, self.right, strict=True))


def read_choice_data(folder: str | Path, *, most: int | None = None) -> ChoiceData:
    """Open a retrieval dataset whose `queries.parquet` has the column `choices`: ids of the options, as a JSON list.

    The test queries, the first `most` of them; all options stay in the pool. A question has one relevant document, one
    of its options. Raises DataError listing every question of which this is not so.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "bench") from None
    folder = Path(folder)
    data = RetrievalData.open(folder)
    file = folder / "queries.parquet"
    if "choices" not in parquet.read_schema(file).names:
        raise DataError(f"{file}: no column 'choices'; it lists the ids of every question's options, as JSON")
    table = parquet.read_table(file, columns=["_id", "choices"]).to_pydict()
    named = dict(zip(table["_id"], table["choices"], strict=True))
    queries, qrels, position = data.queries("test"), data.qrels("test"), data.documents.position
    options, right = [], []
    problems = Problems()
    for key in queries.ids[:most]:
        own = json.loads(named[key] or "[]")
        gold = [name for name, score in qrels.get(key, {}).items() if score > 0]
        if len(gold) != 1 or gold[0] not in own:
            problems.add(f"question {key}: relevant {gold}, options {own}; one option is relevant")
        elif unknown := [name for name in own if name not in position]:
            problems.add(f"question {key}: options that are no documents: {', '.join(unknown)}")
        else:
            options.append(tuple(position[name] for name in own))
            right.append(own.index(gold[0]))
    problems.raise_if_any(DataError, f"dataset {folder}")
    texts = queries.texts[:most]
    return ChoiceData(data.name, texts, data.documents.texts, tuple(options), tuple(right))


def choose_by_head(
    questions: Array,
    pool: Array,
    options: Sequence[Sequence[int]],
    right: Sequence[int],
    *,
    trained: Sequence[int],
    tested: Sequence[int],
    hidden: int = 64,
    epochs: int = 30,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Train a head over frozen vectors to choose the right option, and return 1 where it does, of the tested questions.

    >>> pool = np.eye(4, dtype=np.float32)
    >>> asked = np.tile(pool, (2, 1))
    >>> options, right = [[0, 1], [1, 2], [3, 2], [3, 0]] * 2, [0, 0, 1, 0] * 2
    >>> choose_by_head(asked, pool, options, right, trained=range(4), tested=range(4, 8), learning_rate=0.05).tolist()
    [1.0, 1.0, 1.0, 1.0]

    questions, pool: vectors, brought to length 1. The head sees [|q - d|, q * d, q, d], has one hidden layer and gives
    a score; the loss is the softmax cross-entropy over a question's own options, by Adam, 32 questions at a time.
    trained, tested: rows of the questions. Raises RequestError for questions in both, and for none to train on.
    """
    import torch

    if not len(trained) or set(trained) & set(tested):
        raise RequestError(
            f"head: {len(trained)} questions to train on, {len(set(trained) & set(tested))} of them are tested, too"
        )
    generator = torch.Generator().manual_seed(stream_key(seed, "choice head") >> 1)
    asked, held = (torch.from_numpy(normalised(one)) for one in (questions, pool))
    width = 4 * asked.shape[1]
    parts = [
        torch.randn(width, hidden, generator=generator) * (2 / width) ** 0.5,
        torch.zeros(hidden),
        torch.randn(hidden, generator=generator) * hidden**-0.5,
    ]
    for part in parts:
        part.requires_grad_(True)
    longest = max(len(own) for own in options)
    padded = torch.tensor([[*own, *([0] * (longest - len(own)))] for own in options])
    absent = torch.tensor([[place >= len(own) for place in range(longest)] for own in options])
    gold = torch.tensor(list(right))

    def scores(rows: torch.Tensor) -> torch.Tensor:
        d = held[padded[rows]]
        q = asked[rows][:, None].expand_as(d)
        seen = torch.cat([(q - d).abs(), q * d, q, d], dim=-1)
        values: torch.Tensor = (seen @ parts[0] + parts[1]).relu() @ parts[2]
        return values.masked_fill(absent[rows], float("-inf"))

    optimiser = torch.optim.AdamW(parts, lr=learning_rate, weight_decay=0.01)
    learned = torch.tensor(list(trained))
    for _ in range(epochs):
        for rows in torch.split(learned[torch.randperm(len(learned), generator=generator)], 32):
            loss = torch.nn.functional.cross_entropy(scores(rows), gold[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    with torch.no_grad():
        rows = torch.tensor(list(tested))
        found: NDArray[np.bool_] = (scores(rows).argmax(dim=1) == gold[rows]).numpy()
    return found.astype(np.float64)
