"""A tree of cuts that parts rows so that the queries of a workload have to look at few of them.

A cut is a part of a filter of the workload, or membership of a row's nearest centroid in the set of centroids that a
query probes: so attributes and vectors are cut by the same means. The tree grows greedily. Its cost is the sum over
leaves of |leaf| times the number of queries that may match a row of it; the (leaf, cut) that saves most is taken, the
first one in the order of leaves and of cuts among equals, as long as both sides keep `min_leaf` rows and something is
saved. The row for which a cut is false or unknown goes to the second side.

Source: the greedy construction of the qd-tree (Yang et al., SIGMOD 2020), as HQI (Mohoney et al., SIGMOD 2023) uses it
with centroids; rebuilt from the descriptions, there is no official code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from consilience.retrieval.batches.columns import Columns
from consilience.stores.where import And, Compare, Filter, IsNull, Not

__all__ = ["Cut", "Step", "Tree", "Workload", "candidate_cuts", "conjuncts", "grow"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """A filter, or a set of centroids; one of them."""

    where: Filter | None = None
    centroids: tuple[int, ...] = ()

    def holds(self, columns: Columns, lists: Ints) -> Bools:
        """Return for every row whether it is on the first side."""
        return columns.matches(self.where) if self.where is not None else np.isin(lists, self.centroids)

    def __str__(self) -> str:
        if self.where is None:
            return f"centroid in ({', '.join(map(str, self.centroids))})"
        return _text(self.where)


@dataclass(frozen=True)
class Workload:
    """Past queries: distinct filters, and per query the number of its filter and the centroids it probes, ascending."""

    filters: tuple[Filter | None, ...]
    templates: tuple[int, ...]
    centroids: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Step:
    """One cut as it was taken: the number of the leaf at that moment, the cut, and what it saves."""

    leaf: int
    cut: Cut
    tuples_skipped: int


@dataclass
class _Node:
    cut: Cut | None = None
    sides: tuple[_Node, _Node] | None = None
    leaf: int = -1


@dataclass(frozen=True)
class Tree:
    """A grown tree. Costs count a row once for every query of the workload that has to look at it.

    >>> columns = Columns([{"year": year} for year in range(2000, 2010)])
    >>> late = Compare("year", ">=", (2006,))
    >>> workload = Workload((late,), (0,), ((0,),))
    >>> tree = grow(columns, np.zeros(10, np.int64), workload, min_leaf=2)
    >>> tree.cost_unpartitioned, tree.cost, tree.descriptions
    (10, 4, ('year >= 2006', 'not (year >= 2006)'))
    >>> tree.route(Columns([{"year": 1980}, {"year": 2020}]), np.zeros(2, np.int64))
    array([1, 0])

    descriptions: per leaf, which cuts above it hold; "not (...)" is false or unknown.
    """

    root: _Node = field(repr=False)
    steps: tuple[Step, ...]
    cost_unpartitioned: int
    cost: int
    descriptions: tuple[str, ...]

    def route(self, columns: Columns, lists: Ints) -> Ints:
        """Return the leaf of every row; lists: the nearest centroid of every row."""
        found = np.zeros(len(columns), np.int64)
        waiting = [(self.root, np.arange(len(columns)))]
        known: dict[str, Bools] = {}
        while waiting:
            node, rows = waiting.pop()
            if node.cut is None or node.sides is None:
                found[rows] = node.leaf
                continue
            key = repr(node.cut)
            if key not in known:
                known[key] = node.cut.holds(columns, lists)
            inside = known[key][rows]
            waiting += [(node.sides[0], rows[inside]), (node.sides[1], rows[~inside])]
        return found


def conjuncts(where: Filter | None) -> list[Filter]:
    """Return the parts of a filter that all have to be true.

    >>> conjuncts(And((IsNull("a"), And((IsNull("b"), IsNull("c"))))))
    [IsNull(field='a'), IsNull(field='b'), IsNull(field='c')]
    """
    if isinstance(where, And):
        return [found for part in where.parts for found in conjuncts(part)]
    return [] if where is None else [where]


def candidate_cuts(workload: Workload, most: int) -> list[Cut]:
    """Return the parts of the filters in their order, and the `most` frequent sets of centroids, ascending."""
    parts = {repr(part): Cut(part) for where in workload.filters for part in conjuncts(where)}
    counted = Counter(workload.centroids)
    frequent = sorted(counted, key=lambda own: (-counted[own], own))[:most]
    return [*parts.values(), *(Cut(centroids=own) for own in sorted(frequent) if own)]


def grow(columns: Columns, lists: Ints, workload: Workload, *, min_leaf: int, centroid_cuts: int = 64) -> Tree:
    """Grow the tree for rows with attributes and the nearest centroid of each.

    min_leaf: rows that both sides of a cut keep, at least 1. centroid_cuts: as many sets of centroids are tried.
    """
    cuts = candidate_cuts(workload, centroid_cuts)
    costs = _Costs(columns, lists, workload, cuts, min_leaf)
    root = _Node()
    nodes, members = [root], [np.arange(len(costs.sizes))]
    descriptions = [""]
    saved = [costs.best(members[0])]
    total = start = costs.cost(members[0])
    steps = []
    while True:
        leaf = int(np.argmax([gain for gain, _ in saved]))
        gain, number = saved[leaf]
        if gain <= 0:
            break
        cut, inside = cuts[number], costs.inside[members[leaf], number]
        sides = (_Node(), _Node())
        nodes[leaf].cut, nodes[leaf].sides = cut, sides
        parted = [members[leaf][inside], members[leaf][~inside]]
        above = descriptions[leaf]
        told = [" and ".join(filter(None, (above, text))) for text in (str(cut), f"not ({cut})")]
        nodes[leaf : leaf + 1] = sides
        members[leaf : leaf + 1] = parted
        descriptions[leaf : leaf + 1] = told
        saved[leaf : leaf + 1] = [costs.best(part) for part in parted]
        steps.append(Step(leaf, cut, gain))
        total -= gain
    for number, node in enumerate(nodes):
        node.leaf = number
    return Tree(root, tuple(steps), start, total, tuple(descriptions))


class _Costs:
    """What cuts save. Rows that no filter, no cut and no centroid tells apart are counted together, as one cell."""

    def __init__(self, columns: Columns, lists: Ints, workload: Workload, cuts: Sequence[Cut], min_leaf: int) -> None:
        self.min_leaf = min_leaf
        filters, parts = len(workload.filters), [cut for cut in cuts if cut.where is not None]
        known = [columns.matches(where) for where in workload.filters] + [cut.holds(columns, lists) for cut in parts]
        bits = np.stack(known, axis=1) if known else np.zeros((len(lists), 0), bool)
        packed = np.concatenate(
            [np.packbits(bits, axis=1), lists.astype("<u4")[:, None].view(np.uint8).reshape(len(lists), 4)], axis=1
        )
        _, first, counts = np.unique(
            np.ascontiguousarray(packed).view(f"V{packed.shape[1]}").ravel(), return_index=True, return_counts=True
        )
        order = np.argsort(lists[first], kind="stable")  # cells of one centroid stand together
        first, self.sizes = first[order], counts[order].astype(np.int64)
        self.lists = lists[first]
        self.matching = bits[first, :filters]
        sets = [np.isin(self.lists, cut.centroids)[:, None] for cut in cuts if cut.where is None]
        self.inside = np.concatenate([bits[first, filters:], *sets], axis=1)
        distinct = Counter(zip(workload.templates, workload.centroids, strict=True))
        width = 1 + max([int(lists.max(initial=0)), *(max(own, default=0) for own in workload.centroids)])
        self.queries = []  # per filter: how often each set of centroids is asked for, and the sets
        for template in range(filters):
            own = [(centroids, count) for (number, centroids), count in distinct.items() if number == template]
            probed = np.zeros((len(own), width), np.float32)
            for row, (centroids, _) in enumerate(own):
                probed[row, list(centroids)] = 1
            self.queries.append((np.array([count for _, count in own], np.int64), probed))

    def cost(self, cells: Ints) -> int:
        """Return |leaf| times the queries that may match a row of it."""
        return int(self.sizes[cells].sum() * self._asked(cells, np.ones((len(cells), 1), bool))[0])

    def best(self, cells: Ints) -> tuple[int, int]:
        """Return what the best cut of a leaf saves and its number; 0 where there is none."""
        inside = self.inside[cells]
        if not inside.shape[1]:
            return 0, 0
        sizes = self.sizes[cells]
        first = sizes @ inside
        second = sizes.sum() - first
        gain = self.cost(cells) - first * self._asked(cells, inside) - second * self._asked(cells, ~inside)
        gain[(first < self.min_leaf) | (second < self.min_leaf)] = 0
        number = int(np.argmax(gain))
        return int(gain[number]), number

    def _asked(self, cells: Ints, sides: Bools) -> Ints:
        """Return per side, (cells, sides), how many queries may match a row of it."""
        found = np.zeros(sides.shape[1], np.int64)
        for template, (counts, probed) in enumerate(self.queries):
            matching = self.matching[cells, template]
            lists = self.lists[cells[matching]]
            if not len(lists) or not len(counts):
                continue
            starts = np.flatnonzero(np.concatenate([[True], lists[1:] != lists[:-1]]))
            present = np.logical_or.reduceat(sides[matching], starts, axis=0)
            found += counts @ (probed[:, lists[starts]] @ present.astype(np.float32) > 0)
        return found


def _text(where: Filter) -> str:
    if isinstance(where, IsNull):
        return f"{where.field} is null"
    if isinstance(where, Not):
        return f"not ({_text(where.part)})"
    if isinstance(where, Compare):
        values = ", ".join(repr(value) for value in where.values)
        return f"{where.field} {where.operator} " + (f"({values})" if where.operator == "in" else values)
    return (" and " if isinstance(where, And) else " or ").join(f"({_text(part)})" for part in where.parts)
