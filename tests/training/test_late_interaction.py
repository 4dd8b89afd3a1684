"""Training of late-interaction encoders: it learns, resumes to the same bytes, and its folders can be averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from consilience.core.jobs import Budget
from consilience.data import Documents, EvaluationSet, TrainingPairs
from consilience.data.scored_groups import ScoredGroups, score_groups
from consilience.errors import DataError, RequestError, WorkError
from consilience.merging import Recipe
from consilience.models.creation import create_encoder
from consilience.models.late_interaction import LateInteraction, load_late_interaction
from consilience.training.late_interaction import train_late_interaction

ANIMALS = [f"{colour} {animal}" for colour in ("red", "blue") for animal in ("cat", "dog")]
TEXTS = tuple(f"{animal} {place}" for animal in ANIMALS for place in "xyz")
QUERIES = tuple(" ".join(text.split()[:2]) for text in TEXTS)
SETTINGS: dict[str, Any] = {"dimension": 8, "steps": 12, "batch": 4, "max_tokens": 24, "learning_rate": 3e-3}


def shared(queries: tuple[str, ...], texts: tuple[str, ...]) -> list[list[int]]:
    return [[len(set(query.split()) & set(text.split())) for text in texts] for query in queries]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("late") / "base"
    create_encoder(place, TEXTS, words=60, width=16, layers=1, max_tokens=32)
    return str(place)


@pytest.fixture(scope="module")
def groups() -> ScoredGroups:
    documents = Documents(tuple(f"d{place}" for place in range(len(TEXTS))), TEXTS)
    relevant = tuple((place,) for place in range(len(TEXTS)))
    pairs = TrainingPairs("colours", QUERIES, relevant, ((),) * len(TEXTS), documents)
    return score_groups(pairs, shared, documents=4)


def train(base: str, data: ScoredGroups, out: Path, **options: Any) -> dict[str, Any]:
    return train_late_interaction(base, data, out, progress=False, **{**SETTINGS, **options})


@pytest.mark.parametrize("objective", ["distillation", "margin", "positive"])
def test_the_loss_falls(base: str, groups: ScoredGroups, tmp_path: Path, objective: str) -> None:
    losses = train(base, groups, tmp_path / "out", objective=objective, steps=30)["loss"]["every_step"]
    assert np.mean(losses[-6:]) < np.mean(losses[:6])


def test_what_is_written_is_what_was_trained_and_dev_measured(base: str, groups: ScoredGroups, tmp_path: Path) -> None:
    dev = EvaluationSet("dev", "dev", ("q",), ("red cat",), ("a", "b"), ("red cat x", "blue dog y"), ({0: 1.0},))
    settings = LateInteraction(query_marker="x ", masks=True)
    record = train(base, groups, tmp_path / "out", dev=dev, checkpoints=(6,), settings=settings)
    opened = load_late_interaction(tmp_path / "out", max_tokens=24)
    assert opened.settings == settings and opened.dimension == 8 and record["dev"]["expert"] > 0
    assert set(record["dev"]["checkpoints"]) == {"step-6"} and record["parameters"] > 0
    assert load_late_interaction(tmp_path / "out" / "checkpoints" / "step-6").dimension == 8
    again = train(str(tmp_path / "out"), groups, tmp_path / "more", steps=2)
    assert again["inputs"]["masks"] and load_late_interaction(tmp_path / "more").settings == settings
    with pytest.raises(RequestError, match="settings of its own"):
        train(str(tmp_path / "out"), groups, tmp_path / "other", settings=LateInteraction())


def test_a_stopped_run_goes_on_to_the_same_bytes(base: str, groups: ScoredGroups, tmp_path: Path) -> None:
    train(base, groups, tmp_path / "whole", dropout=True)
    with pytest.raises(WorkError, match="budget"):
        train(base, groups, tmp_path / "parts", dropout=True, state_every=1, budget=Budget(cpu_seconds=0.001))
    record = train(base, groups, tmp_path / "parts", dropout=True, state_every=1)
    for name in ("model.safetensors", "late_interaction/model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert train(base, groups, tmp_path / "parts", dropout=True) == record, "a finished run is not run again"


def test_checkpoints_are_averaged_by_a_recipe(base: str, groups: ScoredGroups, tmp_path: Path) -> None:
    train(base, groups, tmp_path / "out", checkpoints=(4, 8))
    folders = {name: str(tmp_path / "out" / "checkpoints" / name) for name in ("step-4", "step-8")}
    Recipe(method="linear", experts={**folders, "last": str(tmp_path / "out")}).run(tmp_path / "mean")
    values = [load_file(Path(one) / "late_interaction" / "model.safetensors")["projection"] for one in folders.values()]
    values.append(load_file(tmp_path / "out" / "late_interaction" / "model.safetensors")["projection"])
    merged = load_late_interaction(tmp_path / "mean")
    assert merged.projection is not None
    np.testing.assert_allclose(merged.projection.detach().numpy(), np.mean(values, axis=0), atol=1e-6)


def test_groups_are_relevant_best_liked_and_drawn(groups: ScoredGroups) -> None:
    assert groups.documents[:, 0].tolist() == list(range(len(TEXTS)))
    for place, own in enumerate(groups.documents):
        assert len(set(own.tolist())) == 4
        best = shared((QUERIES[place],), TEXTS)[0]
        assert best[own[1]] == best[own[2]] == 2, "others with both words are liked best"


def test_what_is_wrong_is_said_before_work(base: str, groups: ScoredGroups, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="from 2 on"):
        ScoredGroups("g", ("q",), ("a",), [[0]], [[1.0]])
    with pytest.raises(DataError, match=r"(?s)positions in the 1 texts.*not finite"):
        ScoredGroups("g", ("q",), ("a",), [[0, 1]], [[1.0, np.nan]])
    with pytest.raises(DataError, match="a score for each"):
        ScoredGroups("g", ("q",), ("a", "b"), [[0, 1]], [[1.0]])
    with pytest.raises(RequestError, match="did you mean 'margin'"):
        train(base, groups, tmp_path / "out", objective="margni")
    with pytest.raises(RequestError, match=r"(?s)temperature is 0.*|dimension is 0.*"):
        train(base, groups, tmp_path / "out", temperature=0.0, dimension=0)
    with pytest.raises(DataError, match="batch is 99"):
        train(base, groups, tmp_path / "out", batch=99)
    assert not (tmp_path / "out").exists()
