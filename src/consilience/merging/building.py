"""From origins to tasks: shapes, stored types, which tensors are merged, the parameters of each."""

from __future__ import annotations

from collections.abc import Mapping

from consilience.checkpoints.dtypes import DTYPES
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.sources import Source
from consilience.errors import Problems
from consilience.merging.cast import Cast
from consilience.merging.layout import Origin
from consilience.merging.method import Method
from consilience.merging.parameters import matches
from consilience.merging.request import MergeRequest
from consilience.merging.resolve import Resolver
from consilience.merging.task import TensorTask

__all__ = ["TaskBuilder", "cast"]


class TaskBuilder:
    """Turns origins into tasks: shapes, stored types, filters, parameters."""

    def __init__(
        self,
        request: MergeRequest,
        method: Method,
        models: Mapping[str, Checkpoint],
        rows: Mapping[tuple[str, str], Source],
        problems: Problems,
        notices: list[str],
    ) -> None:
        self.request = request
        self.method = method
        self.models = models
        self.rows = rows
        self.problems = problems
        self.notices = notices
        self.resolver = Resolver(request, method, problems)
        self.used = dict.fromkeys((*request.merge, *request.copy), 0)
        self.unmatched: list[str] = []
        self.dtypes: dict[str, set[str]] = {}

    def source(self, model: str, tensor: str) -> Source:
        """Return where a model's tensor comes from, its rows aligned where the vocabulary is."""
        return self.rows.get((model, tensor)) or self.models[model].tensors[tensor]

    def task(self, origin: Origin) -> TensorTask:
        """Return the task of one output tensor; problems are recorded."""
        experts = {e: self.source(e, t) for e, t in origin.experts.items()}
        base = self.source(*origin.base) if origin.base else None
        keep_base = base is not None and self.method.base != "none"
        lead = base if base is not None else next(iter(experts.values()))  # the donor has every tensor
        shape = tuple(lead.shape)
        merged = self._is_merged(origin.name)
        for name, source in experts.items():
            if merged and tuple(source.shape) != shape:
                self.problems.add(
                    f"tensor {origin.name!r}: shape {list(source.shape)} in {name!r}, {list(shape)} in "
                    f"{origin.base[0] if origin.base else next(iter(experts))!r}; merge models of one size"
                )
        is_float = DTYPES[lead.dtype].kind == "float"
        stored = (self.request.out_dtype or self.request.cast or lead.dtype) if is_float else lead.dtype
        if merged:
            self._note_dtypes(experts, base, lead)
        if not is_float or not merged:
            return TensorTask(origin.name, shape, stored, copy=lead)
        order = tuple(sorted(experts))
        if self.request.cast:
            experts = {n: cast(s, self.request.cast) for n, s in experts.items()}
            base = cast(base, self.request.cast) if base is not None else None
        return TensorTask(
            origin.name,
            shape,
            stored,
            self.method.name,
            self.resolver.parameters(origin, order),
            tuple(experts[name] for name in order),
            order,
            base if keep_base else None,
            origin.base[0] if origin.base else "base",
            self.request.seed,
        )

    def _is_merged(self, name: str) -> bool:
        copied = [p for p in self.request.copy if matches(p, name)]
        merged = [p for p in self.request.merge if matches(p, name)]
        for pattern in (*copied, *merged):
            self.used[pattern] += 1
        if copied:
            return False
        if self.request.merge and not merged:
            self.unmatched.append(name)
            return False
        return True

    def _note_dtypes(self, experts: Mapping[str, Source], base: Source | None, lead: Source) -> None:
        found = {s.dtype for s in experts.values()} | ({base.dtype} if base is not None else set())
        if len(found) > 1:
            self.dtypes.setdefault(" and ".join(sorted(found)), set()).add(lead.dtype)

    def finish(self) -> None:
        """Report what only all tensors together show."""
        for pattern, count in self.used.items():
            if not count:
                self.problems.add(f"tensors: the pattern {pattern!r} matches no tensor of the model")
        if self.unmatched:
            shown = ", ".join(self.unmatched[:3]) + (", ..." if len(self.unmatched) > 3 else "")
            self.notices.append(f"{len(self.unmatched)} tensor(s) match no pattern and are copied ({shown})")
        for mixed, stored in self.dtypes.items():
            self.notices.append(
                f"inputs mix {mixed}; the merge is stored as {self.request.out_dtype or ' and '.join(sorted(stored))}"
                " (the type of the base, else of the first expert, unless the recipe says otherwise)"
            )
        self.resolver.finish()


def cast(source: Source, dtype: str) -> Source:
    """Return the source rounded to `dtype` when read, unless that changes nothing."""
    widening = {("BF16", "F32"), ("F16", "F32"), ("BF16", "F64"), ("F16", "F64"), ("F32", "F64")}
    if source.dtype == dtype or (source.dtype, dtype) in widening:
        return source
    return Cast(source, dtype)
