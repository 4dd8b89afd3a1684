"""Filters mean in PostgreSQL what they mean in Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience.data.documents import Document
from consilience.errors import RequestError
from consilience.stores.postgres.stores import PostgresStores
from consilience.stores.postgres.where import exact_number, postgres_condition
from consilience.stores.protocol import Batch
from consilience.stores.where import Compare, Filter, matches, parse_where
from tests.stores.conftest import drop
from tests.stores.test_where import PEOPLE, documents, filters

CASES = """year = 2020|year != 2020|not year = 2020|year > 2020|year = '2020'|lang = 'de'|lang in ('de', 'fr')
not lang in ('de', 'fr')|lang not in ('fr', 3)|lang is null|lang is not null|draft = true|draft != true|draft = 1
id = 'c' or title = 'B'|parent = 'a'|parent is null and source is null|title is null|nothing = 1 or year = 2020
not (nothing = 1 or year = 2020)|year >= 2020 AND (lang = 'en' or lang = 'fr')|`year` < 2021"""
HARD = [
    10**18,
    10**18 + 1,
    1e18,
    2**53 + 1,
    2.0**53,
    1.2345678901234568e18,
    1234567890123456768,
    0.1,
    -0.0,
    5e-324,
    1e300,
]


@pytest.fixture(scope="module")
def stores(postgres_url: str) -> Iterator[PostgresStores]:
    with PostgresStores.create(postgres_url, "filters") as made:
        yield made
    drop(postgres_url, "filters")


def passing(stores: PostgresStores, given_documents: list[Document], found: Filter) -> set[str]:
    """Return the ids that get through in the server."""
    stores.delete(stores.all_ids())
    stores.write(Batch(given_documents), replace=False)
    text, values = postgres_condition(found)
    query = f"SELECT id FROM documents WHERE removed IS NULL AND {text}"
    return {row[0] for row in stores._rows(query, values)}


def test_values_are_parameters() -> None:
    text, values = postgres_condition(parse_where("`a' b%s{}` = 'x''; drop' or n in (1, 2.5) or id in ('%', 3)"))
    assert "drop" not in text and "a' b" not in text and "2.5" not in text and "%s" not in text.replace(")s", "")
    assert [exact_number(1), exact_number(2.5)] in values.values() and ["%"] in values.values()
    assert list(values) == [f"where_{place}" for place in range(len(values))]


@pytest.mark.slow
@pytest.mark.parametrize("where", CASES.replace("\n", "|").split("|"))
def test_the_meaning_is_the_same(stores: PostgresStores, where: str) -> None:
    found = parse_where(where)
    assert passing(stores, PEOPLE, found) == {one.id for one in PEOPLE if matches(found, one)}


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["=", "<", ">=", "in"])
def test_numbers_compare_with_all_their_digits(stores: PostgresStores, operator: str) -> None:
    many = [Document(f"n{place}", "", fields={"n": value}) for place, value in enumerate(HARD)]
    stores.delete(stores.all_ids())
    stores.write(Batch(many), replace=False)
    numbers = [row[0] for row in stores._rows("SELECT number FROM documents WHERE removed IS NULL ORDER BY number")]
    back = [one.fields["n"] for one in stores.documents(numbers).values()]
    assert back == HARD and [type(one) for one in back] == [type(one) for one in HARD]
    for value in HARD:
        found = Compare("n", operator, (value,))
        text, values = postgres_condition(found)
        rows = stores._rows(f"SELECT id FROM documents WHERE removed IS NULL AND {text}", values)
        assert {row[0] for row in rows} == {one.id for one in many if matches(found, one)}, (operator, value)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents, filters)
def test_postgres_agrees_with_python(stores: PostgresStores, document: Document, found: Filter) -> None:
    assert bool(passing(stores, [document], found)) == matches(found, document)


hostile = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["'; DROP SCHEMA filters CASCADE; --", "') OR 1=1 --", "%s", "%(where_0)s", "$1", "\\", "{}", "\x00", "\ud800",
         "' | 'a", "a:*", "<-> !", '"', "\u0149 \u2474", "a'::text; SELECT pg_sleep(9)"]
    ),
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hostile, hostile)
def test_what_is_given_is_never_run(stores: PostgresStores, first: str, second: str) -> None:
    stores.delete(stores.all_ids())
    kept = Document("kept", "dogs", fields={"n": 1})
    stores.write(Batch([kept]), replace=False)
    wheres: list[Any] = [{first: second}, {"id": {"in": [first, second]}}, {"n": {"!=": first}}, first]
    for where in wheres:
        try:
            assert len(stores.search_text(["dogs"], 3, where=where)[0]) <= 1
        except RequestError:
            continue
    assert len(stores.search_text([first, f"{second} dogs"], 3)) == 2
    assert stores.known([first, second, "kept"]) == {"kept": kept.digest}
    assert len(stores.search_edges([[first, second]], 3)[0]) == 0
    with pytest.raises(RequestError):
        stores.delete([first + "!", "kept"])
    assert stores.all_ids() == ["kept"]


def test_equality_of_a_field_is_looked_up_in_its_index(stores: PostgresStores, postgres_url: str) -> None:
    import psycopg

    stores.delete(stores.all_ids())
    many = [Document(f"d{n}", "x", fields={"n": n % 500, "tags": (f"t{n % 700}",)}) for n in range(4000)]
    stores.write(Batch(many), replace=False)
    with psycopg.connect(postgres_url) as admin:
        admin.execute("ANALYZE filters.documents")
    for text, count in (("n = 7", 8), ("tags in ('t3', 't5') and n > 2", 12), ("n = 1 or tags = 't9'", 14)):
        condition, values = postgres_condition(parse_where(text))
        query = f"SELECT id FROM documents WHERE removed IS NULL AND {condition}"
        plan = "\n".join(row[0] for row in stores._rows(f"EXPLAIN {query}", values))
        assert "Bitmap Index Scan on fields" in plan
        assert len(stores._rows(query, values)) == sum(matches(parse_where(text), one) for one in many) == count
    condition, _ = postgres_condition(parse_where("n > 7 and not n = 3"))
    assert "@>" not in condition
