"""The index and its Searcher, with a real small encoder."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from consilience.data.documents import Document
from consilience.errors import DataError, OutputError, RequestError, VerificationError, WorkError
from consilience.retrieval.index import Index
from consilience.retrieval.indexing import index_files
from consilience.retrieval.searcher import Searcher
from consilience.stores.table import Edge
from tests.models.tiny import write_sentence_transformer

TEXTS = {
    "ports": "w1 open w2.",
    "lists": "w3 w4 list w5 w6",
    "dogs": "w7 w8 dog barks w9 w10",
    "rivers": "w11 w12 w13 Rhine w14",
}
DOCUMENTS = [Document(name, text, fields={"length": len(text)}) for name, text in TEXTS.items()]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder") / "model"
    write_sentence_transformer(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path: Path, encoder: str) -> Path:
    with Index.create(tmp_path / "index", encoders={"tiny": encoder}, max_tokens=16) as index:
        index.add(DOCUMENTS)
    return tmp_path / "index"


def test_a_text_finds_itself_first_in_every_way(folder: Path) -> None:
    with Index.open(folder) as index:
        for stores in (None, ["text"], ["tiny"]):
            answers = Searcher(index, stores=stores).search(list(TEXTS.values()), 2)
            assert [hits[0].id for hits in answers] == list(TEXTS)
        hit = index.search(TEXTS["ports"])[0]
        assert set(hit.found) == {"text", "tiny"} and hit.found["tiny"].rank == 1
        assert hit.found["tiny"].score == pytest.approx(1, abs=1e-5) and hit.to_dict()["document"]["id"] == "ports"


def test_filters_weights_and_methods_reach_the_stores(folder: Path) -> None:
    with Index.open(folder) as index:
        assert {hit.id for hit in index.search("a", where="length > 12")} == {"lists", "dogs", "rivers"}
        assert [hit.id for hit in index.search(TEXTS["lists"], k=1, where={"id": "dogs"})] == ["dogs"]
        for fusion in ("rrf", "combmnz", "interleave"):
            assert index.search(TEXTS["lists"], k=1, fusion=fusion)[0].id == "lists"
        by_text = index.search("barks", k=1, weights={"text": 1.0, "tiny": 0.0})
        assert by_text[0].id == "dogs" and by_text[0].score == 1.0


def test_upsert_encodes_only_what_changed(folder: Path) -> None:
    with Index.open(folder, write=True) as index:
        report = index.upsert([*DOCUMENTS, Document("cats", "A cat.")])
        assert (report.added, report.replaced, report.unchanged) == (1, 0, 4)
        report = index.upsert([Document("cats", "Two cats.")], edges=[Edge("cat", "fears", "dog", "cats")])
        assert (report.added, report.replaced) == (0, 1)
        with pytest.raises(DataError, match="'cats'"):
            index.add([Document("cats", "x")])
        assert index.delete(["cats"]).deleted == 1 and index.stats()["documents"] == 4
        assert index.stats()["edges"] == 1 and index.stores.search_edges([["cat"]], 3)[0].numbers.tolist() == []


def test_wrong_requests_say_what_there_is(folder: Path, tmp_path: Path) -> None:
    with Index.open(folder) as index:
        with pytest.raises(RequestError, match="store 'tyni' is not in this index; known: graph, text, tiny"):
            Searcher(index, stores=["tyni"])
        with pytest.raises(RequestError, match="no such store"):
            Searcher(index, weights={"x": 1.0})
        with pytest.raises(OutputError, match="open for reading"):
            index.add([Document("x", "x")])
        with pytest.raises(RequestError, match="k is 0"):
            index.search("x", k=0)
    with pytest.raises(RequestError, match="no index here"):
        Index.open(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="something is there"):
        Index.create(folder)
    with pytest.raises(RequestError, match=r"klingon.*no stemmer|no stemmer"):
        Index.create(tmp_path / "other", language="klingon")
    assert not (tmp_path / "other").exists()


def test_another_encoder_is_refused_before_searching(folder: Path, tmp_path: Path) -> None:
    write_sentence_transformer(tmp_path / "model", seed=5)
    with (
        Index.open(folder, encoders={"tiny": tmp_path / "model"}) as index,
        pytest.raises(RequestError, match="is not the one"),
    ):
        index.search("ports")


def _write(folder: str, queue: multiprocessing.Queue[str]) -> None:
    try:
        Index.open(folder, write=True)
        queue.put("opened")
    except OutputError as error:
        queue.put(str(error))


def test_one_process_writes_and_others_read(folder: Path) -> None:
    with Index.open(folder, write=True) as writer, Index.open(folder) as reader:
        context = multiprocessing.get_context("spawn")
        queue: multiprocessing.Queue[str] = context.Queue()
        process = context.Process(target=_write, args=(str(folder), queue))
        process.start()
        assert "is writing to this index" in queue.get(timeout=60)
        process.join()
        assert reader.search("whales", k=1)[0].id != "whales"
        writer.add([Document("whales", "whales")])
        assert reader.search("whales", k=1)[0].id == "whales"


def test_damaged_files_are_named(folder: Path) -> None:
    vectors = next((folder / "vectors" / "tiny").glob("*.vectors.npy"))
    good = vectors.read_bytes()
    vectors.write_bytes(good[:-1])
    with pytest.raises(VerificationError, match=r"vectors.npy has \d+ bytes"):
        Index.open(folder)
    vectors.write_bytes(good[:-2] + b"xx")
    with pytest.raises(VerificationError, match=r"vectors.npy has another checksum"):
        Index.open(folder)
    vectors.unlink()
    with pytest.raises(VerificationError, match="gone"):
        Index.open(folder)
    vectors.write_bytes(good)
    text = next(one for one in (folder / "text").iterdir() if one.suffix == ".term")
    kept = text.read_bytes()
    text.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(VerificationError, match=r"\.term is not as it was written"):
        Index.open(folder)
    with Index.open(folder, write=True, verify=False) as index:
        index.stores.compact()  # type: ignore[attr-defined]
    with Index.open(folder) as index:
        assert index.search("dog barks", k=1)[0].id == "dogs"
    (folder / "documents.sqlite").write_bytes(b"nothing")
    for suffix in ("-wal", "-shm"):
        (folder / f"documents.sqlite{suffix}").unlink(missing_ok=True)
    with pytest.raises(VerificationError, match=r"documents\.sqlite"):
        Index.open(folder)


def test_files_come_in_and_go(tmp_path: Path, encoder: str) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for name, text in TEXTS.items():
        (files / f"{name}.txt").write_text(text)
    first = index_files(files, tmp_path / "index", encoders={"tiny": encoder}, words=4, progress=False)
    assert first.report.added == first.pieces == 7
    (files / "dogs.txt").write_text("A dog.")
    (files / "rivers.txt").unlink()
    second = index_files(files, tmp_path / "index", prune=True, progress=False)
    assert (second.report.added, second.report.deleted, second.report.unchanged) == (1, 4, 3)
    with Index.open(tmp_path / "index") as index:
        assert set(index.stores.all_ids()) == {"dogs.txt", "lists.txt#1", "lists.txt#2", "ports.txt"}
    for path in files.iterdir():
        path.write_text("")
    with pytest.raises(WorkError, match="no document was found"):
        index_files(files, tmp_path / "index", prune=True, progress=False)
    with Index.open(tmp_path / "index") as index:
        assert index.stats()["documents"] == 4


def test_threads_search_while_another_writes(folder: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with Index.open(folder, write=True) as writer, Index.open(folder) as reader:
        searcher = Searcher(reader)

        def ask(number: int) -> str:
            return searcher.search(["w7 w8 dog barks w9 w10"], 1, where=f"length > {number % 3}")[0][0].id

        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(ask, number) for number in range(80)]
            for number in range(12):
                writer.upsert([Document(f"new{number}", f"w{number + 30}")])
                if number % 4 == 3:
                    writer.stores.compact()  # type: ignore[attr-defined]
            assert {one.result() for one in answers} == {"dogs"}
        assert reader.stats()["documents"] == 16


def test_hits_can_be_chosen_so_that_they_differ(tmp_path: Path, encoder: str) -> None:
    texts = {"one": "w1 w2 w3 w4", "again": "w1 w2 w3 w4 w4", "other": "w1 w50 w60"}
    with Index.create(tmp_path / "index", encoders={"tiny": encoder}) as index:
        index.add([Document(name, text) for name, text in texts.items()])
        plain = [hit.id for hit in Searcher(index).search(["w1 w2 w3 w4"], 2)[0]]
        chosen = Searcher(index, select="mmr", select_options={"lambda_": 0.05}).search(["w1 w2 w3 w4"], 2)[0]
        assert plain == ["one", "again"] and [hit.id for hit in chosen] == ["one", "other"]
        with pytest.raises(RequestError, match="select 'mmmr' is unknown; did you mean 'mmr'"):
            Searcher(index, select="mmmr")
    with Index.create(tmp_path / "words") as index, pytest.raises(RequestError, match="no space with one vector"):
        Searcher(index, select="mmr")
