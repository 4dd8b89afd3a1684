"""`consilience statistics`: from models and data folders to recipes that run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from consilience.cli.app import run
from consilience.models import create_causal
from tests.data.folders import write_dataset
from tests.models.tiny import write_sentence_transformer

LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three language models of one family, an encoder, and data for them."""
    folder = tmp_path_factory.mktemp("statistics")
    for seed, name in enumerate(("base", "plus", "minus")):
        create_causal(folder / name, LLAMA, "0123456789+-=", seed=seed, device="cpu")
    for name, sign in (("plus", "+"), ("minus", "-")):
        (folder / f"data-{name}").mkdir()
        lines = [json.dumps({"prompt": f"{i}{sign}2=", "completion": str(i)}) for i in range(9)]
        (folder / f"data-{name}" / "train.jsonl").write_text("\n".join(lines))
    (folder / "texts").mkdir()
    (folder / "texts" / "train.jsonl").write_text(json.dumps({"text": "1+1=2+0=2-0" * 30}))
    queries = [{"_id": f"q{i}", "text": f"w{i} w{i + 1}", "split": "train"} for i in range(6)]
    corpus = [{"_id": f"d{i}", "title": "", "text": f"w{i} w{i + 9}"} for i in range(6)]
    qrels = [{"query_id": f"q{i}", "corpus_id": f"d{i}", "score": 1, "split": "train"} for i in range(6)]
    write_dataset(folder / "retrieval", corpus=corpus, queries=queries, qrels=qrels)
    write_sentence_transformer(folder / "encoder")
    return folder


def command(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CONSILIENCE_DATA", "no-data")
    return run(line.split())


def test_an_encoder_with_a_retrieval_dataset(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "statistics encoder --data retrieval --kind fisher,gram --out one --batch 3 --examples 4 --device cpu"
    assert command(folder, monkeypatch, line) == 0
    printed = capsys.readouterr().out
    assert "fisher.safetensors" in printed and "gram.safetensors" in printed
    assert (load_file(folder / "one/fisher.safetensors")["encoder.layer.0.output.dense.weight"] > 0).any()
    record = json.loads((folder / "one/consilience.json").read_text())
    assert record["files"]["fisher.safetensors"]["examples"] == 3  # whole batches only
    assert command(folder, monkeypatch, line) == 0


def test_experts_end_in_recipes_that_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (
        "statistics plus=plus minus=minus --data plus=data-plus --data minus=data-minus --base base --out stats "
        "--kind fisher,gram,sequential_gram,sensitivity,logit_distance --examples 5 --device cpu --json"
    )
    assert command(folder, monkeypatch, line) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["recipes"] == ["fisher.yml", "regmean.yml", "regmean_plusplus.yml", "sens.yml"]
    assert set(record["distance"]) == {"plus", "minus"} and record["layers"][0] == "model.embed_tokens"
    results: dict[str, Any] = {}
    for recipe in record["recipes"]:
        assert command(folder, monkeypatch, f"merge stats/{recipe} --out merged-{recipe}") == 0, recipe
        results[recipe] = load_file(folder / f"merged-{recipe}/model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    assert len({value[name].tobytes() for value in results.values()}) == 4


def test_the_activations_of_a_base_relax_a_merge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "statistics base --data texts --kind activation --out activations --max-tokens 32 --device cpu"
    assert command(folder, monkeypatch, line) == 0
    record = json.loads((folder / "activations/consilience.json").read_text())
    assert record["files"]["activation.safetensors"]["examples"] > 10  # a long text is cut into pieces
    (folder / "aim.yml").write_text(
        "version: 1\nmethod: aim\nbase: base\nexperts: {plus: plus, minus: minus}\n"
        "parameters: {weight: 0.5}\naux: {activation: activations}\n"
    )
    assert command(folder, monkeypatch, "merge aim.yml --out aim") == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("statistics a=plus b=minus --data a=data-plus --kind gram", ["'b' has no data", "--data b=FOLDER"]),
        ("statistics plus minus --data data-plus --kind gram", ["'plus' needs a name", "'minus' needs a name"]),
        ("statistics plus --data data-plus --data x=data-minus --kind gram", ["needs a name", "belongs to no model"]),
        ("statistics a=plus a=minus --data a=data-plus --kind gram", ["the name 'a' stands twice"]),
        ("statistics plus --data data-plus --kind gramm", ["'gramm' is unknown", "'gram'"]),
        ("statistics plus --data data-plus --kind sequential_gram", ["at least two models"]),
        ("statistics plus --data nowhere --kind gram", ["nowhere", "corpus.parquet or", "train.jsonl"]),
        ("statistics nowhere --data data-plus --kind gram", ["nowhere"]),
        ("statistics encoder --data retrieval --kind fisher --batch 50", ["documents of a batch", "batch is 50"]),
    ],
)
def test_refusals(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, words: list[str]
) -> None:
    assert command(folder, monkeypatch, f"{line} --out refused --device cpu") == 2
    printed = capsys.readouterr().err
    for word in words:
        assert word in printed, printed
    assert not (folder / "refused").exists()
