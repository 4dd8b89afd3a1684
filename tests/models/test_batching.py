from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from consilience.models.batching import Tokens, length_sorted_batches, pad


@given(lengths=st.lists(st.integers(0, 40), max_size=60), budget=st.integers(1, 200))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(length_sorted_batches(np.array(lengths, np.int64), budget))
    assert sorted(np.concatenate([*batches, []]).astype(int).tolist()) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget
    order = [lengths[index] for batch in batches for index in batch]
    assert order == sorted(lengths, reverse=True)


@given(texts=st.lists(st.lists(st.integers(1, 99), max_size=9), min_size=1, max_size=8), left=st.booleans())
def test_padding_keeps_every_token_in_place(texts: list[list[int]], left: bool) -> None:
    tokens = Tokens.from_lists(texts, [[1] * len(text) for text in texts])
    rows = np.arange(len(texts))[::-1].copy()
    ids, mask, types = pad(tokens, rows, pad_id=0, pad_type=7, left=left)
    assert types is not None
    for row, index in enumerate(rows):
        real = mask[row] == 1
        assert ids[row][real].tolist() == texts[index]
        assert (ids[row][~real] == 0).all() and (types[row][~real] == 7).all() and (types[row][real] == 1).all()
        if len(texts[index]) and not real.all():
            assert real[-1 if left else 0]


def test_tokens_of_one_text() -> None:
    tokens = Tokens.from_lists([[1, 2, 3], [], [4]])
    assert (len(tokens), tokens.lengths.tolist()) == (3, [3, 0, 1])
    assert tokens.text(0).tolist() == [1, 2, 3] and tokens.text(2).tolist() == [4]
