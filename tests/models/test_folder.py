from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from consilience.errors import CheckpointError
from consilience.models.folder import plain_folder, pooling_modes, read_folder, side_file_texts


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def modules(*types: str) -> list[dict[str, Any]]:
    paths = ["" if kind == "Transformer" else f"{index}_{kind}" for index, kind in enumerate(types)]
    return [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(types, paths, strict=True))
    ]


def test_old_format_is_read(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        {
            "modules.json": modules("Transformer", "Pooling", "Dense", "Normalize"),
            "sentence_roberta_config.json": {"max_seq_length": 77, "do_lower_case": True},
            "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
            "2_Dense/config.json": {"in_features": 8, "out_features": 4},
            "config_sentence_transformers.json": {"prompts": {"query": "q: "}, "default_prompt_name": "query"},
        },
    )
    found = read_folder(folder)
    assert (found.max_tokens, found.lower_case, found.default_prompt) == (77, True, "query")
    assert [module.kind for module in found.modules] == ["Pooling", "Dense", "Normalize"]
    assert pooling_modes(found.modules[0].config) == ("cls", "max")
    assert found.modules[1].config["out_features"] == 4
    assert found.prompts == {"query": "q: "}


def test_new_format_is_read(tmp_path: Path) -> None:
    listed = modules("Transformer", "Pooling")
    listed[0]["type"] = "sentence_transformers.base.modules.transformer.Transformer"
    listed[1]["type"] = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    folder = write(
        tmp_path,
        {
            "modules.json": listed,
            "sentence_bert_config.json": {
                "transformer_task": "feature-extraction",
                "processing_kwargs": {"text": {"max_length": 9}},
            },
            "1_Pooling/config.json": {"embedding_dimension": 8, "pooling_mode": ["mean", "cls"]},
        },
    )
    found = read_folder(folder)
    assert found.max_tokens == 9
    assert pooling_modes(found.modules[0].config) == ("mean", "cls")


def test_plain_folder_is_mean_pooling(tmp_path: Path) -> None:
    assert read_folder(tmp_path) == plain_folder()
    assert not read_folder(tmp_path).written


def test_written_side_files_read_back(tmp_path: Path) -> None:
    for name, content in side_file_texts(plain_folder(), 8).items():
        write(tmp_path, {name: content.decode()})
    found = read_folder(tmp_path)
    assert found.written
    assert [(module.kind, module.path) for module in found.modules] == [("Pooling", "1_Pooling")]
    assert pooling_modes(found.modules[0].config) == ("mean",)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules.json": modules("WordEmbeddings", "Pooling")}, "first module is .*WordEmbeddings"),
        ({"modules.json": modules("Transformer", "Pooling", "Router")}, "module 2 is .*Router; known kinds"),
        ({"modules.json": modules("Transformer")}, "has to be Pooling"),
        ({"modules.json": modules("Transformer", "Dense", "Pooling")}, "has to be Pooling"),
        ({"modules.json": {"a": 1}}, "expected a list of objects"),
        ({"modules.json": "[{"}, "modules.json: not valid JSON"),
        (
            {"modules.json": [{**modules("Transformer")[0], "path": "../other"}, modules("Transformer", "Pooling")[1]]},
            "leaves the folder",
        ),
        (
            {"modules.json": modules("Transformer", "Pooling"), "1_Pooling/config.json": {"pooling_mode": "median"}},
            "pooling mode 'median' is unknown; known: cls",
        ),
        (
            {
                "modules.json": modules("Transformer", "Pooling", "Dense"),
                "2_Dense/config.json": {"module_input_name": "token_embeddings"},
            },
            "module_input_name is 'token_embeddings'",
        ),
        (
            {
                "modules.json": modules("Transformer", "Pooling"),
                "sentence_bert_config.json": {"transformer_task": "fill-mask"},
            },
            "transformer_task is 'fill-mask'",
        ),
    ],
)
def test_what_is_no_dense_encoder_is_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_folder(write(tmp_path, files))
