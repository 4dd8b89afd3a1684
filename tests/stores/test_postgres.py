"""What is the server's own: its addresses, what it cannot hold, and errors that say what to do."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.data.documents import Document, Part
from consilience.errors import DataError, OutputError, RequestError, VerificationError
from consilience.stores.open import create_stores, has_stores, open_stores, shown_place
from consilience.stores.postgres.address import check_name, read_place
from consilience.stores.postgres.stores import PostgresStores
from consilience.stores.postgres.words import Words, tsvector
from consilience.stores.protocol import Batch, VectorSpace
from consilience.stores.table import Edge
from consilience.stores.text import TextStore
from tests.stores.conftest import MakePostgres

SPACE = VectorSpace("s", 16)
ANALYSERS: dict[str | None, object] = {}


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 16)).astype(np.float32)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:s3cr:t@/x@localhost/notes",
        "postgresql://ann:s3cr?t@localhost/notes",
        "postgresql://ann:s3cr%zt@localhost/notes",
        "postgresql://ann:s3cr/t@localhost/notes",
        "postgresql://ann:1234@s3cr@localhost/notes",
        "mysql://ann:s3cr@localhost/notes",
        "postgresql://ann:s3cr@localhost:s3cr/notes",
        "postgresql://ann:s3cr@localhost/notes?unheard=s3cr",
        "postgresql://ann:s3cr@localhost:1/notes?sslmode=s3cr",
        "postgresql://ann:s3cr@127.0.0.1:1/notes",
    ],
)
def test_no_message_holds_the_password(url: str) -> None:
    for opening in (PostgresStores, PostgresStores.create):
        with pytest.raises(RequestError) as caught:
            opening(url, "notes")
        error: BaseException | None = caught.value
        while error is not None:
            assert "s3cr" not in str(error)
            error = error.__cause__


def test_places_name_an_index() -> None:
    place = "postgresql://ann:s3cr@db/notes?host=/run&index=manuals&sslmode=require"
    assert read_place(place) == ("postgresql://ann:s3cr@db/notes?host=/run&sslmode=require", "manuals")
    assert shown_place(place) == "postgresql://ann@/notes?host=/run&index=manuals"
    assert shown_place("build/index") == "build/index"
    for wrong in ("postgresql://db/notes", "postgresql://db/notes?index=a&index=b", "postgresql://db/notes#a?index=a"):
        with pytest.raises(RequestError, match="index"):
            open_stores(wrong)
    with pytest.raises(RequestError, match="as a text"):
        create_stores(Path("postgresql://db/notes?index=a"))
    for wrong in ("", "a b", "A", "pg_x", "public", 'a"; drop schema x', "a" * 64, "ä"):
        with pytest.raises(RequestError, match="a name has"):
            check_name(wrong)


def test_what_cannot_be_held_is_refused_before_a_server_is_asked() -> None:
    nowhere = "postgresql://localhost:1/notes"
    with pytest.raises(RequestError, match=r"(?s)2 problems.*16001 dimensions.*two spaces"):
        PostgresStores.create(nowhere, "notes", [VectorSpace("a", 16_001), VectorSpace("a", 3)])
    sparse = VectorSpace("a", 3)
    object.__setattr__(sparse, "kind", "sparse")
    with pytest.raises(RequestError, match="'sparse'; indexes in PostgreSQL hold dense"):
        PostgresStores.create(nowhere, "notes", [sparse])
    with pytest.raises(RequestError, match="did you mean 'english'"):
        PostgresStores.create(nowhere, "notes", language="englisch")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_words_are_those_of_the_embedded_stores(text: str) -> None:
    for language in ("english", "german", None):
        embedded = TextStore.__new__(TextStore)
        embedded._analyser = ANALYSERS[language]
        assert set(Words(language).count(text)) == {word for word in embedded.words(text) if word}


@pytest.fixture(scope="module", autouse=True)
def analysers(tmp_path_factory: pytest.TempPathFactory) -> None:
    for language in ("english", "german", None):
        ANALYSERS[language] = TextStore.create(tmp_path_factory.mktemp("text"), language=language)._analyser


def test_more_words_than_a_text_may_have_are_not_cut() -> None:
    assert tsvector({f"{n:0190}": 1 for n in range(6000)}) is None
    assert tsvector({"a": 10_000}) == tsvector({"a": 255})


@pytest.mark.slow
def test_errors_say_what_to_do(make_postgres: MakePostgres, postgres_url: str) -> None:
    stores = make_postgres()
    with pytest.raises(OutputError, match="schema 'notes' already"):
        PostgresStores.create(postgres_url, "notes")
    with pytest.raises(RequestError, match="no index: 'note'; did you mean 'notes'"):
        PostgresStores(postgres_url, "note")
    with pytest.raises(RequestError, match=r"database .*createdb"):
        PostgresStores(postgres_url.replace("/postgres?", "/nowhere?"), "notes")
    with pytest.raises(RequestError, match="a user that the server knows"):
        PostgresStores(postgres_url.replace("postgres:@", "nobody:@"), "notes")
    with pytest.raises(RequestError, match="16 dimensions"):
        stores.write(Batch([Document("a", "x")], {"s": np.ones((1, 3), np.float32)}), replace=False)
    with PostgresStores(postgres_url, "notes") as reader, pytest.raises(OutputError, match="write=True"):
        reader.delete(["a"])
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("CREATE SCHEMA others")
        with pytest.raises(RequestError, match="a schema of something else: 'others'"):
            PostgresStores(postgres_url, "others")
        admin.execute("DROP SCHEMA others")
        admin.execute("UPDATE notes.consilience SET version = 9")
        with pytest.raises(RequestError, match="version 9, this program reads 1"):
            PostgresStores(postgres_url, "notes")
        admin.execute("UPDATE notes.consilience SET version = 1")
        admin.execute("ALTER TABLE notes.vectors_0 RENAME TO lost")
        with pytest.raises(VerificationError, match=r"vectors_0.*index again"):
            stores.search_vectors("s", rows(1), 1)
        admin.execute("ALTER TABLE notes.lost RENAME TO vectors_0")
    stores.close()
    with pytest.raises(RequestError, match="closed"):
        len(stores)


@pytest.mark.slow
def test_users_without_rights_or_passwords_are_told(make_postgres: MakePostgres, postgres_url: str) -> None:
    make_postgres()
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        for command in ("CREATE ROLE poor LOGIN PASSWORD 's3cr:t@/x'", "CREATE DATABASE bare"):
            admin.execute(command)  # type: ignore[arg-type]
        hba = Path(admin.execute("SHOW hba_file").fetchone()[0])  # type: ignore[index]
        before = hba.read_text()
        try:
            poor = postgres_url.replace("postgres:@", "poor:wr0ng@")
            with pytest.raises(RequestError, match="permission denied for schema notes; let the owner GRANT"):
                PostgresStores(poor, "notes")
            with pytest.raises(RequestError, match="let an administrator run CREATE EXTENSION"):
                PostgresStores.create(poor.replace("/postgres?", "/bare?"), "mine", [SPACE])
            with pytest.raises(RequestError, match="GRANT"):
                PostgresStores.create(poor, "mine")
            admin.execute("ALTER DATABASE bare SET extension_control_path = '/nowhere'")
            with pytest.raises(RequestError, match="lacks the extension pgvector; install"):
                PostgresStores.create(postgres_url.replace("/postgres?", "/bare?"), "mine", [SPACE])
            with PostgresStores.create(postgres_url.replace("/postgres?", "/bare?"), "words") as without:
                without.write(Batch([Document("a", "dogs")]), replace=False)
                assert len(without.search_text(["dog"], 1)[0]) == 1
            hba.write_text("local all poor scram-sha-256\n" + before)
            admin.execute("SELECT pg_reload_conf()")
            for _ in range(50):  # until the server has read its rules anew
                time.sleep(0.1)
                with pytest.raises(RequestError) as caught:
                    PostgresStores(poor, "notes")
                if "password" in str(caught.value):
                    break
            assert "give the right user and password" in str(caught.value) and "wr0ng" not in str(caught.value)
            with pytest.raises(RequestError, match="GRANT"):
                PostgresStores(postgres_url.replace("postgres:@", "poor:s3cr%3At%40%2Fx@"), "notes")
        finally:
            hba.write_text(before)
            admin.execute("SELECT pg_reload_conf()")
            admin.execute("DROP DATABASE bare (FORCE)")
            admin.execute("DROP ROLE poor")


@pytest.mark.slow
def test_texts_that_a_database_does_not_hold_are_refused_at_once(make_postgres: MakePostgres) -> None:
    stores = make_postgres()
    long = " ".join(f"{n:0190}" for n in range(6000))
    bad = [Document("a", "x", fields={"t": ("\x00",)}), Document("b" * 3000, "x"), Document("c", long)]
    edges = [Edge("a\x00", "b", "c", "a")]
    with pytest.raises(DataError, match=r"(?s)4 problems.*'t' holds a zero.*2000 bytes.*1 MB.*edge"):
        stores.write(Batch(bad, {"s": rows(3)}, edges), replace=False)
    assert len(stores) == 0
    media = Part("x", kind="image", box=(1e22, 0.1, 1e-300, 2.0), media="\ud800")
    odd = Document(
        "id 'quoted'", (media,), fields={"f": 1e22, "g": (1.0, 2, "2", True)}, parent="", title="\\N \\.\t\n"
    )
    stores.write(Batch([odd], {"s": rows(1)}), replace=False)
    found = stores.documents([0])[0]
    assert found == odd and found.digest == odd.digest


def test_a_server_that_cannot_be_asked_is_no_server_without_an_index() -> None:
    with pytest.raises(RequestError, match="cannot connect"):
        has_stores("postgresql://localhost:1/notes?index=a")
