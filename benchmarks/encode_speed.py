"""Texts a second of an encoder, against sentence-transformers on the same weights, in turn and in one run.

`python benchmarks/encode_speed.py` encodes the bundled documents (some words to some hundred) by all-MiniLM-L6-v2, on
the CPU, in blocks that alternate between the two, and compares the vectors. Figures are CPU seconds, medians over the
blocks; they go to encode_speed.json. `--smoke` takes a few texts.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _experts import BASE

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--texts", type=int, default=4096)
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.texts, options.block, options.tokens = 64, 32, [32]
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    texts = bundled(options.texts)
    rows = [measure(texts, options.block, tokens) for tokens in options.tokens]
    options.folder.mkdir(parents=True, exist_ok=True)
    report = {"threads": options.threads, "texts": len(texts), "rows": rows}
    (options.folder / "encode_speed.json").write_text(json.dumps(report, indent=1))


def bundled(count: int) -> list[str]:
    """Return documents of all bundled sets, mixed."""
    from consilience.data.retrieval import RetrievalData

    folders = sorted(path.parent for path in (ROOT / "examples" / "data").glob("*/corpus.parquet"))
    texts = [text for folder in folders for text in RetrievalData.open(folder).documents.texts]
    order = np.random.default_rng(0).permutation(len(texts))[:count]
    return [texts[place] for place in order]


def measure(texts: list[str], block: int, tokens: int) -> dict[str, Any]:
    """Encode all texts by both, block after block in turn."""
    from sentence_transformers import SentenceTransformer

    from consilience.checkpoints.reference import resolve
    from consilience.models import load_encoder

    ours = load_encoder(BASE, device="cpu", max_tokens=tokens)
    peer = SentenceTransformer(str(resolve(BASE).path), device="cpu")
    peer.max_seq_length = tokens
    ways: dict[str, Callable[[list[str]], Any]] = {
        "sentence-transformers": lambda some: peer.encode(some, normalize_embeddings=True, show_progress_bar=False),
        "here": ours.encode,
    }
    spent: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, list[Any]] = {way: [] for way in ways}
    for way in ways.values():
        way(texts[:8])  # what is made once is made here
    for start in range(0, len(texts), block):
        some = texts[start : start + block]
        for name, way in ways.items():
            before = time.process_time()
            found[name].append(np.asarray(way(some)))
            spent[name].append(len(some) / (time.process_time() - before))
    same = (np.concatenate(found["here"]) * np.concatenate(found["sentence-transformers"])).sum(1)
    rates = {name: float(np.median(own)) for name, own in spent.items()}
    row = {
        "tokens": tokens,
        "texts per CPU second": rates,
        "times sentence-transformers": rates["here"] / rates["sentence-transformers"],
        "least cosine between the two": float(same.min()),
    }
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
