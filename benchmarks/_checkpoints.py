"""Synthetic Llama checkpoints of a given size: sharded, bfloat16, a base and three experts near it."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EXPERTS = {"first": 6e-4, "second": 7.8e-4, "third": 9.6e-4}
"""Each expert is the base plus normal noise of this standard deviation."""

_BASE_DEVIATION = 0.02
_CHUNK = 1 << 20
_SHARDS = 4


@dataclass(frozen=True)
class Size:
    """A Llama shape. `heads` of 64 (or fewer) dimensions each, `kv_heads` of them for keys and values."""

    layers: int
    hidden: int
    mlp: int
    vocabulary: int
    heads: int
    kv_heads: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, in the order of the files."""
        keys = self.hidden // self.heads * self.kv_heads
        layer = {
            "input_layernorm": (self.hidden,),
            "mlp.down_proj": (self.hidden, self.mlp),
            "mlp.gate_proj": (self.mlp, self.hidden),
            "mlp.up_proj": (self.mlp, self.hidden),
            "post_attention_layernorm": (self.hidden,),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
        }
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for index in range(self.layers):
            shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
        return shapes | {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(shape)) for shape in self.tensors().values())

    def config(self) -> dict[str, object]:
        """Return the config.json of such a model."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


SIZES = {
    "tiny": Size(2, 64, 176, 512, 4, 2),
    "small": Size(2, 256, 688, 2048, 4, 2),
    "medium": Size(12, 768, 2048, 16000, 12, 4),
    "base": Size(24, 1280, 3456, 32000, 20, 4),
    "large": Size(31, 2048, 5632, 32000, 32, 4),
}


def make_checkpoints(folder: Path, size: Size) -> dict[str, Path]:
    """Write the base and the experts below `folder`, unless they are there, and return the folder of each."""
    names = ["base", *EXPERTS]
    models = {name: folder / name for name in names}
    if all((model / "config.json").is_file() for model in models.values()):
        return models
    free, needed = shutil.disk_usage(_existing(folder)).free, 2 * size.parameters * (len(names) + 1)
    if free < 1.1 * needed:
        raise SystemExit(f"{folder}: {needed:,} bytes are needed for inputs and one output, {free:,} are free")
    shards = _shards(size)
    for model in models.values():
        shutil.rmtree(model, ignore_errors=True)
        model.mkdir(parents=True)
        _write_index(model, shards)
    random = np.random.Generator(np.random.SFC64(0))
    for number, shard in enumerate(shards, start=1):
        files = [(model / _file(number)).open("wb") for model in models.values()]
        for file in files:
            file.write(_header(shard))
        for shape in shard.values():
            _write_tensor(files, int(np.prod(shape)), random)
        for file in files:
            file.close()
    for model in models.values():  # last, so that it says "complete"
        (model / "config.json").write_text(json.dumps(size.config(), indent=1))
    return models


def read_tensor(folder: Path, name: str) -> np.ndarray:
    """Return one tensor of a written model (one file or several) as float32, flat."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            entry = json.loads(file.read(length)).get(name)
            if entry is None:
                continue
            first, last = entry["data_offsets"]
            file.seek(8 + length + first)
            stored = file.read(last - first)
            if entry["dtype"] == "F32":  # mergekit forgets `dtype` in some methods
                return np.frombuffer(stored, np.float32)
            raw = np.frombuffer(stored, np.uint16)
            return (raw.astype(np.uint32) << 16).view(np.float32)
    raise KeyError(f"{folder}: no tensor {name}")


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def _file(number: int) -> str:
    return f"model-{number:05d}-of-{_SHARDS:05d}.safetensors"


def _shards(size: Size) -> list[dict[str, tuple[int, ...]]]:
    """Cut the tensors, in order, into shards of about equal size."""
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(_SHARDS)]
    seen = 0
    for name, shape in size.tensors().items():
        shards[min(seen * _SHARDS // size.parameters, _SHARDS - 1)][name] = shape
        seen += int(np.prod(shape))
    return shards


def _header(shard: dict[str, tuple[int, ...]]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shard.items():
        last = position + 2 * int(np.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, last]}
        position = last
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_index(model: Path, shards: list[dict[str, tuple[int, ...]]]) -> None:
    places = {name: _file(number) for number, shard in enumerate(shards, start=1) for name in shard}
    total = sum(2 * int(np.prod(shape)) for shard in shards for shape in shard.values())
    content = {"metadata": {"total_size": total}, "weight_map": places}
    (model / "model.safetensors.index.json").write_text(json.dumps(content, indent=1))


def _write_tensor(files: list, numel: int, random: np.random.Generator) -> None:
    """Append one tensor to the file of the base (first) and of every expert."""
    for start in range(0, numel, _CHUNK):
        count = min(_CHUNK, numel - start)
        base = _to_bfloat16(random.standard_normal(count, np.float32) * np.float32(_BASE_DEVIATION))
        values = (base.astype(np.uint32) << 16).view(np.float32)
        files[0].write(base.tobytes())
        for file, deviation in zip(files[1:], EXPERTS.values(), strict=True):
            noise = random.standard_normal(count, np.float32)
            file.write(_to_bfloat16(values + noise * np.float32(deviation)).tobytes())


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
