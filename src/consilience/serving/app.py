"""The HTTP interface of an index."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path, PurePath
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException

import consilience
from consilience.data.documents import Document
from consilience.errors import CheckpointError, ConsilienceError, MissingExtraError, OutputError, RequestError
from consilience.retrieval.answer import Answer, Hit
from consilience.retrieval.index import Index
from consilience.retrieval.searcher import Searcher
from consilience.serving.guard import Guard, error_body
from consilience.serving.lanes import Lane, Late, within
from consilience.serving.metrics import CONTENT_TYPE, Metrics
from consilience.serving.models import Answers, Changed, ErrorOut, Health, Ids, IndexFacts, SearchRequest, Upsert
from consilience.serving.searching import Busy, Result, Searches, Wanted, patient
from consilience.serving.settings import Settings
from consilience.stores.where import parse_where

__all__ = ["create_app"]

log = logging.getLogger("consilience.serving")

_WRITES = 16  # that may wait for the one that writes
_LOOKUPS = 2  # threads
_OURS = (OutputError, CheckpointError, MissingExtraError)  # errors of the request to us, not of the client's

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOut, "description": text}
    for status, text in {
        400: "Cannot be done as asked.",
        401: "No token, or a wrong one.",
        408: "The body came too slowly.",
        413: "Too large.",
        422: "Not of the form that is described.",
        429: "Too many requests.",
        500: "An incident; its id is in the server's log.",
        503: "Busy; try again.",
        504: "Took too long.",
    }.items()
}
_PLAIN: dict[int | str, dict[str, Any]] = {200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}}
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": ErrorOut, "description": "No such document."}}


class _IdConvertor(PathConvertor):
    regex = r"[\s\S]*"  # ids hold slashes, and lines


register_url_convertor("document", _IdConvertor())


def create_app(index: Index | str | Path, settings: Settings | None = None) -> FastAPI:
    """Return an application that serves an index.

    >>> import tempfile
    >>> place = tempfile.mkdtemp() + "/index"
    >>> Index.create(place).close()
    >>> sorted(create_app(place).openapi()["paths"])[:3]
    ['/documents/{id}', '/health', '/health/live']

    index: open, or where it is: then it is opened (for writing where the settings say so), and closed when the server
    stops. A first search opens the encoders: what is wrong with them is said before anything listens.
    Needs the extra `serve`. Raises what `Index.open` raises.
    """
    chosen = settings or Settings()
    ours = not isinstance(index, Index)
    opened = index if isinstance(index, Index) else Index.open(index, write=chosen.write)
    try:
        Searcher(opened).search(["warm"], 1)
    except BaseException:
        if ours:
            opened.close()
        raise
    return _Server(opened, chosen, closes=ours).app


class _Server:
    """What the routes share: the index, its threads, its counts."""

    def __init__(self, index: Index, settings: Settings, *, closes: bool) -> None:
        self.index, self.settings, self._closes, self.ready = index, settings, closes, False
        self.metrics = Metrics()
        self.lookups = Lane("look-up", threads=_LOOKUPS, waiting=settings.waiting)
        self.writes = Lane("write, which may still be done,", threads=1, waiting=_WRITES)
        self.app = FastAPI(
            title="Consilience",
            version=consilience.__version__,
            description="Search an index by words, vectors and edges.",
            docs_url=None,  # the page would load scripts of another server
            redoc_url=None,
            redirect_slashes=False,
            lifespan=self._life,
            responses=_REFUSALS,
        )
        self.app.add_middleware(Guard, settings=settings, metrics=self.metrics)
        _add_handlers(self.app)
        self._add_routes()

    @asynccontextmanager
    async def _life(self, app: FastAPI) -> AsyncIterator[None]:
        own = self.settings
        self.searches = Searches(
            self.index,
            workers=own.workers,
            waiting=own.waiting,
            together=own.together,
            searched=self.metrics.searched,
        )
        self.metrics.watch("consilience_searches_waiting", "Searches in the queue.", lambda: self.searches.waiting)
        self.metrics.watch("consilience_documents", "Documents in the index.", lambda: len(self.index.stores))
        self.ready = True
        try:
            yield
        finally:
            self.ready = False
            await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self.searches.close()
        self.lookups.close()
        self.writes.close()
        if self._closes:
            self.index.close()

    async def look_up(self, call: Callable[[], Result]) -> Result:
        """Read from the index, apart from searches."""
        return await self.lookups.run(call, seconds=self.settings.seconds)

    async def write(self, call: Callable[[], Result]) -> Result:
        """Write to the index, one commit after the other."""
        return await self.writes.run(call, seconds=self.settings.write_seconds)

    def _add_routes(self) -> None:
        app = self.app
        known = [Depends(HTTPBearer(auto_error=False))] if self.settings.tokens else []  # said here, checked by Guard
        guarded = APIRouter(dependencies=known)

        @app.get("/health", summary="Whether the server lives and is ready", response_model=Health)
        async def health() -> dict[str, bool]:
            return {"live": True, "ready": self.ready}

        @app.get("/health/live", summary="Whether the server lives", response_model=Health)
        async def live() -> dict[str, bool]:
            return {"live": True, "ready": self.ready}

        @app.get("/health/ready", summary="Whether requests are taken", response_model=Health)
        async def ready(response: Response) -> dict[str, bool]:
            response.status_code = 200 if self.ready else 503
            return {"live": True, "ready": self.ready}

        @guarded.get("/metrics", summary="Counts, as Prometheus reads them", response_class=Response, responses=_PLAIN)
        async def metrics() -> Response:
            return Response(await self.look_up(self.metrics.text), media_type=CONTENT_TYPE)

        @guarded.get("/index", summary="What the index holds", response_model=IndexFacts)
        async def facts() -> dict[str, Any]:
            return _shown(await self.look_up(lambda: patient(self.index.stats)))

        @guarded.post("/search", summary="Search for one or more queries", response_model=Answers)
        async def search(body: SearchRequest) -> Response:
            wanted = Wanted(
                k=body.k,
                where=None if body.where is None else parse_where(body.where),
                stores=None if body.stores is None else tuple(body.stores),
                fusion=body.fusion,
                weights=None if body.weights is None else tuple(sorted(body.weights.items())),
                route=body.route,
            )
            running = self.searches.submit(wanted, body.queries)
            found = await within(running, self.settings.seconds, "search")
            return _json({"answers": [_answer(answer, body.documents) for answer in found]})

        @guarded.get("/documents/{id:document}", summary="One document", response_model=None, responses=_MISSING)
        async def document(id: str) -> Response:
            found = await self.look_up(lambda: _document(self.index, id))
            if found is None:
                raise HTTPException(404, f"no document {id!r} here")
            return _json(found.to_dict())

        if self.settings.write:
            self._add_writing(guarded)
        app.include_router(guarded)

    def _add_writing(self, guarded: APIRouter) -> None:
        @guarded.post("/documents", summary="Add documents, or replace those of the same id", response_model=Changed)
        async def upsert(body: Upsert) -> dict[str, int]:
            documents = [one.document() for one in body.documents]
            return vars(await self.write(lambda: self.index.upsert(documents)))

        @guarded.delete("/documents", summary="Delete documents", response_model=Changed, responses=_MISSING)
        async def delete(body: Ids) -> dict[str, int]:
            def deleted() -> dict[str, int]:
                known = self.index.stores.known(body.ids)
                if lost := [name for name in body.ids if name not in known]:
                    shown = ", ".join(repr(name) for name in lost[:5])
                    raise HTTPException(404, f"{len(lost)} ids are not in the index: {shown}; nothing was deleted")
                return vars(self.index.delete(body.ids))

            return await self.write(deleted)


def _json(content: Any) -> Response:
    return Response(json.dumps(content, ensure_ascii=False, allow_nan=False), media_type="application/json")


def _answer(answer: Answer, documents: bool) -> dict[str, Any]:
    """Return an answer as plain data; why a store failed is for the log alone."""
    found: dict[str, Any] = {"query": answer.query, "hits": [_hit(hit, documents) for hit in answer.hits]}
    found["weights"] = {name: round(weight, 4) for name, weight in answer.weights.items()}
    if answer.failed:
        found["failed"] = sorted(answer.failed)
    if answer.route is not None:
        found["route"] = {"kind": answer.route.kind, "confidence": answer.route.confidence, "why": answer.route.why}
    return found


def _hit(hit: Hit, documents: bool) -> dict[str, Any]:
    found = hit.to_dict()
    if not documents:
        del found["document"]
    return found


def _document(index: Index, name: str) -> Document | None:
    number = index.stores.numbers([name]).get(name)
    return None if number is None else index.stores.documents([number]).get(number)


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    """Return what the index says of itself, without the places of encoders on this machine."""
    spaces = {
        name: {**one, "encoder": PurePath(one["encoder"]).name if one["encoder"][:1] in "/~." else one["encoder"]}
        for name, one in facts["spaces"].items()
    }
    return {**facts, "spaces": spaces}


def _failure(status: int, message: str, kind: str, **headers: str) -> Response:
    return Response(error_body(message, kind), status, headers, "application/json")


def _incident(error: Exception) -> Response:
    """Answer without a word of what happened; the log has it under the same id."""
    incident = secrets.token_hex(6)
    log.error("incident %s", incident, exc_info=error)
    message = f"the server could not answer; its log says why, under incident {incident}"
    return Response(error_body(message, "Incident", incident=incident), 500, media_type="application/json")


def _described(problem: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in problem["loc"][1:])
    if problem["type"] == "json_invalid":
        return f"the body is not JSON: {problem['ctx']['error']} (character {place})"
    if problem["type"] == "model_attributes_type" and not place:
        return "the body is a JSON object, sent with the header 'Content-Type: application/json'"
    return f"{place or 'body'}: {problem['msg']}"


def _methods(app: FastAPI, path: str) -> set[str]:
    """Return the methods of a path, whichever route they are of."""
    found = app.openapi()["paths"].items()
    return {
        method.upper()
        for pattern, methods in found
        if re.fullmatch(re.sub(r"\\{.*\\}", ".*", re.escape(pattern)), path)
        for method in methods
    }


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        found = [_described(one) for one in error.errors()]
        shown = found[:10] + ([f"and {len(found) - 10} more"] if len(found) > 10 else [])
        return _failure(422, "\n".join(shown), "RequestError")

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            allowed = ", ".join(sorted(_methods(app, request.url.path)))
            message = f"{request.method} does nothing here; there is {allowed}"
            return _failure(405, message, "RequestError", allow=allowed)
        kind = "NotFound" if error.status_code == 404 else "RequestError"
        return _failure(error.status_code, str(error.detail), kind, **(error.headers or {}))

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> Response:
        return _failure(503, "too many requests wait already; try again", "Busy", **{"retry-after": "1"})

    @app.exception_handler(Late)
    async def late(_: Request, error: Late) -> Response:
        return _failure(504, str(error), "Timeout")

    @app.exception_handler(ConsilienceError)
    async def impossible(_: Request, error: ConsilienceError) -> Response:
        if isinstance(error, RequestError) and not isinstance(error, _OURS):
            return _failure(400, str(error), type(error).__name__)
        return _incident(error)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        return _incident(error)
