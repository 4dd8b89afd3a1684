"""Spaces of token vectors and of terms in an index, with real small models."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from consilience.data.documents import Document
from consilience.errors import CheckpointError, RequestError
from consilience.models import load_encoder
from consilience.models.late_interaction import LateInteractionEncoder, load_late_interaction
from consilience.models.sparse import load_sparse
from consilience.models.token_vectors import max_similarity
from consilience.retrieval.index import Index
from consilience.retrieval.searcher import Searcher
from tests.models.tiny import write_sentence_transformer, write_tokenizer

TEXTS = {"a": "w1 w2 w3", "b": "w4 w5 w6 w7 w8", "c": "w9 w10"}
DOCUMENTS = [Document(name, text) for name, text in TEXTS.items()]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("late") / "model"
    write_sentence_transformer(folder)
    return folder


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse") / "model"
    tokenizer = write_tokenizer(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_an_index_of_token_vectors(tmp_path: Path, encoder: Path, precision: str) -> None:
    reference = f"late:{encoder}"
    with Index.create(tmp_path / "i", encoders={"late": reference}, token_precision=precision) as index:  # type: ignore[arg-type]
        index.add(DOCUMENTS)
    with Index.open(tmp_path / "i") as index:
        answers = Searcher(index, stores=["late"]).search(list(TEXTS.values()), 3)
    assert [hits[0].id for hits in answers] == list(TEXTS)
    opened = load_late_interaction(encoder)
    scores = max_similarity(opened.encode_queries(["w1 w2 w3"]).text(0), opened.encode_documents(list(TEXTS.values())))
    found = {hit.id: hit.score for hit in answers[0]}
    assert [found[name] for name in TEXTS] == pytest.approx(
        scores.tolist(), abs=1e-4 if precision == "float32" else 0.1
    )


def test_a_folder_of_a_late_interaction_encoder_is_known(tmp_path: Path, encoder: Path) -> None:
    folder = LateInteractionEncoder.create(load_encoder(encoder), dimension=8).save(tmp_path / "made")
    with Index.create(tmp_path / "i", encoders={"late": folder}) as index:
        index.add(DOCUMENTS)
        assert index.stores.spaces["late"].kind == "multi" and index.stores.spaces["late"].dimension == 8
        assert Searcher(index, stores=["late"]).search(["w9 w10"], 1)[0][0].id == "c"
    other = LateInteractionEncoder.create(load_encoder(encoder), dimension=8, seed=1).save(tmp_path / "other")
    with (
        Index.open(tmp_path / "i", encoders={"late": other}) as index,
        pytest.raises(RequestError, match="not the one"),
    ):
        Searcher(index).search(["w1"])


def test_an_index_of_terms(tmp_path: Path, masked: Path) -> None:
    with Index.create(tmp_path / "i", encoders={"terms": f"sparse:{masked}"}) as index:
        index.add(DOCUMENTS)
        answers = Searcher(index, stores=["terms"]).search(list(TEXTS.values()), 3)
    opened = load_sparse(masked, terms=None)
    weights = opened.encode(list(TEXTS.values()))
    products = (weights @ weights.T).toarray()
    for place, hits in enumerate(answers):
        wanted = [list(TEXTS)[n] for n in np.argsort(-products[place], kind="stable")]
        assert [hit.id for hit in hits] == wanted


def test_sparse_weights(masked: Path) -> None:
    whole, cut = load_sparse(masked, terms=None), load_sparse(masked, terms=3)
    both = whole.encode(["w1 w2", "", "w3 w4 w5 w6"]), cut.encode(["w1 w2", "", "w3 w4 w5 w6"])
    alone = whole.encode(["w1 w2"])
    assert both[0].shape == (3, whole.dimension)
    assert both[0][[0]].toarray() == pytest.approx(alone.toarray(), abs=1e-6), "padding changes nothing"
    special = set(whole.tokenizer.all_special_ids)
    assert not special & set(both[0].indices.tolist()) and (both[0].data > 0).all()
    assert both[1][[0]].nnz == 3
    assert set(cut.words(both[1][[0]])) == set(list(whole.words(both[0][[0]]))[:3])
    assert whole.fingerprint != cut.fingerprint
    assert whole.encode([]).shape == (0, whole.dimension)


def test_what_is_no_sparse_encoder_is_refused(tmp_path: Path, encoder: Path, masked: Path) -> None:
    with pytest.raises(CheckpointError, match="no sparse encoder"):
        load_sparse(encoder)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_sparse(tmp_path)
    with pytest.raises(RequestError, match="terms 0"):
        load_sparse(masked, terms=0)
    shutil.copytree(masked, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be opened"):
        load_sparse(tmp_path / "broken")
