"""Weights that are refused by name, each with the way to convert them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["PICKLE_SUFFIXES", "WEIGHT_SUFFIXES", "foreign_weights", "quantised_config", "quantised_tensors"]

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WEIGHT_SUFFIXES = (
    *PICKLE_SUFFIXES,
    ".safetensors",
    ".gguf",
    ".ggml",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".tflite",
    ".ot",
    ".npz",
    ".mlmodel",
)
_QUANTISED_TENSORS = (
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    ".absmax",
    ".quant_map",
    ".SCB",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_packed",
    ".weight_zero_point",
)
_FULL_PRECISION = "merging needs the numbers themselves: use the full-precision model it was made from"


def quantised_config(config: Mapping[str, Any], path: Path) -> str | None:
    """Return the refusal of a model whose config says it is quantised, or None.

    >>> quantised_config({"quantization_config": {"quant_method": "gptq"}}, Path("config.json"))[:46]
    'config.json says the weights are quantised (gp'
    """
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("quantization_config", "compression_config"):
            settings = part.get(key)
            if settings:
                method = settings.get("quant_method", key) if isinstance(settings, dict) else key
                return (
                    f"{path} says the weights are quantised ({method}); {_FULL_PRECISION}, or load it with "
                    "transformers, call model.dequantize() and model.save_pretrained(FOLDER)"
                )
    return None


def quantised_tensors(names: Iterable[str]) -> str | None:
    """Return the refusal of tensors that only quantised models have, or None.

    >>> quantised_tensors(["a.weight"]) is None
    True
    """
    found = [name for name in names if name.endswith(_QUANTISED_TENSORS) or ".weight.quant_state." in name]
    if not found:
        return None
    return f"{len(found)} tensors hold quantised weights, such as {found[0]!r}; {_FULL_PRECISION}"


def foreign_weights(paths: Iterable[Path]) -> list[str]:
    """Return the refusals of weight files in other formats.

    >>> foreign_weights([Path("model.gguf")])[0][:22]
    'model.gguf is GGUF (us'
    """
    found = []
    pickles = []
    for path in sorted(paths):
        if path.suffix in (".gguf", ".ggml"):
            found.append(f"{path} is GGUF (usually quantised), which is not read; {_FULL_PRECISION}, in safetensors")
        elif path.suffix in PICKLE_SUFFIXES and path.stem not in ("training_args", "optimizer", "scheduler"):
            pickles.append(path)
    if pickles:
        found.append(_pickle_refusal(pickles))
    return found


def _pickle_refusal(paths: list[Path]) -> str:
    first = paths[0]
    listed = ", ".join(path.name for path in paths[:4]) + (", ..." if len(paths) > 4 else "")
    target = "adapter_model.safetensors" if first.stem == "adapter_model" else "model.safetensors"
    many = len(paths) > 1
    source = "; ".join(
        (
            "import glob, torch" if many else "import torch",
            "from safetensors.torch import save_file",
            "load = lambda p: torch.load(p, map_location='cpu', weights_only=True)",
            f"w = {{k: v for p in sorted(glob.glob('*{first.suffix}')) for k, v in load(p).items()}}"
            if many
            else f"w = load('{first.name}')",
            f"save_file({{k: v.clone().contiguous() for k, v in w.items()}}, '{target}', {{'format': 'pt'}})",
        )
    )
    return (
        f"{first.parent} holds pickle weights only ({listed}); pickle can run code and is not read; convert once: "
        f'cd {first.parent} && python -c "{source}"'
    )
