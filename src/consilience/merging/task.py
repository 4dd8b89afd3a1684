"""One tensor of a merge: where its inputs are, what is done to them, and the pass over its chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from consilience.checkpoints.dtypes import DTYPES, decode, encode, working_dtype
from consilience.checkpoints.sources import Source, Stored
from consilience.core.randomness import stream_key
from consilience.errors import NonFiniteError, WorkError
from consilience.merging.coefficients import Coefficients
from consilience.merging.kernels import BLOCK, kernels
from consilience.merging.loading import BUFFERS, Loader
from consilience.merging.method import find_method
from consilience.merging.steps import Chunk, Skippable, Statistics, Steps, WholeSurvey
from consilience.merging.whole import Whole

__all__ = [
    "DEFAULT_CHUNK",
    "TensorTask",
    "Write",
    "copy_tensor",
    "identical_inputs",
    "makes_whole",
    "merge_tensor",
    "survey_tensor",
]

DEFAULT_CHUNK = 1 << 18
"""Elements decoded at a time; large enough that calls cost little, a multiple of the reduction block."""

Write = Callable[[int, NDArray[Any]], None]
"""Takes the index of the first element and stored numbers."""


@dataclass(frozen=True)
class TensorTask:
    """How one output tensor is made. Plain data, picklable, independent of all other tasks.

    `experts` are in the canonical order (by name), as are per-expert values in `parameters`. `copy` is the source of
    a tensor that is copied, not merged. `masks` replaces random draws (tests of published results). `aux` are the
    artefacts the method needs, by kind: one source per expert, or a single one; None where this tensor has none.
    `coefficients` take the place of the method's own.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    method: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    experts: tuple[Source, ...] = ()
    expert_names: tuple[str, ...] = ()
    base: Source | None = None
    base_name: str = "base"
    seed: int = 0
    copy: Source | None = None
    masks: NDArray[np.bool_] | None = None
    aux: Mapping[str, tuple[Source | None, ...]] = field(default_factory=dict)
    coefficients: Coefficients | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every source, the base last."""
        if self.copy is not None:
            return (self.copy,)
        return (*self.experts, *([self.base] if self.base is not None else []))

    @property
    def work(self) -> type[np.float32] | type[np.float64]:
        """The precision the merge computes in."""
        return working_dtype(source.dtype for source in self.sources)

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return self.numel * DTYPES[self.dtype].itemsize

    @property
    def pass_bytes(self) -> int:
        """Bytes that one pass over the inputs reads."""
        return sum(stored.nbytes for source in self.sources for stored in source.inputs())

    def steps(self) -> Steps:
        """Bind the method to this tensor's parameters."""
        steps = find_method(self.method).build(self.parameters)
        if self.coefficients is None:
            return steps
        assert steps.linear is not None, "the plan gives coefficients only to methods that use them"
        return steps.linear(self.coefficients)

    def keys(self) -> tuple[int, ...]:
        """The experts' random streams for this tensor."""
        return tuple(stream_key(self.seed, self.name, name) for name in self.expert_names)


def makes_whole(task: TensorTask) -> bool:
    """Whether the method makes this tensor at once."""
    return task.copy is None and task.numel > 0 and task.steps().makes_whole(task.name, task.shape)


def _chunks(
    task: TensorTask, steps: Steps, chunk: int, hashers: Sequence[Any] | None = None, *, final: bool = False
) -> Iterator[Chunk]:
    """Yield the decoded chunks of one pass, in order, in reused memory; the final pass refuses NaN and infinity."""
    size = max(BLOCK, chunk // BLOCK * BLOCK)
    if steps.whole_rows and task.shape:
        row = max(task.shape[-1], 1)
        size = max(row, size // row * row)
    size = min(size, max(task.numel, 1))
    keys = task.keys()
    beside = {kind: found for kind, found in task.aux.items() if _beside(found, task.shape)}
    marks = hashers or [None] * len(task.sources)
    loaders = [Loader(s, h, check=final) for s, h in zip(task.sources, marks, strict=True)]
    carry: dict[str, Any] = {}
    work = task.work
    for start in range(0, task.numel, size):
        stop = min(start + size, task.numel)
        count = stop - start
        rows = BUFFERS.array("experts", (len(task.experts), count), work)
        base = None if task.base is None else BUFFERS.array("base", (count,), work)
        finite = base is None or loaders[-1].load(start, stop, base)
        minus = base if steps.deltas else None
        for values, loader in zip(rows, loaders, strict=False):
            finite &= loader.load(start, stop, values, minus)
        if final and not finite:  # a vote or a mask would hide it
            raise _non_finite(task, start, stop)
        masks = None if task.masks is None else np.ascontiguousarray(task.masks[:, start:stop])
        out = BUFFERS.array("out", (count,), work)
        aux = {kind: _decode(kind, found, start, stop, work) for kind, found in beside.items()}
        known = (masks, carry, steps.deltas, aux, task.expert_names)
        yield Chunk(task.name, task.shape, start, stop, rows, base, keys, out, *known)


def _beside(found: Sequence[Source | None], shape: tuple[int, ...]) -> bool:
    """Whether artefacts have an entry for every entry of the tensor."""
    return bool(found) and all(source is not None and tuple(source.shape) == shape for source in found)


def _decode(kind: str, found: Sequence[Source | None], start: int, stop: int, work: Any) -> NDArray[Any]:
    values = BUFFERS.array(f"aux {kind}", (len(found), stop - start), work)
    for row, source in zip(values, found, strict=True):
        assert source is not None
        source.read(start, stop, row)
    return values


def identical_inputs(task: TensorTask, chunk: int) -> bool:
    """Whether all inputs are byte-equal and stored as the output is; a glance at the start settles most cases."""
    first, *others = task.sources
    if any(source.dtype != task.dtype or tuple(source.shape) != task.shape for source in task.sources):
        return False
    if all(source == first for source in others):
        return True
    if not all(isinstance(source, Stored) for source in task.sources):
        return False
    for start, stop in ((0, min(BLOCK, task.numel)), *_ranges(task.numel, chunk)):
        head = first.read_raw(start, stop)
        if any(not np.array_equal(_bytes(head), _bytes(s.read_raw(start, stop))) for s in others):
            return False
    return True


def _bytes(raw: NDArray[Any]) -> NDArray[np.uint8]:
    return raw.view(np.uint8)


def _ranges(numel: int, chunk: int) -> Iterator[tuple[int, int]]:
    for start in range(0, numel, chunk):
        yield start, min(start + chunk, numel)


def survey_tensor(
    task: TensorTask,
    steps: Steps,
    index: int,
    known: Statistics,
    chunk: int,
    check: Callable[[], None],
    device: str = "cpu",
) -> Any:
    """Run one survey over one tensor and return its state."""
    survey = steps.surveys[index]
    state = survey.start()
    if not steps.surveyed(task.name, task.shape):
        return survey.close(state)
    if isinstance(survey, WholeSurvey):
        check()
        survey.add_whole(_whole(task, device), state, known)
        return survey.close(state)
    for part in _chunks(task, steps, chunk):
        check()
        survey.add(part, state, known)
    return survey.close(state)


def copy_tensor(task: TensorTask, write: Write, chunk: int, check: Callable[[], None]) -> tuple[str, list[str]]:
    """Copy one tensor, converting where the stored type changes; return its checksum and that of its input."""
    source = task.copy if task.copy is not None else task.sources[0]
    digest, read = xxhash.xxh3_64(), xxhash.xxh3_64()
    for start, stop in _ranges(task.numel, chunk):
        check()
        raw = source.read_raw(start, stop)
        read.update(raw.data)
        if source.dtype != task.dtype:
            values = np.empty(stop - start, np.float64)
            source.read(start, stop, values)
            raw = np.empty(stop - start, DTYPES[task.dtype].storage)
            encode(values, task.dtype, raw)
            _require_finite(task, raw, start, stop)
        digest.update(raw.data)
        write(start, raw)
    return digest.hexdigest(), [read.hexdigest()]


def merge_tensor(
    task: TensorTask,
    write: Write,
    *,
    statistics: Statistics | None = None,
    chunk: int = DEFAULT_CHUNK,
    check: Callable[[], None] = lambda: None,
    hash_inputs: bool = True,
    device: str = "cpu",
    facts: dict[str, Any] | None = None,
) -> tuple[str, list[str]]:
    """Make one tensor; return the xxh3 checksums of its bytes and of the inputs' bytes.

    `statistics` are those of the surveys when they were taken over the whole model; otherwise they are taken here.
    `device` is where whole tensors are computed. What the method tells of this tensor is added to `facts`.
    Raises NonFiniteError naming tensor, model and file when a result is NaN or infinite.
    """
    if task.copy is not None or task.numel == 0:
        return copy_tensor(task, write, chunk, check)
    steps = task.steps()
    if steps.idempotent and identical_inputs(task, chunk):
        checksum, inputs = copy_tensor(task, write, chunk, check)
        return checksum, inputs * len(task.sources)
    if statistics is None:
        statistics = {}
        for index, survey in enumerate(steps.surveys):
            if isinstance(survey, Skippable) and survey.settled(statistics):
                continue
            state = survey_tensor(task, steps, index, statistics, chunk, check, device)
            survey.finish([state], [task.numel], [statistics])
    digest = xxhash.xxh3_64()
    hashers = [xxhash.xxh3_64() if hash_inputs and isinstance(s, Stored) else None for s in task.sources]

    def keep(values: NDArray[Any], start: int, stop: int) -> None:
        raw = BUFFERS.array("result", (stop - start,), DTYPES[task.dtype].storage)
        _store(task, values, raw, start, stop)
        digest.update(raw.data)
        write(start, raw)

    if steps.makes_whole(task.name, task.shape):
        check()
        values = _made_whole(task, steps, statistics, hashers, device)
        for start, stop in _ranges(task.numel, chunk):
            keep(values[start:stop], start, stop)
    else:
        for part in _chunks(task, steps, chunk, hashers, final=True):
            check()
            keep(steps.apply(part, statistics), part.start, part.stop)
    if facts is not None:
        facts.update(statistics.get("facts", {}))
    return digest.hexdigest(), [h.hexdigest() if h is not None else "" for h in hashers]


def _whole(
    task: TensorTask,
    device: str,
    hashers: Sequence[Any] | None = None,
    refuse: Callable[[int, int], Exception] | None = None,
) -> Whole:
    return Whole(
        task.name,
        task.shape,
        task.experts,
        task.expert_names,
        task.base,
        task.aux,
        task.keys(),
        device,
        hashers=hashers,
        refuse=refuse,
    )


def _made_whole(
    task: TensorTask, steps: Steps, statistics: Statistics, hashers: Sequence[Any], device: str
) -> NDArray[Any]:
    """Return the flat values of a tensor that the method makes at once."""
    assert steps.whole is not None
    whole = _whole(task, device, hashers, lambda start, stop: _non_finite(task, start, stop))
    made = steps.whole(whole, statistics).detach().to("cpu")
    whole.finish()
    if tuple(made.shape) != task.shape:
        raise WorkError(
            f"method {task.method!r} made {task.name!r} with shape {list(made.shape)}, not {list(task.shape)}"
        )
    values: NDArray[Any] = made.reshape(-1).numpy().astype(task.work, copy=False)
    return values


def _store(task: TensorTask, values: NDArray[Any], raw: NDArray[Any], start: int, stop: int) -> None:
    """Round to the stored type and refuse what is not finite."""
    if task.dtype == "BF16":
        if not kernels().encode_bfloat16(values, raw):
            raise _non_finite(task, start, stop)
        return
    encode(values, task.dtype, raw)
    _require_finite(task, raw, start, stop)


def _require_finite(task: TensorTask, raw: NDArray[Any], start: int, stop: int) -> None:
    if raw.dtype.kind == "f":
        finite = kernels().all_finite(raw) if raw.dtype.itemsize > 2 else bool(np.isfinite(raw).all())
    else:
        values = np.empty(raw.size, np.float64)
        decode(raw, task.dtype, values)
        finite = bool(np.isfinite(values).all())
    if not finite:
        raise _non_finite(task, start, stop)


def _non_finite(task: TensorTask, start: int, stop: int) -> NonFiniteError:
    """Say which input brought the NaN or infinity, or that the merge overflowed."""
    names = task.expert_names if task.copy is None else ()
    for name, source in zip((*names, task.base_name), task.sources, strict=False):
        values = np.empty(stop - start, np.float64)
        source.read(start, stop, values)
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            where = ", ".join(dict.fromkeys(str(stored.path) for stored in source.inputs()))
            return NonFiniteError(
                f"tensor {task.name!r}: model {name!r} holds {values[bad[0]]} at element {start + int(bad[0])} "
                f"({where}); repair or leave out that model; nothing was published"
            )
    return NonFiniteError(
        f"tensor {task.name!r}: all inputs are finite but the merge overflows {task.dtype} in elements "
        f"{start} to {stop}; use smaller weights or out_dtype: float32; nothing was published"
    )
