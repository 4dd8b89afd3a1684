"""Late-interaction encoders and token vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience.errors import CheckpointError, RequestError
from consilience.models import load_encoder, token_vectors
from consilience.models.late_interaction import (
    LateInteraction,
    LateInteractionEncoder,
    load_late_interaction,
    query_length,
)
from consilience.models.token_vectors import TokenVectors, max_similarity
from consilience.training.late_interaction_loss import (
    distillation_loss,
    late_interaction_scores,
    margin_loss,
    min_max,
    positive_loss,
)
from tests.models.tiny import TEXTS, write_sentence_transformer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("late") / "model"
    write_sentence_transformer(place)
    return place


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 4), max_size=8), st.integers(0, 3), st.integers(1, 20))
def test_similarity_is_that_of_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch, counts: list[int], asked: int, block: int
) -> None:
    monkeypatch.setattr(token_vectors, "_BLOCK", block)
    drawn = np.random.default_rng(len(counts))
    texts = [drawn.normal(size=(count, 3)).astype(np.float32) for count in counts]
    query = drawn.normal(size=(asked, 3)).astype(np.float32)
    found = max_similarity(query, TokenVectors.from_list(texts, dimension=3))
    for score, text in zip(found, texts, strict=True):
        wanted = sum(max(float(token @ word) for word in text) for token in query) if len(text) else -np.inf
        assert score == pytest.approx(wanted, abs=1e-4)


def test_batches_change_nothing_and_lengths_are_one(folder: Path) -> None:
    encoder = load_late_interaction(folder)
    together = encoder.encode_documents(TEXTS)
    for place, text in enumerate(TEXTS):
        alone = encoder.encode_documents([text])
        assert together.text(place) == pytest.approx(alone.text(0), abs=1e-5)
    assert np.linalg.norm(together.values, axis=1) == pytest.approx(1, abs=1e-5)
    assert together.take([2, 0]).counts.tolist() == together.counts[[2, 0]].tolist()
    assert len(encoder.encode_queries([])) == 0
    with pytest.raises(RequestError, match="give a list"):
        encoder.encode_queries("w1")


def test_queries_are_filled_with_masks(folder: Path) -> None:
    encoder = LateInteractionEncoder.create(
        load_encoder(folder, max_tokens=40), dimension=8, settings=LateInteraction(masks=True)
    )
    mask = encoder.encoder.tokenizer.mask_token_id
    tokens = encoder.tokenise_queries(["w1", " ".join(["w2"] * 23)])
    assert tokens.lengths.tolist() == [query_length(3), query_length(25)] == [32, 33]
    assert tokens.text(0).tolist().count(mask) == 29
    assert encoder.encode_queries(["w1"]).counts.tolist() == [32]
    with pytest.warns(UserWarning, match="1 queries are cut to 32 tokens"):
        long = encoder.tokenise_queries([" ".join(["w2"] * 60)])
    assert long.lengths.tolist() == [40] and long.text(0).tolist().count(mask) == 8
    assert encoder.encode_documents(["w1"]).counts.tolist() == [3], "documents are not filled"
    with pytest.raises(RequestError, match="16 or more"):
        LateInteractionEncoder(load_encoder(folder, max_tokens=12), LateInteraction(masks=True))


def test_a_folder_opens_as_it_was_saved(folder: Path, tmp_path: Path) -> None:
    chosen = LateInteraction(query_marker="w5 ", document_marker="w6 ", masks=True, skip_punctuation=True)
    made = LateInteractionEncoder.create(load_encoder(folder, max_tokens=40), dimension=8, settings=chosen)
    opened = load_late_interaction(made.save(tmp_path / "saved"), max_tokens=40)
    assert opened.settings == chosen and opened.dimension == 8
    assert opened.encode_queries(TEXTS).values == pytest.approx(made.encode_queries(TEXTS).values, abs=1e-6)
    assert opened.tokenise_documents(["w1"]).lengths.tolist() == [4]
    other = LateInteractionEncoder.create(load_encoder(folder, max_tokens=40), dimension=8, seed=1, settings=chosen)
    assert made.fingerprint != other.fingerprint
    plain = LateInteractionEncoder.create(load_encoder(folder), dimension=None).save(tmp_path / "plain")
    assert load_late_interaction(plain).dimension == 32
    (tmp_path / "saved" / "late_interaction" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        load_late_interaction(tmp_path / "saved")


def test_gradients_reach_transformer_and_projection(folder: Path) -> None:
    encoder = LateInteractionEncoder.create(load_encoder(folder), dimension=8)
    tokens = encoder.tokenise_documents(["w1 w2", "w3"])
    vectors, counted = encoder(tokens)
    assert counted.sum(dim=1).tolist() == [4, 3]
    vectors[counted].sum().backward()
    assert encoder.projection is not None and encoder.projection.grad is not None
    assert any(one.grad is not None and one.grad.abs().sum() > 0 for one in encoder.transformer.parameters())


def test_losses_at_their_edges() -> None:
    query, documents = torch.randn(2, 3, 4), torch.randn(2, 3, 5, 4)
    mask = torch.ones(2, 3, 5)
    mask[0, 1] = 0
    scores = late_interaction_scores(query, documents, mask)
    assert scores[0, 1] == -torch.inf and torch.isfinite(scores[1]).all()
    halved = late_interaction_scores(query, documents, mask, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert torch.allclose(halved[1], scores[1]) and not torch.allclose(halved[0, 0], scores[0, 0])
    equal = torch.full((2, 4), 3.0, requires_grad=True)
    loss = distillation_loss(equal, torch.full((2, 4), 9.0))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0) and equal.grad is not None and torch.isfinite(equal.grad).all()
    assert min_max(torch.tensor([[2.0, 2.0]])).tolist() == [[0.0, 0.0]]
    better = positive_loss(torch.tensor([[2.0, 0.0]]))
    assert float(better) < float(positive_loss(torch.tensor([[0.0, 2.0]])))
    for wrong in (distillation_loss, margin_loss):
        with pytest.raises(RequestError, match="at least 2"):
            wrong(torch.ones(2, 1), torch.ones(2, 1))
