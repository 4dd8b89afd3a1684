"""Small weight files made by hand, independent of the code under test."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "U8": 1, "BOOL": 1}


def raw_file(path: Path, header: Any, data: bytes) -> Path:
    """Write a header (an object, or bytes as they are) and data."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)
    return path


def weights(path: Path, tensors: Mapping[str, NDArray[Any] | tuple[str, tuple[int, ...], bytes]]) -> Path:
    """Write float32 arrays, or (type, shape, bytes), as a safetensors file."""
    header: dict[str, Any] = {}
    data = b""
    for name, value in tensors.items():
        if isinstance(value, tuple):
            dtype, shape, content = value
        else:
            dtype, shape, content = "F32", value.shape, np.ascontiguousarray(value, np.float32).tobytes()
        assert len(content) == math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return raw_file(path, header, data)


def numbers(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def adapter(
    folder: Path, tensors: Mapping[str, NDArray[Any]], prefix: str = "base_model.model.", **config: Any
) -> Path:
    """Write a PEFT LoRA folder."""
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "some/base", **config}
    write_json(folder / "adapter_config.json", settings)
    weights(folder / "adapter_model.safetensors", {prefix + name: value for name, value in tensors.items()})
    return folder


def values(source: Any) -> NDArray[np.float64]:
    """Return all values of a source, in its shape."""
    out = np.empty(source.numel, np.float64)
    source.read(0, source.numel, out)
    return out.reshape(source.shape)
