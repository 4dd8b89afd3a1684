"""What late interaction is taught by and compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from consilience.bench.late_interaction import lexical_teacher, ndcg_of_queries
from consilience.data import EvaluationSet
from consilience.models.creation import create_encoder
from consilience.models.late_interaction import LateInteraction, LateInteractionEncoder

TEXTS = ("the red cat sleeps", "a blue dog", "cat red", "")


def test_the_teacher_prefers_words_in_their_order() -> None:
    scores = lexical_teacher(["red cat", "unknown", ""], TEXTS)
    assert scores.shape == (3, 4) and scores[0, 0] > scores[0, 1] == 0 and not scores[1:].any()
    assert scores[0, 0] - scores[0, 2] > -0.5, "half a point is for the run of words"


@pytest.mark.parametrize("how", ["tokens", "fixed", "mean"])
def test_every_ranking_finds_the_same_words(tmp_path: Path, how: str) -> None:
    encoder = create_encoder(tmp_path / "base", TEXTS, words=60, width=32, layers=1, max_tokens=48)
    model = LateInteractionEncoder.create(encoder, dimension=16, settings=LateInteraction(masks=True))
    sample = EvaluationSet("s", "test", ("q",), ("blue dog",), tuple("abcd"), TEXTS, ({1: 1.0},))
    values = ndcg_of_queries(model, sample, how=how)  # type: ignore[arg-type]
    assert values.shape == (1,) and 0 <= values[0] <= 1 and np.isfinite(values).all()
