from __future__ import annotations

import json
import os
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from consilience.checkpoints import CheckpointWriter, OutputTensor, open_checkpoint, plan_shards
from consilience.checkpoints.dtypes import DTYPES, torch_name
from consilience.checkpoints.files import write_from
from consilience.core.hashing import xxh3_hex
from consilience.errors import StorageError, VerificationError
from tests.checkpoints.build import numbers, values


def write(folder: Path, contents: dict[str, tuple[str, tuple[int, ...], bytes]], **options: Any) -> CheckpointWriter:
    """Write tensors with the writer and finish."""
    planned = [OutputTensor(name, dtype, shape) for name, (dtype, shape, _) in contents.items()]
    writer = CheckpointWriter(folder, plan_shards(planned, **options))
    writer.create()
    for name, (_, _, data) in contents.items():
        writer.write(name, 0, data)
    writer.finish()
    return writer


def f32(*shape: int, seed: int = 0) -> tuple[str, tuple[int, ...], bytes]:
    return "F32", shape, numbers(*shape, seed=seed).tobytes()


def test_the_bytes_of_a_file_are_as_the_format_says(tmp_path: Path) -> None:
    write(tmp_path, {"b": ("BF16", (2,), b"\x80\x3f\x00\x40"), "a": ("F32", (1,), b"\x00\x00\x80\x3f")})
    head = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]}}'
    )
    head += b" " * (-len(head) % 8)
    expected = struct.pack("<Q", len(head)) + head + b"\x00\x00\x80\x3f" + b"\x80\x3f\x00\x40"
    assert (tmp_path / "model.safetensors").read_bytes() == expected
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors"]  # noqa: PTH208


def test_the_safetensors_library_reads_every_number_type(tmp_path: Path) -> None:
    contents, expected = {}, {}
    for dtype, kind in DTYPES.items():
        raw = np.random.default_rng(3).integers(0, 2 if dtype == "BOOL" else 100, 3 * kind.itemsize, np.uint8)
        contents[f"x.{dtype}"] = (dtype, (3, 1), raw.tobytes())
        expected[f"x.{dtype}"] = torch.from_numpy(raw).view(getattr(torch, torch_name(dtype))).reshape(3, 1)
    contents["scalar"] = ("F32", (), np.float32(7).tobytes())
    contents["none"] = ("BF16", (0, 4), b"")
    expected |= {"scalar": torch.tensor(7.0), "none": torch.empty(0, 4, dtype=torch.bfloat16)}
    write(tmp_path, contents, metadata={"recipe": "é"}).verify()
    found = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "recipe": "é"}


def test_every_tensor_is_aligned(tmp_path: Path) -> None:
    shards = plan_shards([OutputTensor(f"{i}{d}", d, (3,)) for i in range(3) for d in ("U8", "F32", "BF16", "I64")])
    (shard,) = shards
    assert len(shard.header) % 8 == 0
    assert all(p.offset % DTYPES[p.tensor.dtype].itemsize == 0 for p in shard.tensors)


def test_shards_and_index(tmp_path: Path) -> None:
    contents = {f"w{number}": f32(5, seed=number) for number in range(5)} | {"big": f32(40, seed=9)}
    writer = write(tmp_path, contents, max_shard_bytes=50)
    files = [f"model-{number:05d}-of-00004.safetensors" for number in (1, 2, 3, 4)]
    assert [shard.file for shard in writer.shards] == files
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * (5 * 5 + 40), "bytes"
    assert index["weight_map"] == {
        "big": files[3], "w0": files[0], "w1": files[0], "w2": files[1], "w3": files[1], "w4": files[2]
    }  # fmt: skip
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    writer.verify()
    opened = open_checkpoint(tmp_path)
    assert {name: values(source).astype("<f4").tobytes() for name, source in opened.tensors.items()} == {
        name: data for name, (_, _, data) in contents.items()
    }


def test_components_go_to_their_folders(tmp_path: Path) -> None:
    contents = {"w": f32(2), "2_Dense/linear.weight": f32(3, 2), "unet/a": f32(4), "unet/b": f32(5)}
    names = {"unet": "diffusion_pytorch_model.safetensors"}
    writer = write(tmp_path, contents, max_shard_bytes=24, file_names=names)
    writer.verify()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        "2_Dense/model.safetensors",
        "model.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "unet/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {"a", "b"}
    (tmp_path / "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]')
    assert list(open_checkpoint(tmp_path).tensors) == ["w", "2_Dense/linear.weight"]


def test_an_adapter_file_name(tmp_path: Path) -> None:
    write(tmp_path, {"x.lora_A.weight": f32(2, 2)}, file_names="adapter_model.safetensors")
    assert list(safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")) == ["x.lora_A.weight"]


def test_a_name_planned_twice() -> None:
    with pytest.raises(ValueError, match="tensor 'w' is planned twice"):
        plan_shards([OutputTensor("w", "F32", (1,))] * 2)


def test_pieces_from_many_threads_in_any_order(tmp_path: Path) -> None:
    arrays = {f"w{number}": numbers(1000, seed=number) for number in range(4)}
    writer = CheckpointWriter(
        tmp_path, plan_shards([OutputTensor(n, "F32", a.shape) for n, a in arrays.items()], max_shard_bytes=8000)
    )
    writer.create()
    pieces = [(name, start) for name in arrays for start in range(0, 1000, 7)]
    np.random.default_rng(0).shuffle(pieces)

    def put(piece: Any) -> None:
        name, start = str(piece[0]), int(piece[1])
        writer.write(name, start * 4, arrays[name][start : start + 7])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, pieces))
    writer.sync("w2")
    writer.finish()
    writer.verify({name: xxh3_hex(array) for name, array in arrays.items()})


def test_writes_outside_the_tensor_are_refused(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, plan_shards([OutputTensor("w", "F32", (2,))]))
    writer.create()
    writer.write("w", 8, b"")
    for start, data in ((4, bytes(5)), (-1, bytes(2))):
        with pytest.raises(ValueError, match="tensor 'w' has 8 bytes; cannot write"):
            writer.write("w", start, data)


def test_creating_again_keeps_what_was_written(tmp_path: Path) -> None:
    planned = [OutputTensor("a", "F32", (2,)), OutputTensor("b", "F32", (2,))]
    shards = plan_shards(planned, max_shard_bytes=8)
    CheckpointWriter(tmp_path, shards).create()
    CheckpointWriter(tmp_path, shards).write("a", 0, b"abcdefgh")
    damaged = tmp_path / shards[1].file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    writer = CheckpointWriter(tmp_path, shards)
    writer.create()
    writer.write("b", 0, b"12345678")
    writer.finish()
    writer.verify({"a": xxh3_hex(b"abcdefgh"), "b": xxh3_hex(b"12345678")})
    other = CheckpointWriter(tmp_path, plan_shards([OutputTensor("z", "F32", (2,)), planned[1]], max_shard_bytes=8))
    other.create()
    assert (tmp_path / shards[0].file).read_bytes().endswith(bytes(8)), "another plan starts afresh"


def test_space_is_reserved_when_created(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, plan_shards([OutputTensor("w", "F32", (1 << 18,))]))
    writer.create()
    status = (tmp_path / "model.safetensors").stat()
    assert status.st_size == writer.shards[0].size
    assert status.st_blocks * 512 >= 1 << 20


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_disk_that_is_too_small_is_said_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CheckpointWriter(tmp_path / "out", plan_shards([OutputTensor("w", "F32", (1000,))]))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(4000, 3900, 100))
    with pytest.raises(
        StorageError, match=rf"the disk is full: {writer.shards[0].size} bytes are needed and 100 are free"
    ):
        writer.create()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux device that is always full")
def test_a_disk_that_fills_up_while_writing() -> None:
    with pytest.raises(StorageError, match="/dev/full: the disk is full; finished work is kept"):
        write_from(Path("/dev/full"), 0, memoryview(b"data"))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file"):
        CheckpointWriter(tmp_path / "file", plan_shards([OutputTensor("w", "F32", (1,))])).create()


def test_verify_names_what_differs(tmp_path: Path) -> None:
    contents = {"a": f32(4), "b": f32(4, seed=1)}
    writer = write(tmp_path, contents, max_shard_bytes=16)
    checksums = {name: xxh3_hex(data) for name, (_, _, data) in contents.items()}
    writer.verify(checksums)
    path = tmp_path / writer.shards[1].file
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    writer.verify()
    with pytest.raises(VerificationError, match=r"model-00002-of-00002.safetensors: tensor 'b' reads back as"):
        writer.verify(checksums)
    path.write_bytes(content[:-4])
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("00001-of", "00009-of"))
    with pytest.raises(VerificationError) as caught:
        writer.verify({"c": "0"})
    assert "not as written: 3 problems" in str(caught.value)
    assert "run past the end of the data" in str(caught.value)
    assert "its weight_map differs from the plan" in str(caught.value)
    assert "tensor 'c' has a checksum but is in no file" in str(caught.value)


def test_verify_notices_another_layout(tmp_path: Path) -> None:
    write(tmp_path, {"a": f32(4), "x": f32(1)})
    planned = CheckpointWriter(
        tmp_path, plan_shards([OutputTensor("a", "F32", (2, 2)), OutputTensor("y", "F32", (1,))])
    )
    with pytest.raises(VerificationError) as caught:
        planned.verify()
    assert "tensor 'a' is (" in str(caught.value)
    assert "tensor 'y' is None, planned" in str(caught.value)
    assert "tensor 'x' was not planned" in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_transformers_opens_a_sharded_result_without_missing_keys(tmp_path: Path) -> None:
    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=30
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "in")
    opened = open_checkpoint(tmp_path / "in")
    planned = [OutputTensor(name, source.dtype, source.shape) for name, source in opened.tensors.items()]
    writer = CheckpointWriter(tmp_path / "out", plan_shards(planned, max_shard_bytes=3000))
    writer.create()
    for name, source in opened.tensors.items():
        writer.write(name, 0, source.read_raw(0, source.numel))
    writer.finish()
    writer.verify()
    assert len(writer.shards) > 2
    shutil.copy(tmp_path / "in/config.json", tmp_path / "out/config.json")
    again, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
