"""Training of cross-encoders: they learn to rank groups, resume to the same bytes, and rerank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consilience.core.jobs import Budget
from consilience.data.documents import Document
from consilience.data.scored_groups import ScoredGroups
from consilience.errors import DataError, RequestError, WorkError
from consilience.models.creation import create_encoder
from consilience.retrieval.reranking import open_reranker
from consilience.training.cross_encoder import train_cross_encoder

TEXTS = ("red cat", "blue dog", "green bird", "red dog", "blue bird", "green cat")
QUERIES = ("find red", "find blue", "find green")
DOCUMENTS = [[0, 1, 2], [1, 0, 5], [2, 3, 4]]
GROUPS = ScoredGroups("colours", QUERIES, TEXTS, DOCUMENTS, [[2, 0, 0]] * 3)
SETTINGS: dict[str, Any] = {"steps": 6, "batch": 3, "max_tokens": 16, "learning_rate": 3e-3, "progress": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("cross") / "base"
    create_encoder(place, [*TEXTS, *QUERIES], words=80, width=16, layers=1, max_tokens=24)
    return str(place)


@pytest.mark.parametrize("objective", ["positive", "distillation", "margin"])
def test_the_loss_falls_and_the_right_ones_come_first(base: str, tmp_path: Path, objective: str) -> None:
    settings = {**SETTINGS, "steps": 60, "objective": objective}
    record = train_cross_encoder(base, GROUPS, tmp_path / "out", dev=GROUPS, **settings)
    assert record["loss"]["last_20"] < record["loss"]["first_5"]
    if objective != "positive":
        return
    assert record["dev"]["expert"] == 100 > record["dev"]["base"]
    more = train_cross_encoder(tmp_path / "out", GROUPS, tmp_path / "more", **{**SETTINGS, "steps": 2})
    assert more["loss"]["first_5"] < record["loss"]["first_5"] / 2, "it goes on with its head"
    reranker = open_reranker(f"cross-encoder:{tmp_path / 'out'}", max_tokens=16)
    for query, own in zip(QUERIES, DOCUMENTS, strict=True):
        order = reranker.rerank(query, [Document(str(place), TEXTS[place]) for place in reversed(own)])
        assert order[0][0] == 2


def test_a_stopped_run_goes_on_to_the_same_bytes(base: str, tmp_path: Path) -> None:
    train_cross_encoder(base, GROUPS, tmp_path / "whole", dropout=True, checkpoints=[3], **SETTINGS)
    with pytest.raises(WorkError, match="budget"):
        stop = Budget(cpu_seconds=0.001)
        train_cross_encoder(
            base, GROUPS, tmp_path / "parts", dropout=True, checkpoints=[3], state_every=1, budget=stop, **SETTINGS
        )
    train_cross_encoder(base, GROUPS, tmp_path / "parts", dropout=True, checkpoints=[3], state_every=1, **SETTINGS)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts and (tmp_path / "parts" / "checkpoints" / "step-3" / "config.json").is_file()


def test_what_is_wrong_is_said_before_work(base: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="did you mean 'margin'"):
        train_cross_encoder(base, GROUPS, tmp_path / "out", objective="margni", **SETTINGS)
    with pytest.raises(DataError, match="batch is 9"):
        train_cross_encoder(base, GROUPS, tmp_path / "out", **{**SETTINGS, "batch": 9})
    assert not (tmp_path / "out").exists()
