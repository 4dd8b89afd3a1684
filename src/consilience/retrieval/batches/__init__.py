"""Batches of hybrid queries, nearest vectors under a filter, run together on an index cut to a workload."""

from consilience.retrieval.batches.columns import Columns
from consilience.retrieval.batches.index import BatchIndex, HybridQuery
from consilience.retrieval.batches.laying_out import lay_out
from consilience.retrieval.batches.search import BatchResult, Hits, search_batch, search_one

__all__ = ["BatchIndex", "BatchResult", "Columns", "Hits", "HybridQuery", "lay_out", "search_batch", "search_one"]
