"""The folder in which the blocks of the documentation run: small stand-ins under the names that the pages use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq

from tests.merging.checkpoints import llama_tensors, write_model
from tests.merging.test_engine import write_adapter

ROOT = Path(__file__).parents[2]
WORDS = [f"w{i}" for i in range(24)]


def make_workspace(folder: Path) -> None:
    """Fill a folder with models, adapters, the bundled examples (real experts, a few queries), and nothing else."""
    base = llama_tensors(0, width=8)
    write_model(folder / "models/base", base, words=WORDS)
    for seed, name in enumerate(("code", "maths"), start=1):
        write_model(folder / "models" / name, llama_tensors(seed, width=8, around=base), words=WORDS)
    chat = llama_tensors(3, width=8, vocabulary=28)
    write_model(folder / "models/chat", chat, words=[*WORDS, "<|im_start|>", "<|im_end|>", "tool", "call"])
    (folder / "adapters").mkdir()
    for seed, name in enumerate(("style", "tone"), start=4):
        write_adapter(folder / "adapters" / name, base, seed)
    (folder / "recipes").mkdir()
    (folder / "recipes/merge.yml").write_text(
        "version: 1\nmethod: ties\nbase: models/base\nexperts: {code: models/code, maths: models/maths}\n"
    )
    (folder / "recipes/misspelt.yml").write_text(
        "merge_method: ties\nbase_model: models/base\nmodels:\n- model: models/code\n"
        "  parameters: {weight: 1, densty: 0.3}\n"
    )
    (folder / "notes").mkdir()
    (folder / "notes/ports.txt").write_text("List open ports with ss -tln.")
    (folder / "notes/lists.md").write_text("# Lists\n\nSort a list in place with sort().")
    (folder / "docs").mkdir()
    for name in ("search.md", "merging.md"):
        shutil.copy(ROOT / "docs" / name, folder / "docs" / name)
    (folder / "examples").mkdir()
    for name in ("recipes", "experts"):
        (folder / "examples" / name).symlink_to(ROOT / "examples" / name)
    shutil.copy(ROOT / "examples/suite.yml", folder / "examples/suite.yml")
    for dataset in sorted((ROOT / "examples/data").iterdir()):
        if (dataset / "qrels.parquet").is_file():
            shrink(dataset, folder / "examples/data" / dataset.name)


def shrink(source: Path, target: Path) -> None:
    """Copy a dataset with 5 train, 2 dev and 3 test queries and their relevant documents."""
    target.mkdir(parents=True)
    queries, qrels, corpus = (pq.read_table(source / f"{name}.parquet") for name in ("queries", "qrels", "corpus"))
    kept: set[str] = set()
    scores = zip(qrels["query_id"].to_pylist(), qrels["score"].to_pylist(), strict=True)
    judged = {query for query, score in scores if score > 0}
    room = {"train": 5, "dev": 2, "test": 3}
    for name, split in zip(queries["_id"].to_pylist(), queries["split"].to_pylist(), strict=True):
        if room[split] and name in judged:
            room[split] -= 1
            kept.add(name)
    qrels = qrels.filter([name in kept for name in qrels["query_id"].to_pylist()])
    documents = set(qrels["corpus_id"].to_pylist())
    pq.write_table(queries.filter([name in kept for name in queries["_id"].to_pylist()]), target / "queries.parquet")
    pq.write_table(qrels, target / "qrels.parquet")
    pq.write_table(corpus.filter([name in documents for name in corpus["_id"].to_pylist()]), target / "corpus.parquet")
