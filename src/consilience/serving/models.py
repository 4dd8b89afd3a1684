"""What requests and answers look like, with their limits; the description in /openapi.json is made of it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from consilience.data.documents import Document

__all__ = [
    "Answers",
    "Changed",
    "DocumentIn",
    "ErrorOut",
    "Health",
    "Ids",
    "IndexFacts",
    "SearchRequest",
    "Upsert",
]

_WHERE_BYTES = 100_000
_HITS = 5000  # of one answer
_LONGEST_ID = 1024


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half of a surrogate pair; remove it") from None
    return text


Text = Annotated[str, AfterValidator(_unicode)]
Query = Annotated[Text, Field(min_length=1, max_length=8192)]
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Id = Annotated[Text, Field(min_length=1, max_length=_LONGEST_ID, pattern=r"^[^\x00]+$")]
Name = Annotated[Text, Field(min_length=1, max_length=200)]
Number = Annotated[StrictFloat, Field(allow_inf_nan=False)]
Value = StrictBool | StrictInt | Number | Annotated[StrictStr, AfterValidator(_unicode)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SearchRequest(_Request):
    """Queries, and how to search for them."""

    queries: list[Query] = Field(min_length=1, max_length=64, examples=[["how do I order a list"]])
    k: int = Field(10, ge=1, le=1000, strict=True, description="Hits of a query.")
    where: str | dict[str, Any] | None = Field(
        None, description="Filter, as text or JSON.", examples=["year >= 2020 and lang = 'en'"]
    )
    stores: list[Name] | None = Field(
        None, min_length=1, max_length=16, description="text, graph, or spaces; default: all."
    )
    fusion: Name = Field("weighted", description="How rankings become one.")
    weights: dict[Name, Finite] | None = Field(
        None, max_length=16, description="Of stores; default: chosen for every query."
    )
    route: bool = Field(
        False, strict=True, description="Rows and quoted phrases too; rules say which stores a query is for."
    )
    documents: bool = Field(True, strict=True, description="Whether hits come with their documents.")

    @field_validator("where")
    @classmethod
    def _bounded(cls, value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        try:
            size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
        except UnicodeEncodeError:
            raise ValueError("a text holds half of a surrogate pair; remove it") from None
        except RecursionError:
            raise ValueError("too deep") from None
        if size > _WHERE_BYTES:
            raise ValueError(f"{size} bytes; at most {_WHERE_BYTES}")
        return value

    @model_validator(mode="after")
    def _answerable(self) -> SearchRequest:
        if self.route and (self.weights is not None or self.fusion != "weighted"):
            raise ValueError("route chooses the weights of the fusion; leave weights and fusion out")
        if len(self.queries) * self.k > _HITS:
            raise ValueError(f"{len(self.queries)} queries with {self.k} hits each; at most {_HITS} hits in all")
        return self


class PartIn(_Request):
    """A piece of a document in reading order."""

    text: Text
    kind: Literal["text", "image", "table"] = "text"
    page: int | None = Field(None, ge=1, strict=True)
    box: tuple[Finite, Finite, Finite, Finite] | None = None
    span: tuple[Finite, Finite] | None = None
    media: Text | None = None


class DocumentIn(_Request):
    """A document: an id, a text or parts, and what it can be filtered by."""

    id: Id
    text: Text | None = None
    parts: list[PartIn] | None = Field(None, max_length=10_000)
    title: Text = ""
    fields: dict[Name, Value | list[Value] | None] = Field(default_factory=dict, max_length=200)
    parent: Id | None = None
    source: Text | None = None

    def document(self) -> Document:
        """Return it as the library knows it. Raises DataError for both or neither of text and parts."""
        return Document.from_dict(self.model_dump(exclude_none=True))


class Upsert(_Request):
    """Documents that are added, or replace those with the same id; all of them in one commit."""

    documents: list[DocumentIn] = Field(min_length=1, max_length=1000)


class Ids(_Request):
    """Documents that are to go, in one commit."""

    ids: list[Id] = Field(min_length=1, max_length=1000)


class Origin(BaseModel):
    """Where a store had a hit."""

    rank: int
    score: float


class HitOut(BaseModel):
    """A document that was found, and by which stores."""

    id: str
    score: float
    found: dict[str, Origin]
    fused: Origin | None = None
    document: dict[str, Any] | None = None


class RouteOut(BaseModel):
    """What the router took a query for."""

    kind: str
    confidence: float
    why: list[str]


class AnswerOut(BaseModel):
    """The hits of one query, best first. weights: of the stores. failed: stores that gave no answer."""

    query: str
    hits: list[HitOut]
    weights: dict[str, float] | None = None
    failed: list[str] | None = None
    route: RouteOut | None = None


class Answers(BaseModel):
    """The answers, in the order of the queries."""

    answers: list[AnswerOut]


class Changed(BaseModel):
    """What a commit did."""

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    deleted: int = 0


class Health(BaseModel):
    """Whether the server lives, and whether it takes requests."""

    live: bool
    ready: bool


class IndexFacts(BaseModel):
    """What the index holds."""

    model_config = ConfigDict(extra="allow")

    documents: int
    generation: int
    spaces: dict[str, dict[str, Any]]


class ErrorOut(BaseModel):
    """Why there is no answer. incident: what to look for in the server's log."""

    error: str
    kind: str
    incident: str | None = None
