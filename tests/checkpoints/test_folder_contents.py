"""Side files, descriptions and tied names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from consilience.checkpoints import copy_side_files, open_checkpoint
from consilience.checkpoints.describe import describe
from consilience.checkpoints.tied import tied_names
from consilience.errors import StorageError
from tests.checkpoints.build import adapter, numbers, weights, write_json

CARRIED = [
    "1_Pooling/config.json",
    "LICENSE",
    "chat_template.jinja",
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "merges.txt",
    "modeling_custom.py",
    "modules.json",
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
]
LEFT = [
    ".cache/x.json",
    ".gitattributes",
    "README.md",
    "checkpoint-10/model.safetensors",
    "checkpoint-10/trainer_state.json",
    "consilience.json",
    "model.fp16.safetensors",
    "onnx/config.json",
    "onnx/model.onnx",
    "openvino/openvino_model.bin",
    "openvino/openvino_model.xml",
    "optimizer.pt",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "trainer_state.json",
    "training_args.bin",
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name in (*CARRIED, *LEFT):
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    write_json(tmp_path / "model/modules.json", [{"path": ""}, {"path": "1_Pooling"}])
    weights(tmp_path / "model/model.safetensors", {"h.0.weight": numbers(2, 3), "h.1.weight": numbers(2, 3)})
    return tmp_path / "model"


def test_every_side_file_is_carried_and_nothing_else(model: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(model)
    assert list(opened.side_files) == CARRIED
    written = copy_side_files(opened, tmp_path / "out", {"README.md": b"card", "config.json": b'{"a": 1}'})
    assert written == sorted([*CARRIED, "README.md"])
    found = {p.relative_to(tmp_path / "out").as_posix(): p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert sorted(found) == written
    assert found["config.json"].read_bytes() == b'{"a": 1}'
    assert found["modules.json"].read_bytes() == (model / "modules.json").read_bytes()


def test_a_changed_config_is_written(model: Path, tmp_path: Path) -> None:
    opened = replace(open_checkpoint(model), config={"tie_word_embeddings": False})
    copy_side_files(opened, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text()) == {"tie_word_embeddings": False}
    unchanged = open_checkpoint(model)
    (model / "config.json").write_text("{ }")
    copy_side_files(unchanged, tmp_path / "same")
    assert (tmp_path / "same/config.json").read_text() == "{ }", "byte for byte where nothing changed"


def test_a_side_file_that_vanished_is_named(model: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(model)
    (model / "merges.txt").unlink()
    with pytest.raises(StorageError, match=r"merges\.txt: No such file"):
        copy_side_files(opened, tmp_path / "out")


def test_a_description(model: Path) -> None:
    write_json(model / "config.json", {"model_type": "x", "architectures": ["XModel"]})
    facts = describe(open_checkpoint(model))
    assert json.loads(json.dumps(facts)) == facts, "plain data"
    assert (facts["tensors"], facts["parameters"], facts["bytes"]) == (2, 12, 48)
    assert facts["dtypes"] == {"F32": {"tensors": 2, "parameters": 12, "bytes": 48}}
    assert facts["layers"] == {"h.": 2}
    assert (facts["model_type"], facts["architectures"]) == ("x", ["XModel"])
    assert facts["ignored_weights"] == [
        "checkpoint-10/model.safetensors",
        "model.fp16.safetensors",
        "optimizer.pt",
        "pytorch_model.bin",
        "training_args.bin",
    ]


def test_a_description_with_adapter_and_components(model: Path, tmp_path: Path) -> None:
    weights(model / "2_Dense/model.safetensors", {"linear.weight": numbers(3, 2)})
    write_json(model / "modules.json", [{"path": ""}, {"path": "2_Dense"}])
    expert = adapter(tmp_path / "e", {"h.1.lora_A.weight": numbers(2, 3), "h.1.lora_B.weight": numbers(2, 2)})
    facts = describe(open_checkpoint(f"{model}+{expert}"))
    assert facts["components"] == {"2_Dense": {"tensors": 1, "parameters": 6, "bytes": 24}}
    assert facts["adapters"] == [
        {"name": "e", "base_model": "some/base", "modules": 1, "ranks": [2], "replaced": 0, "parameters": 10}
    ]


@pytest.mark.parametrize(
    ("names", "config", "expected"),
    [
        (["model.embed_tokens.weight"], {"tie_word_embeddings": True}, ("lm_head.weight", "model.embed_tokens.weight")),
        (
            ["transformer.wte.weight"],
            {"architectures": ["GPT2LMHeadModel"]},
            ("lm_head.weight", "transformer.wte.weight"),
        ),
        (
            ["model.embed_tokens.weight"],
            {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {"tie_word_embeddings": True}},
            ("lm_head.weight", "model.embed_tokens.weight"),
        ),
        (
            ["language_model.model.embed_tokens.weight"],
            {"architectures": ["LlavaForConditionalGeneration"]},
            ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),
        ),
        (
            ["bert.embeddings.word_embeddings.weight", "cls.predictions.bias"],
            {"architectures": ["BertForMaskedLM"]},
            ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ),
        (
            ["roberta.embeddings.word_embeddings.weight", "lm_head.dense.weight"],
            {"architectures": ["RobertaForMaskedLM"]},
            ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ),
        (
            ["gpt_neox.embed_in.weight"],
            {"architectures": ["GPTNeoXForCausalLM"], "tie_word_embeddings": True},
            ("embed_out.weight", "gpt_neox.embed_in.weight"),
        ),
    ],
)
def test_tied_names(names: list[str], config: dict[str, object], expected: tuple[str, str]) -> None:
    assert tied_names(names, config) == dict([expected])
    assert tied_names([*names, expected[0]], config) == {}, "stored names are not tied"
    assert tied_names(names, {**config, "text_config": {}, "tie_word_embeddings": False}) == {}


def test_shared_and_bare_models() -> None:
    shared = tied_names(
        ["shared.weight", "decoder.embed_tokens.weight"], {"architectures": ["T5ForConditionalGeneration"]}
    )
    assert shared == {"encoder.embed_tokens.weight": "shared.weight", "lm_head.weight": "shared.weight"}
    bare = {"architectures": ["BertModel"], "tie_word_embeddings": True}
    assert tied_names(["embeddings.word_embeddings.weight"], bare) == {}
    assert tied_names(["conv.weight"], {"tie_word_embeddings": True}) == {}
