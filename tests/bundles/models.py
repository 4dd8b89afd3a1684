"""Small models for tests of bundles, in memory and on disk."""

from __future__ import annotations

import torch

from consilience.checkpoints.writer import CheckpointWriter, OutputTensor, plan_shards
from consilience.merging.memory import as_source
from tests.merging.laws import make_models

SHAPES = {"w": (90, 101), "long": (30_001,), "one": (1,), "scalar": (), "empty": (0, 3)}
NAMES = ("a", "b", "c", "d")
FLOATS = 90 * 101 + 30_001 + 1 + 1 + 3  # the last three: of the tensor that no expert changed


def models(dtype="float32", seed=1, shapes=SHAPES):
    """A base and four experts, with integers and a tensor that no expert changed."""
    base, experts = make_models(shapes, NAMES, seed, dtype)
    base = {name: torch.as_tensor(tensor) for name, tensor in base.items()}
    base |= {"ids": torch.arange(5), "still": torch.ones(3, dtype=getattr(torch, dtype))}
    experts = {
        name: {**{n: torch.as_tensor(t) for n, t in expert.items()}, "ids": base["ids"] + 1, "still": base["still"]}
        for name, expert in experts.items()
    }
    return base, experts


def save(folder, tensors):
    """Write a state dict as a model folder with a side file."""
    sources = {name: as_source(tensor) for name, tensor in tensors.items()}
    writer = CheckpointWriter(folder, plan_shards([OutputTensor(n, s.dtype, s.shape) for n, s in sources.items()]))
    writer.create()
    for name, source in sources.items():
        writer.write(name, 0, source.read_raw(0, source.numel))
    writer.finish()
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    return str(folder)


def read_pieces(source, size):
    """Read a tensor in pieces of a size and join them."""
    import numpy as np

    parts = [source.read_raw(start, min(start + size, source.numel)) for start in range(0, source.numel, size)]
    return np.concatenate(parts) if parts else source.read_raw(0, 0)


def word_data(name, *, seed=0):
    """A domain of texts with odd or even words (or, by another name, all); queries are parts of their documents."""
    import numpy as np

    from consilience.data import RetrievalData

    draw = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(0 if name != "odd" else 1, 200, 2 if name in ("odd", "even") else 1)]
    documents = {f"d{i}": " ".join(draw.choice(words, 8)) for i in range(24)}
    splits = ["train"] * 12 + ["dev"] * 6 + ["test"] * 6
    queries = {f"q{i}": (" ".join(documents[f"d{i}"].split()[:5]), split) for i, split in enumerate(splits)}
    judgements = [(f"q{i}", f"d{i}", 1) for i in range(24)]
    return RetrievalData.of(name, documents=documents, queries=queries, judgements=judgements)
