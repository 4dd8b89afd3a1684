"""Small checkpoints on disk for the tests of merging: Llama-shaped tensors, a config, a tokenizer, side files."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LAYERS = 4


def llama_tensors(
    seed, *, layers=LAYERS, width=16, vocabulary=24, dtype="float32", around=None, spread=1e-2, tied=False
):
    """Random tensors named as a Llama's; `around` makes them neighbours of another model's."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (vocabulary, width)}
    for i in range(layers):
        shapes[f"model.layers.{i}.self_attn.q_proj.weight"] = (width, width)
        shapes[f"model.layers.{i}.mlp.down_proj.weight"] = (width, 2 * width)
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (width,)
    shapes["model.norm.weight"] = (width,)
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, width)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        value = noise if around is None else around[name].float() + spread * noise
        tensors[name] = value.to(getattr(torch, dtype))
    return tensors


def tokenizer(words):
    """A word-level tokenizer.json."""
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}, "unk_token": words[0]},
    }


def write_model(folder, tensors, *, config=None, words=None, shards=1):
    """Write tensors, config.json, tokenizer.json and generation_config.json; return the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    embedding = tensors.get("model.embed_tokens.weight")
    head = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": embedding.shape[1] if embedding is not None else 16,
        "num_hidden_layers": len({n.split(".")[2] for n in tensors if n.startswith("model.layers.")}),
        "vocab_size": embedding.shape[0] if embedding is not None else 24,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "torch_dtype": "float32",
        **(config or {}),
    }
    (folder / "config.json").write_text(json.dumps(head))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    words = words or [f"w{i}" for i in range(head["vocab_size"])]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(words)))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: tensors[n] for n in names[i::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make_family(root, *, experts=("a", "b", "c"), dtype="float32", **options):
    """Write a base and experts; return {name: folder} with "base" first."""
    base = llama_tensors(0, dtype=dtype, **options)
    folders = {"base": write_model(root / "base", base)}
    for seed, name in enumerate(experts, start=1):
        folders[name] = write_model(root / name, llama_tensors(seed, dtype=dtype, around=base, **options), shards=seed)
    return folders


def read_weights(folder):
    """Return all tensors of a model folder."""
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def weight_bytes(folder):
    """Return the bytes of every weight file and index."""
    return {p.name: p.read_bytes() for p in sorted(Path(folder).glob("*.safetensors*"))}
