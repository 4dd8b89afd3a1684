"""Words with a filter: what passes is looked up by number or picked from the hits, and both find the same."""

from __future__ import annotations

import numpy as np
import pytest

from consilience.data.documents import Document
from consilience.stores import text as module
from consilience.stores.embedded import EmbeddedStores
from consilience.stores.protocol import Batch

COUNT = 700


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedStores:
    draw = np.random.default_rng(0)
    made = EmbeddedStores.create(tmp_path_factory.mktemp("text") / "index", [], language=None)
    texts = [" ".join(f"w{n}" for n in draw.integers(0, 40, 12)) for _ in range(COUNT)]
    fields = [{"n": n, "first": int(text.split()[0][1:])} for n, text in enumerate(texts)]
    made.write(Batch([Document(f"d{n}", text, fields=fields[n]) for n, text in enumerate(texts)]), replace=False)
    made.delete([f"d{n}" for n in range(0, COUNT, 7)])
    return made


@pytest.mark.parametrize("where", ["n < 3", "n < 60", "n >= 350", "not first = 3", "first = 3", "n > 699", None])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_looked_up_or_picked_the_finds_are_the_same(
    stores: EmbeddedStores, where: str | None, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = ["w3 w5", "w3 w1 w2 w39", "w41", "w7"]
    every = [
        dict(zip(one.numbers.tolist(), one.scores.tolist(), strict=True)) for one in stores.search_text(queries, COUNT)
    ]
    passing = set(stores.passing(where).tolist())
    found = []
    for share, ahead in ((0.0, 1.25), (0.0, 0.0), (1e9, 1.25)):
        monkeypatch.setattr(module, "_BY_NUMBER", share)
        monkeypatch.setattr(module, "_AHEAD", ahead)
        found.append(stores.search_text(queries, k, where=where))
    for n, scores in enumerate(every):
        wanted = sorted((score, -number) for number, score in scores.items() if number in passing)[::-1][:k]
        for one in found:
            assert one[n].scores.tolist() == pytest.approx([score for score, _ in wanted], rel=1e-5)
            assert one[n].numbers.tolist() == found[0][n].numbers.tolist()
            assert {*one[n].numbers.tolist()} <= passing
