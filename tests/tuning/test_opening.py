"""What kind of model goes with which data, which examples are drawn, and how long texts are cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.numpy import load_file

from consilience.errors import RequestError
from consilience.models import CausalModel, create_causal
from consilience.models.classifier import Head, TextClassifier
from consilience.models.image import ImageClassifier, ImageEncoder
from consilience.models.image_network import PerceptronConfig
from consilience.models.retrieval import RetrievalPredictor
from consilience.tuning import gather_statistics
from consilience.tuning.opening import open_task, open_tasks
from tests.data.folders import write_dataset
from tests.models.tiny import write_bert


@pytest.fixture(autouse=True)
def no_reserved_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIENCE_DATA", "no-data")


def test_a_retrieval_dataset_opens_an_encoder_on_train_pairs_only(tmp_path: Path) -> None:
    write_bert(tmp_path / "model")
    write_dataset(tmp_path / "data")
    model, examples = open_task(tmp_path / "model", tmp_path / "data", device="cpu", max_tokens=9)
    assert isinstance(model, RetrievalPredictor) and model.encoder.max_tokens == 9
    assert examples == [("how to sort", "Lists sort in place")]


def test_labelled_texts_open_a_classifier_without_held_out_texts(tmp_path: Path) -> None:
    write_bert(tmp_path / "model")
    Head(torch.randn(2, 32), torch.zeros(2), ("even", "odd")).write(tmp_path / "model")
    rows = [{"text": f"w{i} w{i + 1}", "label": i % 2, "split": "train"} for i in range(6)]
    rows.append({"text": "W3 w4", "label": 1, "split": "test"})
    (tmp_path / "data").mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "data/data.parquet")
    (tmp_path / "data/labels.json").write_text('["even", "odd"]')
    model, examples = open_task(tmp_path / "model", tmp_path / "data", device="cpu")
    assert isinstance(model, TextClassifier) and len(examples) == 5 and ("w3 w4", 1) not in examples
    gather_statistics(model, examples, tmp_path / "out", kinds=("fisher",), progress=False)
    fisher = load_file(tmp_path / "out/fisher.safetensors")
    assert set(fisher) >= set(model.names.values()) and (fisher["encoder.layer.1.output.dense.weight"] > 0).all()


def test_labelled_images_open_an_image_classifier(tmp_path: Path) -> None:
    encoder = ImageEncoder(PerceptronConfig(image_size=4, hidden_sizes=(6, 5)))
    ImageClassifier(encoder, Head(torch.randn(2, 5), torch.zeros(2), ("a", "b"))).save(tmp_path / "model")
    rng = np.random.default_rng(0)
    arrays = {f"{split}_x": rng.integers(0, 255, (20, 8, 8), np.uint8) for split in ("train", "test")}
    arrays |= {f"{split}_y": np.arange(20) % 2 for split in ("train", "test")}
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data/data.npz", classes=np.array(["a", "b"]), **arrays)
    model, examples = open_task(tmp_path / "model", tmp_path / "data", examples=10)
    assert isinstance(model, ImageClassifier) and len(examples) == 10 and examples[0][0].shape == (4, 4)
    gather_statistics(model, examples, tmp_path / "out", kinds=("gram", "sensitivity"), progress=False)
    assert len(load_file(tmp_path / "out/gram.safetensors")) == 2


def texts(folder: Path, *lines: dict[str, str]) -> Path:
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def test_texts_open_a_language_model_and_are_cut(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1}
    create_causal(tmp_path / "model", config, "0123456789 ", device="cpu")
    long = "0123456789 " * 9
    data = texts(tmp_path / "data", {"text": long}, {"text": "77"}, {"prompt": "1", "completion": "2"})
    model, examples = open_task(tmp_path / "model", data, max_tokens=12, device="cpu")
    assert isinstance(model, CausalModel)
    assert ("1", "2") in examples and "77" in examples and len(examples) > 9
    assert sum(len(example) for example in examples if isinstance(example, str)) == len(long) + 2
    assert all(len(batch.ids[0]) <= 12 for batch in model.batches(examples, 1))


def test_examples_are_drawn_by_the_seed(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1}
    create_causal(tmp_path / "model", config, "0123456789 ", device="cpu")
    data = texts(tmp_path / "data", *({"prompt": str(i), "completion": "2"} for i in range(40)))
    drawn = [open_task(tmp_path / "model", data, examples=7, seed=seed, device="cpu")[1] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[2]) == 7
    with pytest.raises(RequestError, match="examples is 0"):
        open_task(tmp_path / "model", data, examples=0)


def test_one_model_needs_no_name_and_several_keep_theirs(tmp_path: Path) -> None:
    write_bert(tmp_path / "model")
    write_dataset(tmp_path / "data")
    one = open_tasks([str(tmp_path / "model")], [str(tmp_path / "data")], device="cpu")
    assert list(one.models) == [""] and not one.references
    named = open_tasks([f"a={tmp_path}/model"], [f"a={tmp_path}/data"], device="cpu")
    assert named.references == {"a": f"{tmp_path}/model"} and len(named.examples["a"]) == 1


def test_wrong_names_kinds_and_folders_come_together(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as refused:
        open_tasks(["a=model"], [f"a={tmp_path}/nothere", f"b={tmp_path}"], kinds=("gramm",), device="cpu")
    for words in (
        "'gramm' is unknown; did you mean 'gram'",
        "--data 'b' belongs to no model",
        "nothere: no such folder",
    ):
        assert words in str(refused.value), words
    assert "no data is known by its files" in str(refused.value)
