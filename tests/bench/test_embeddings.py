from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from consilience.bench.embeddings import Embedder, role_prompt
from consilience.bench.search import search
from consilience.errors import WorkError
from tests.bench.toy import WordEncoder


def test_a_second_run_reads_the_same_vectors_and_encodes_nothing(tmp_path: Path) -> None:
    first, second = WordEncoder("a"), WordEncoder("a")
    texts = ["w1 w2", "w3", "w1 w2"]
    vectors = Embedder(first, tmp_path).vectors(texts, None)
    again = Embedder(second, tmp_path)
    assert np.array_equal(again.vectors(texts, None), vectors)
    assert (first.calls, second.calls) == ([["w1 w2", "w3"]], [])
    assert (again.encoded, again.reused) == (0, 3)
    assert len(list(tmp_path.iterdir())) == 1


def test_other_models_prompts_and_texts_have_their_own_files(tmp_path: Path) -> None:
    for encoder, prompt, texts in (
        (WordEncoder("a"), None, ["x"]),
        (WordEncoder("b"), None, ["x"]),
        (WordEncoder("a"), "query: ", ["x"]),
        (WordEncoder("a"), None, ["y"]),
    ):
        Embedder(encoder, tmp_path).vectors(texts, prompt)
        assert encoder.given == [prompt]
    assert len(list(tmp_path.iterdir())) == 4


def test_texts_seen_before_are_not_encoded_again() -> None:
    encoder = WordEncoder("a")
    embedder = Embedder(encoder)
    embedder.vectors(["x", "y"], None)
    embedder.vectors(["y", "z"], None)
    embedder.vectors(["y"], "query: ")
    assert encoder.calls == [["x", "y"], ["z"], ["y"]]
    assert (embedder.encoded, embedder.reused) == (4, 1)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"no array at all"])
def test_a_damaged_cache_file_is_written_anew(tmp_path: Path, damage: bytes) -> None:
    vectors = Embedder(WordEncoder("a"), tmp_path).vectors(["x"], None)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    encoder = WordEncoder("a")
    assert np.array_equal(Embedder(encoder, tmp_path).vectors(["x"], None), vectors)
    assert encoder.calls == [["x"]]
    assert np.array_equal(np.load(path), vectors)


def test_a_wrong_number_of_vectors_is_an_error() -> None:
    class Short(WordEncoder):
        def encode(self, texts, **options):  # type: ignore[no-untyped-def]
            return super().encode(texts, **options)[:1]

    with pytest.raises(WorkError, match=r"shape \(1, 64\) for 2 texts"):
        Embedder(Short("a")).vectors(["x", "y"], None)


def test_prompts_of_roles() -> None:
    class Prompted(WordEncoder):
        @property
        def prompts(self) -> Mapping[str, str]:
            return {"query": "q: ", "passage": "p: "}

    assert role_prompt(WordEncoder("a"), "query", {}) is None
    assert role_prompt(Prompted("a"), "query", {}) == "q: "
    assert role_prompt(Prompted("a"), "document", {}) == "p: "
    assert role_prompt(Prompted("a"), "document", {"document": ""}) == ""


def test_search_is_exact_and_similarity_is_chosen() -> None:
    generator = np.random.default_rng(0)
    queries, documents = (generator.standard_normal((count, 8)).astype(np.float32) for count in (5, 40))
    lengths = np.linalg.norm(documents, axis=1)
    by_cosine = np.argsort(-(queries @ documents.T) / lengths, axis=1)[:, :3]
    by_dot = np.argsort(-(queries @ documents.T), axis=1)[:, :3]
    assert np.array_equal(search(queries, documents, 3), by_cosine)
    assert np.array_equal(search(queries, documents, 3, similarity="dot"), by_dot)
    assert not np.array_equal(by_cosine, by_dot)
    with pytest.raises(WorkError, match="the vector of document 2 is NaN or infinite"):
        search(queries, np.where(np.arange(40)[:, None] == 2, np.nan, documents), 3)
