"""Makes bundles: shared weights first, then what is left of each expert; streaming, resumable, verified."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from consilience.bundles.format import FORMAT, SHARED, VERSION, described_files
from consilience.bundles.residuals.per_tensor import PerTensor
from consilience.bundles.residuals.protocol import OTHER_SHAPES, Creation, Residual, make_residual
from consilience.bundles.weights import Given, Weights, copy_model, differences, is_float, open_weights, read_state
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.open import open_checkpoint
from consilience.checkpoints.sources import Source
from consilience.core.hashing import fingerprint
from consilience.core.jobs import MANIFEST, Job
from consilience.core.records import write_record
from consilience.errors import Problems, RecipeError
from consilience.merging.memory import as_source, merge_state_dicts
from consilience.merging.recipe import Recipe

if TYPE_CHECKING:
    from consilience.bundles.bundle import Bundle

__all__ = ["Encodes", "create_bundle"]

Encodes = Literal["query", "both"]


def create_bundle(
    out: str | Path,
    base: Weights,
    experts: Mapping[str, Weights],
    *,
    residual: str = "low_rank",
    shared: str | Weights | None = None,
    parameters: Mapping[str, Any] | None = None,
    encodes: Encodes = "query",
    **options: Any,
) -> Bundle:
    """Write experts of one base as shared weights and a residual each, and open the result.

    >>> import tempfile
    >>> import numpy as np
    >>> base = {"w": np.zeros((8, 8), np.float32)}
    >>> experts = {"a": {"w": np.eye(8, dtype=np.float32)}, "b": {"w": np.ones((8, 8), np.float32)}}
    >>> out = Path(tempfile.mkdtemp())
    >>> bundle = create_bundle(out / "twin", base, experts, residual="low_rank", rank=1)
    >>> bundle.experts, bundle.state("b")["w"][0, :3].tolist()
    (('a', 'b'), [1.0, 1.0, 1.0])
    >>> create_bundle(out / "masks", base, experts, residual="masks").state("a")["w"][0, :3].tolist()
    [2.0, 0.0, 0.0]

    base, experts: references to models, opened checkpoints, or state dicts; an expert may be the folder of an adapter.

    residual: what is kept of each expert: "masks" (TALL-masks), "emr", "low_rank" (Twin-Merging), "sparse", "adapter"
    (experts named BASE+ADAPTER) or "widths" (sub-networks of a slimmable base); `options` are those of the kind.

    shared: what all experts share: None or "base", the base itself; a method's name with its `parameters` (such as
    "task_arithmetic" with {"lambda": 0.3}), which merges all experts; or a model. Masks, adapters and widths share the
    base.

    encodes: for text encoders, whether experts encode queries only, so that all share one document space, or both.

    Tensors that are no floating-point numbers are the base's, except with "widths". An interrupted call resumes when it
    is repeated. Raises RecipeError with all problems of parameters, names, shapes and types; StorageError,
    NonFiniteError.
    """
    kept = make_residual(residual, options)
    given = open_weights(base)
    opened = {name: open_weights(experts[name], given.reference) for name in sorted(experts)}
    method = shared if isinstance(shared, str) and shared != "base" and _is_method(shared) else None
    other = None if shared is None or shared == "base" or method is not None else open_weights(shared)
    _check(given, opened, kept, other, method, parameters, encodes)
    made = {"kind": kept.kind, **kept.settings()}
    source = {"method": method, "parameters": dict(parameters or {}), "model": other.identity if other else None}
    request = {
        "base": given.identity,
        "experts": {name: expert.identity for name, expert in opened.items()},
        "residual": made,
        "shared": source,
        "encodes": encodes,
    }
    with Job(Path(out), kind=FORMAT, request=request) as job:
        _share(job, given, opened, kept, other, method, dict(parameters or {}))
        creation = Creation(job, job.work, given, open_checkpoint(job.work / SHARED), opened)
        facts = kept.write(creation)
        record = {
            "kind": "bundle",
            "experts": list(opened),
            "encodes": encodes,
            "base": {"reference": given.reference, "fingerprint": given.identity},
            "sources": {name: expert.reference for name, expert in opened.items()},
            "fingerprints": {name: expert.identity for name, expert in opened.items()},
            "shared": source | {"from": method or ("model" if other is not None else "base")},
            "residual": made | facts,
            "expert_bytes": {name: expert.nbytes for name, expert in opened.items()},
            "identity": fingerprint(request),
            "files": described_files(job.work),
        }
        write_record(job.work / MANIFEST, FORMAT, VERSION, record)
        job.publish()
    from consilience.bundles.bundle import Bundle

    return Bundle.open(out)


def _is_method(name: str) -> bool:
    from consilience.merging.method import method_names

    return name in method_names()


def _check(
    base: Given,
    experts: Mapping[str, Given],
    residual: Residual,
    other: Given | None,
    method: str | None,
    parameters: Mapping[str, Any] | None,
    encodes: str,
) -> None:
    problems = Problems()
    if not experts:
        problems.add("experts: a bundle has at least one, found none")
    if "base" in experts:
        problems.add("experts: 'base' is what the shared model is called in routing; name the expert otherwise")
    alike = {} if residual.kind in OTHER_SHAPES else experts
    differences(base.tensors, {name: expert.tensors for name, expert in alike.items()}, problems)
    residual.check(base, experts, problems)
    if residual.shares_base and (other is not None or method is not None):
        problems.add(f"shared: experts kept as {residual.kind!r} share the base; leave it out")
    if other is not None:
        differences(base.tensors, {"the shared model": other.tensors}, problems)
    if parameters and method is None:
        problems.add("parameters: they belong to a method that makes the shared weights; name it as shared")
    if encodes not in ("query", "both"):
        problems.add(f"encodes: {encodes!r} is neither 'query' nor 'both'")
    problems.raise_if_any(RecipeError, "bundle")


def _share(
    job: Job,
    base: Given,
    experts: Mapping[str, Given],
    residual: Residual,
    other: Given | None,
    method: str | None,
    parameters: Mapping[str, Any],
) -> None:
    """Write the shared model, unless an interrupted run already did."""
    if "shared model" in job.done:
        return
    excluded = [name for name in base.tensors if isinstance(residual, PerTensor) and residual.excludes(name)]
    files = base.checkpoint
    tensors: Mapping[str, Source] = base.tensors
    if other is not None:
        tensors = {name: other.tensors[name] if is_float(source) else source for name, source in tensors.items()}
        files = other.checkpoint or files
    elif method is not None:
        merged = _merged(job, base, experts, method, parameters)
        tensors = {name: base.tensors[name] if name in excluded else source for name, source in merged.items()}
    copy_model(job, job.work / SHARED, tensors, files)
    job.record("shared model")


def _merged(
    job: Job, base: Given, experts: Mapping[str, Given], method: str, parameters: Mapping[str, Any]
) -> Mapping[str, Source]:
    """Merge the experts: by the engine where all models are on disk, else in memory by the same steps."""
    models: list[Checkpoint | None] = [base.checkpoint, *(expert.checkpoint for expert in experts.values())]
    if all(model is not None and "#" not in model.reference for model in models):  # NAME#EXPERT: of another bundle
        recipe = Recipe(
            method=method,
            base=base.reference,
            experts={name: expert.reference for name, expert in experts.items()},
            parameters=dict(parameters),
        )
        place = job.partial / "stages" / SHARED
        recipe.run(place, progress=False)
        return open_checkpoint(place).tensors
    states = {name: read_state(expert.tensors) for name, expert in experts.items()}
    merged = merge_state_dicts(method, read_state(base.tensors), states, **parameters)
    return {name: as_source(tensor) for name, tensor in merged.items()}
