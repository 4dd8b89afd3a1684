from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from consilience.data.task_batches import DatasetSize, TaskBatches
from consilience.errors import DataError, RequestError

SIZES = {"law": DatasetSize(50, 4), "health": DatasetSize(21, 4), "pairs": DatasetSize(33, 5)}


def test_every_batch_is_of_one_dataset_as_often_as_it_has_full_batches() -> None:
    batches = TaskBatches(SIZES, ranks=2, seed=3)
    assert batches.counts == {"law": 6, "health": 2, "pairs": 3} and len(batches) == 11
    for epoch in (0, 1):
        found: Counter[str] = Counter()
        seen: dict[str, list[int]] = {name: [] for name in SIZES}
        for step in range(epoch * 11, epoch * 11 + 11):
            ((name, first),), ((other, second),) = (batches.at(step, rank).items() for rank in (0, 1))
            assert name == other and len(first) == len(second) == SIZES[name].batch
            assert not set(first.tolist()) & set(second.tolist())
            found[name] += 1
            seen[name] += [*first.tolist(), *second.tolist()]
        assert found == batches.counts
        for name, rows in seen.items():
            assert len(set(rows)) == len(rows) == batches.counts[name] * SIZES[name].batch * 2
            assert max(rows) < SIZES[name].rows


def test_two_ranks_together_take_what_one_device_takes_with_twice_the_batch() -> None:
    whole = TaskBatches({name: DatasetSize(size.rows, 2 * size.batch) for name, size in SIZES.items()}, seed=1)
    split = TaskBatches(SIZES, ranks=2, seed=1)
    for step in range(len(whole)):
        ((name, rows),) = whole.at(step).items()
        assert rows.tolist() == [row for rank in (0, 1) for row in split.at(step, rank)[name].tolist()]


def test_the_order_repeats_with_the_seed_and_changes_with_the_epoch() -> None:
    def epoch(seed: int, number: int) -> list[list[int]]:
        batches = TaskBatches(SIZES, seed=seed)
        steps = range(number * len(batches), (number + 1) * len(batches))
        return [rows.tolist() for step in steps for rows in batches.at(step).values()]

    assert epoch(1, 1) == epoch(1, 1)
    assert epoch(1, 0) != epoch(1, 1) and epoch(1, 0) != epoch(2, 0)


def test_single_has_one_batch_size_and_mixed_mixes() -> None:
    single = TaskBatches(SIZES, sampler="single", seed=0)
    assert single.counts == {"law": 12, "health": 5, "pairs": 8}
    mixed = TaskBatches(SIZES, sampler="mixed", ranks=2, seed=0)
    assert len(mixed) == 104 // 8
    seen: set[tuple[str, int]] = set()
    for step in range(len(mixed)):
        parts = [
            {(name, row) for name, rows in mixed.at(step, rank).items() for row in rows.tolist()} for rank in (0, 1)
        ]
        assert [len(part) for part in parts] == [4, 4] and not parts[0] & parts[1]
        assert not seen & (parts[0] | parts[1])
        seen |= parts[0] | parts[1]
    assert any(len(mixed.at(step)) > 1 for step in range(len(mixed)))


def test_a_dataset_smaller_than_its_batch_is_named() -> None:
    batches = TaskBatches({"law": DatasetSize(50, 4), "tiny": DatasetSize(3, 4)})
    assert batches.notices == ("dataset tiny: 3 rows do not fill a batch of 4; it takes no part in training",)
    assert {name for step in range(len(batches)) for name in batches.at(step)} == {"law"}
    with pytest.raises(DataError, match="no dataset fills a batch: tiny 3 rows of 4; use smaller batches"):
        TaskBatches({"tiny": DatasetSize(3, 4)})


def test_wrong_settings_are_reported_together() -> None:
    with pytest.raises(RequestError) as caught:
        TaskBatches({"law": DatasetSize(5, 0)}, sampler="dynamik", ranks=0)  # type: ignore[arg-type]
    for part in ("did you mean 'dynamic'", "ranks is 0", "law: the batch is 0"):
        assert part in str(caught.value)
    with pytest.raises(RequestError, match="rank 2 of 2"):
        TaskBatches(SIZES, ranks=2).at(0, 2)


def test_rows_are_drawn_without_a_pattern() -> None:
    batches = TaskBatches({"law": DatasetSize(400, 40)}, seed=0)
    means = [float(np.mean(batches.at(step)["law"])) for step in range(10)]
    assert all(150 < mean < 250 for mean in means)
