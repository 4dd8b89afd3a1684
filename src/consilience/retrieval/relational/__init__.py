"""Questions to the rows of an index: filters, numbers of them, order, references; by a small safe language."""

from consilience.retrieval.relational.query import RowAnswer, TableQuery, parse_query, run_query
from consilience.retrieval.relational.questions import Understood, translate
from consilience.retrieval.relational.rows import Rows
from consilience.retrieval.relational.schema import Column, RowTable, read_schema

__all__ = [
    "Column",
    "RowAnswer",
    "RowTable",
    "Rows",
    "TableQuery",
    "Understood",
    "parse_query",
    "read_schema",
    "run_query",
    "translate",
]
