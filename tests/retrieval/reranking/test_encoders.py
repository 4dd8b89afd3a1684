"""Rerankers by encoders, and the Searcher with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from consilience.data.documents import Document
from consilience.errors import BudgetError, CheckpointError, RequestError
from consilience.llm import FunctionLLM
from consilience.retrieval.index import Index
from consilience.retrieval.reranking import open_reranker, reranker_kinds
from consilience.retrieval.reranking.cross_encoder import CrossEncoder
from consilience.retrieval.reranking.pointwise import Pointwise
from consilience.retrieval.searcher import Searcher
from tests.models.tiny import WORDS, write_sentence_transformer, write_tokenizer

DOCUMENTS = [Document("a", "w1 w2 w3"), Document("b", "w4 w5 w6 w7 w8 w9"), Document("c", ""), Document("d", "w10")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "model"
    write_sentence_transformer(folder)
    return folder


def classifier(folder: Path, labels: int) -> Path:
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, num_labels=labels, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize("labels", [1, 2])
def test_a_cross_encoder_reads_pairs(tmp_path: Path, labels: int) -> None:
    folder = classifier(tmp_path / "model", labels)
    reranker = CrossEncoder(folder, max_tokens=16)
    found = dict(reranker.rerank("w4 w5", DOCUMENTS))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for place, document in enumerate(DOCUMENTS):
        pair = tokenizer(["w4 w5"], [document.text], return_tensors="pt", truncation="only_second", max_length=16)
        with torch.inference_mode():
            logits = model(**pair).logits[0]
        wanted = float(logits[0]) if labels == 1 else float(logits[1] - logits[0])
        assert found[place] == pytest.approx(wanted, abs=1e-5)
    assert reranker.rerank("w4", []) == []


def test_a_long_query_leaves_room_for_the_document(tmp_path: Path) -> None:
    reranker = CrossEncoder(classifier(tmp_path / "model", 1), max_tokens=16)
    found = dict(reranker.rerank("w4 w5 w6 " * 20, DOCUMENTS))
    assert len(found) == len(DOCUMENTS) and len(set(found.values())) > 1


def test_folders_that_are_no_cross_encoders(tmp_path: Path, encoder: Path) -> None:
    with pytest.raises(CheckpointError, match="it is no cross-encoder"):
        CrossEncoder(encoder)
    with pytest.raises(CheckpointError, match="5 labels"):
        CrossEncoder(classifier(tmp_path / "five", 5))
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        CrossEncoder(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["late", "bi-encoder"])
def test_an_encoder_puts_the_same_text_first(encoder: Path, kind: str) -> None:
    reranker = open_reranker(f"{kind}:{encoder}", max_tokens=16)
    found = reranker.rerank(DOCUMENTS[1].text, DOCUMENTS)
    assert found[0][0] == 1 and sorted(place for place, _ in found) == [0, 1, 2, 3]
    assert reranker.rerank("w1", []) == [] and reranker.calls == 1


def test_the_searcher_reranks(tmp_path: Path, encoder: Path) -> None:
    with Index.create(tmp_path / "i") as index:
        index.add([Document("long", "w1 w2 w3 w4 w5 w6"), Document("short", "w1 w1")])
        plain = Searcher(index).search(["w1 w2 w3 w4 w5 w6"], 2)[0]
        hits = Searcher(index, rerank=open_reranker(f"bi-encoder:{encoder}")).search(["w1 w1 w2"], 2)[0]
        assert {hit.id for hit in hits} == {hit.id for hit in plain} and all(hit.fused for hit in hits)


def test_a_budget_that_is_spent_leaves_the_fused_order(tmp_path: Path) -> None:
    with Index.create(tmp_path / "i") as index:
        index.add(DOCUMENTS)

        def spent(messages: object) -> str:
            raise BudgetError("3 calls of 3 are spent")

        searcher = Searcher(index, rerank=Pointwise(FunctionLLM(spent)))
        answer = searcher.answer(["w1 w2"], 2)[0]
        assert answer.failed == {"rerank": "3 calls of 3 are spent"}
        assert [hit.id for hit in answer.hits] == ["a"]
        with pytest.raises(BudgetError):
            searcher.search(["w1 w2"], 2)


def test_names() -> None:
    for wrong in ("late", "late:", "lat:x", ""):
        with pytest.raises(RequestError, match="write KIND:MODEL"):
            open_reranker(wrong)
    with pytest.raises(RequestError, match="does not say where it runs"):
        open_reranker("listwise:gpt")
    assert len(reranker_kinds()) == 9
