"""Merging state dicts in memory: the same steps over the same chunks as the streaming engine, so the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.checkpoints.dtypes import DTYPES, decode, dtype_from_name, torch_name
from consilience.checkpoints.sources import Source, Stored
from consilience.errors import Problems, RecipeError
from consilience.merging.artefacts import attach_artefacts
from consilience.merging.binding import bind_parameters, check_method
from consilience.merging.coefficients import attach_coefficients, check_coefficients, parse_coefficients
from consilience.merging.device import check_device
from consilience.merging.global_scope import model_statistics
from consilience.merging.method import Method, find_method
from consilience.merging.task import DEFAULT_CHUNK, TensorTask, makes_whole, merge_tensor

__all__ = ["InMemory", "as_array", "as_source", "merge_state_dicts"]


@dataclass(frozen=True, eq=False)
class InMemory:
    """A tensor in memory as a source: flat stored numbers, their type and shape."""

    raw: NDArray[Any]
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(self.raw.size)

    @property
    def nbytes(self) -> int:
        """Size of the stored numbers."""
        return int(self.raw.nbytes)

    def __eq__(self, other: object) -> bool:
        """Byte equality."""
        return (
            isinstance(other, InMemory)
            and (self.dtype, self.shape) == (other.dtype, other.shape)
            and np.array_equal(self.raw.view(np.uint8), other.raw.view(np.uint8))
        )

    def __hash__(self) -> int:
        """Identity of the memory."""
        return id(self.raw)

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Decode elements [start, stop)."""
        decode(self.raw[start:stop], self.dtype, out)

    def read_raw(self, start: int, stop: int) -> NDArray[Any]:
        """Return stored elements [start, stop)."""
        return self.raw[start:stop]

    def inputs(self) -> tuple[Stored, ...]:
        """No files are behind this source."""
        return ()


def as_source(tensor: Any) -> InMemory:
    """Return a NumPy array or a PyTorch tensor as a source; its dtype is "" where safetensors has no such type."""
    if hasattr(tensor, "detach"):
        import torch

        flat = tensor.detach().cpu().contiguous().reshape(-1)
        dtype = dtype_from_name(str(tensor.dtype)) or ""
        if dtype == "BF16":
            flat = flat.view(torch.uint16)
        elif dtype.startswith("F8") or dtype == "BOOL":
            flat = flat.view(torch.uint8)
        return InMemory(flat.numpy(), dtype, tuple(tensor.shape))
    array = np.asarray(tensor)
    dtype = dtype_from_name(str(array.dtype)) or ""
    storage = DTYPES[dtype].storage if dtype else array.dtype
    return InMemory(np.ascontiguousarray(array).reshape(-1).view(storage), dtype, array.shape)


def as_array(raw: NDArray[Any], dtype: str, shape: tuple[int, ...], like: Any) -> Any:
    """Return flat stored numbers as an array of a shape: a PyTorch tensor where `like` is one, else a NumPy array."""
    if hasattr(like, "detach"):
        import torch

        return torch.from_numpy(raw).view(getattr(torch, torch_name(dtype))).reshape(shape)
    return raw.view(np.bool_ if dtype == "BOOL" else raw.dtype).reshape(shape)


def merge_state_dicts(
    method: str,
    base: Mapping[str, Any] | None,
    experts: Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    chunk: int = DEFAULT_CHUNK,
    masks: Mapping[str, Mapping[str, NDArray[np.bool_]]] | None = None,
    aux: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "cpu",
    facts: dict[str, dict[str, Any]] | None = None,
    coefficients: Any = None,
    **parameters: Any,
) -> dict[str, Any]:
    """Merge state dicts (name to array) and return the merged one.

    >>> base, a = {"w": np.float32([1, 1])}, {"w": np.float32([3, 1])}
    >>> merge_state_dicts("task_arithmetic", base, {"a": a}, weight=0.5)["w"].tolist()
    [2.0, 1.0]

    Arrays are NumPy arrays or PyTorch tensors of any float type; the result has the type of the base (else of the
    first expert). Integer and boolean tensors are copied. Per-expert parameters take one value, {expert: value} or a
    sequence; `lambda` is passed as **{"lambda": ...} or lambda_=.... A sequence of experts is named "0", "1", ....
    `masks[expert][tensor]` replaces the random draws of methods that drop entries. `aux` are the artefacts a method
    needs: aux[kind][expert][tensor] or, where all experts share one, aux[kind][tensor]. `device` is where matrix
    methods compute. `facts` is filled with what the method tells of single tensors (an objective, say). `coefficients`
    are entries as in a recipe, {"tensors": "*", "a": 0.5}: they take the place of weight and lambda.

    Raises RecipeError listing all problems: unknown method or parameter, names or shapes that differ.
    """
    named = dict(experts) if isinstance(experts, Mapping) else {str(i): e for i, e in enumerate(experts)}
    order = tuple(sorted(named))
    declared = find_method(method)
    problems = Problems()
    problems.extend(check_method(declared, len(order), has_base=base is not None))
    if "coefficients" in declared.parameters and coefficients is not None:  # the method's own parameter of that name
        parameters, coefficients = {**parameters, "coefficients": coefficients}, None
    bound = bind_parameters(declared, parameters, order, tuple(named), problems)
    entries = parse_coefficients(coefficients, order, problems)
    problems.extend(check_coefficients(entries, declared, list(parameters)))
    reference = base if base is not None else next(iter(named.values()), {})
    for name in order:
        missing, extra = sorted(set(reference) - set(named[name])), sorted(set(named[name]) - set(reference))
        if missing or extra:
            problems.add(f"expert {name!r}: missing tensors {missing[:5]}, extra tensors {extra[:5]}")
    problems.raise_if_any(RecipeError, method)
    sources = {name: {t: as_source(v) for t, v in named[name].items()} for name in order}
    bases = {t: as_source(v) for t, v in base.items()} if base is not None else None
    tasks = [
        _task(tensor, declared.name, bound, sources, bases, next(iter(named)), seed, masks, problems)
        for tensor in reference
    ]
    given = {kind: _artefacts(declared, kind, held, order) for kind, held in (aux or {}).items()}
    tasks = attach_artefacts(tasks, declared, given, problems)
    tasks = attach_coefficients(tasks, entries, problems)
    problems.raise_if_any(RecipeError, method)
    if any(makes_whole(task) for task in tasks):
        check_device(device)
    statistics = model_statistics(tasks, chunk=chunk, device=device)
    merged: dict[str, Any] = {}
    for task in tasks:
        out = np.empty(task.numel, DTYPES[task.dtype].storage)

        def write(start: int, raw: NDArray[Any], out: NDArray[Any] = out) -> None:
            out[start : start + raw.size] = raw

        known = statistics.get(task.name)
        told: dict[str, Any] = {}
        merge_tensor(task, write, statistics=known, chunk=chunk, hash_inputs=False, device=device, facts=told)
        if facts is not None and told:
            facts[task.name] = told
        merged[task.name] = as_array(out, task.dtype, task.shape, reference[task.name])
    return merged


def _artefacts(
    method: Method, kind: str, held: Mapping[str, Any], order: tuple[str, ...]
) -> tuple[Mapping[str, Source], ...]:
    """Return the artefacts of one kind as sources: one mapping per expert, or a single one."""
    declared = method.aux.get(kind)
    if declared is None or not declared.per_expert:
        return ({tensor: as_source(value) for tensor, value in held.items()},)
    return tuple({tensor: as_source(value) for tensor, value in held.get(name, {}).items()} for name in order)


def _task(
    tensor: str,
    method: str,
    parameters: Mapping[str, Any],
    sources: Mapping[str, Mapping[str, InMemory]],
    bases: Mapping[str, InMemory] | None,
    first: str,
    seed: int,
    masks: Mapping[str, Mapping[str, NDArray[np.bool_]]] | None,
    problems: Problems,
) -> TensorTask:
    like = bases[tensor] if bases is not None else sources[first][tensor]
    for name, tensors in sources.items():
        if tensors[tensor].shape != like.shape:
            problems.add(f"tensor {tensor!r}: expert {name!r} has shape {tensors[tensor].shape}, not {like.shape}")
    if like.dtype not in DTYPES or DTYPES[like.dtype].kind != "float":
        return TensorTask(tensor, like.shape, like.dtype, copy=like)
    chosen = None
    if masks is not None:
        chosen = np.stack([np.asarray(masks[name][tensor], np.bool_).reshape(-1) for name in sources])
    return TensorTask(
        tensor,
        like.shape,
        like.dtype,
        method,
        parameters,
        tuple(tensors[tensor] for tensors in sources.values()),
        tuple(sources),
        bases[tensor] if bases is not None else None,
        seed=seed,
        masks=chosen,
    )
