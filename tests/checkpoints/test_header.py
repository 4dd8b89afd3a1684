from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience.checkpoints.header import MAX_HEADER_BYTES, read_header
from consilience.errors import CheckpointError
from tests.checkpoints.build import raw_file


def entry(dtype: str, shape: list[int], first: int, last: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_reads_names_types_shapes_and_positions(tmp_path: Path) -> None:
    head = {"__metadata__": {"format": "pt"}, "b": entry("BF16", [2, 1], 4, 8), "a": entry("F32", [], 0, 4)}
    header = read_header(raw_file(tmp_path / "x.safetensors", head, bytes(8)))
    start = 8 + len(json.dumps(head))
    assert {n: (t.dtype, t.shape, t.offset) for n, t in header.tensors.items()} == {
        "a": ("F32", (), start),
        "b": ("BF16", (2, 1), start + 4),
    }
    assert list(header.tensors) == ["a", "b"], "in the order of their bytes"
    assert header.metadata == {"format": "pt"}
    assert (header.size, header.data_start) == (start + 8, start)


def test_the_header_hash_tells_headers_apart(tmp_path: Path) -> None:
    first = read_header(raw_file(tmp_path / "a.safetensors", {"w": entry("F32", [1], 0, 4)}, bytes(4)))
    same = read_header(raw_file(tmp_path / "b.safetensors", {"w": entry("F32", [1], 0, 4)}, b"1234"))
    other = read_header(raw_file(tmp_path / "c.safetensors", {"v": entry("F32", [1], 0, 4)}, bytes(4)))
    assert first.header_hash == same.header_hash != other.header_hash


def test_truncated_header(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 500) + b'{"w":')
    assert "truncated: its header claims 500 bytes, the whole file has 13; fetch or copy it again" in refusal(path)
    path.write_bytes(b"\x01\x02")
    assert "2 bytes, too short for a safetensors file" in refusal(path)


def test_oversize_header(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1) + bytes(10))
    assert "its header claims 100000001 bytes, the format allows 100000000" in refusal(path)


def test_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert "a Git LFS pointer" in refusal(path)
    assert "git lfs pull" in refusal(path)


@pytest.mark.parametrize("head", [b"{not json}", b"[]", b'{"w":1', b"\xff{}", b"", b'{"\\ud800":1}'])
def test_header_that_is_not_json(tmp_path: Path, head: bytes) -> None:
    assert "its header is not valid JSON" in refusal(raw_file(tmp_path / "x.safetensors", head, b""))


def test_truncated_data(tmp_path: Path) -> None:
    message = refusal(raw_file(tmp_path / "x.safetensors", {"w": entry("F32", [4], 0, 16)}, bytes(10)))
    assert "tensor 'w': its bytes [0, 16] run past the end of the data (10 bytes): the file is truncated" in message


def test_overlapping_offsets(tmp_path: Path) -> None:
    head = {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}
    message = refusal(raw_file(tmp_path / "x.safetensors", head, bytes(12)))
    assert "tensor 'b': its bytes [4, 12] overlap those of 'a'" in message


def test_gaps(tmp_path: Path) -> None:
    head = {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}
    assert "4 bytes before it belong to no tensor" in refusal(raw_file(tmp_path / "x.safetensors", head, bytes(12)))
    head = {"a": entry("F32", [1], 0, 4)}
    assert "3 bytes after the last tensor" in refusal(raw_file(tmp_path / "y.safetensors", head, bytes(7)))


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    head = {
        "type": entry("F4", [2], 0, 1),
        "size": entry("F32", [3], 1, 9),
        "shape": entry("F32", [-1], 9, 13),
        "order": entry("F32", [1], 9, 5),
        "keys": {"dtype": "F32"},
        "__metadata__": {"n": 1},
    }
    message = refusal(raw_file(tmp_path / "x.safetensors", head, bytes(9)))
    assert "problems in its header" in message
    assert "tensor 'type': number type 'F4' is not supported; known: F64" in message
    assert "tensor 'size': F32 [3] needs 12 bytes, its data_offsets [1, 9] hold 8" in message
    assert "tensor 'shape': shape [-1] is not a list of sizes" in message
    assert "tensor 'order': data_offsets [9, 5] are not a start and an end" in message
    assert "tensor 'keys': expected dtype, shape and data_offsets" in message
    assert "__metadata__ is not an object of texts" in message


def test_a_name_listed_twice(tmp_path: Path) -> None:
    one = json.dumps(entry("F32", [1], 0, 4))
    path = raw_file(tmp_path / "x.safetensors", f'{{"w":{one},"w":{one}}}'.encode(), bytes(4))
    assert "tensor 'w' is listed twice" in refusal(path)


def test_a_missing_file_is_an_error_of_ours(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "nothing.safetensors")


def test_empty_tensors_and_files(tmp_path: Path) -> None:
    head = {"none": entry("F32", [0, 3], 0, 0), "one": entry("F32", [1], 0, 4), "last": entry("U8", [0], 4, 4)}
    header = read_header(raw_file(tmp_path / "x.safetensors", head, bytes(4)))
    assert {name: tensor.numel for name, tensor in header.tensors.items()} == {"none": 0, "one": 1, "last": 0}
    assert read_header(raw_file(tmp_path / "y.safetensors", {}, b"")).tensors == {}


GOOD = json.dumps({"a": entry("F32", [2, 1], 0, 8), "b": entry("BF16", [3], 8, 14)}).encode()
VALUES = st.one_of(
    st.integers(-2, 20), st.sampled_from([None, "F32", "BF16", 2**63, 1.5]), st.lists(st.integers(-1, 9))
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_is_refused_or_read_as_the_library_reads_it(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever the bytes, the answer is a CheckpointError or what the safetensors library reads."""
    if data.draw(st.booleans(), label="structured"):
        head = json.loads(GOOD)
        for _ in range(data.draw(st.integers(0, 2))):
            target = head[data.draw(st.sampled_from(["a", "b"]))]
            target[data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = data.draw(VALUES)
        content = json.dumps(head).encode()
        content = struct.pack("<Q", len(content)) + content + bytes(data.draw(st.sampled_from([0, 13, 14, 15])))
    else:
        content = bytearray(struct.pack("<Q", len(GOOD)) + GOOD + bytes(14))
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        content = bytes(content[: data.draw(st.integers(0, len(content)))])
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(content)
    try:
        header = read_header(path)
    except CheckpointError:
        return
    theirs = dict(safetensors.deserialize(content))
    assert {name: list(t.shape) for name, t in header.tensors.items()} == {n: t["shape"] for n, t in theirs.items()}
    assert {name: t.dtype for name, t in header.tensors.items()} == {n: t["dtype"] for n, t in theirs.items()}
