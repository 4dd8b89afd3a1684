from __future__ import annotations

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from consilience.checkpoints import files
from consilience.checkpoints.dtypes import DTYPES, torch_name
from consilience.checkpoints.header import read_header
from consilience.checkpoints.sources import LowRank, Source, Stored
from consilience.errors import StorageError
from tests.checkpoints.build import numbers, values, weights


def stored(path: Path, array: NDArray[Any]) -> Stored:
    return read_header(weights(path, {"w": array})).tensors["w"]


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_type_reads_exactly(tmp_path: Path, dtype: str) -> None:
    raw = np.random.default_rng(1).integers(0, 256, 24 * 8, np.uint8)
    if dtype == "BOOL":
        raw &= 1
    path = tmp_path / "numbers"
    path.write_bytes(b"12345" + raw.tobytes())
    count = raw.size // DTYPES[dtype].itemsize
    tensor = Stored(path, 5, dtype, (count,))
    expected = torch.from_numpy(raw).view(getattr(torch, torch_name(dtype))).to(torch.float64).numpy()
    out = np.empty(count - 3, np.float64)
    tensor.read(2, count - 1, out)
    np.testing.assert_array_equal(out, expected[2 : count - 1])
    assert (
        tensor.read_raw(2, count - 1).tobytes()
        == raw.tobytes()[2 * DTYPES[dtype].itemsize :][: out.size * DTYPES[dtype].itemsize]
    )
    if dtype not in ("F64", "I64", "I32", "U64", "U32"):
        single = np.empty(count, np.float32)
        tensor.read(0, count, single)
        np.testing.assert_array_equal(single.astype(np.float64), expected)


def test_reads_longer_than_one_block(tmp_path: Path) -> None:
    array = numbers(700, 800)
    tensor = stored(tmp_path / "x.safetensors", array)
    np.testing.assert_array_equal(values(tensor), array)


def test_empty_and_scalar_tensors(tmp_path: Path) -> None:
    assert values(stored(tmp_path / "a.safetensors", numbers(0, 3))).shape == (0, 3)
    assert values(stored(tmp_path / "b.safetensors", np.float32(7))) == 7


@pytest.mark.parametrize(("start", "stop", "size"), [(-1, 2, 3), (0, 5, 5), (3, 2, 0), (0, 2, 3)])
def test_wrong_ranges_are_refused(tmp_path: Path, start: int, stop: int, size: int) -> None:
    tensor = stored(tmp_path / "x.safetensors", numbers(4))
    with pytest.raises(ValueError, match="the range must lie within the tensor"):
        tensor.read(start, stop, np.empty(size, np.float32))


def test_a_file_that_shrinks_or_vanishes_is_named(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "x.safetensors", numbers(100))
    os.truncate(tensor.path, tensor.offset + 40)
    with pytest.raises(StorageError, match=r"x\.safetensors: ends 360 bytes early .* it changed after it was opened"):
        values(tensor)
    tensor.path.unlink()
    with pytest.raises(StorageError, match=r"x\.safetensors: No such file"):
        values(tensor)


def test_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "x.safetensors", np.zeros(4))
    assert values(tensor).tolist() == [0] * 4
    weights(tmp_path / "y.safetensors", {"w": np.ones(4)}).replace(tensor.path)
    assert values(tensor).tolist() == [1] * 4


def test_descriptors_are_bounded_and_shared_by_threads(tmp_path: Path) -> None:
    tensors = [stored(tmp_path / f"{number}.safetensors", np.full(8, number)) for number in range(100)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda tensor: values(tensor)[0], tensors * 3))
    assert found == list(range(100)) * 3
    ours = [link for link in Path("/proc/self/fd").iterdir() if _target(link).startswith(str(tmp_path))]
    assert 0 < len(ours) <= files.MAX_DESCRIPTORS


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def test_a_descriptor_in_use_stays_open(tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.write_bytes(b"held")
    with files.descriptor(held) as number:
        for index in range(files.MAX_DESCRIPTORS + 5):
            path = tmp_path / str(index)
            path.write_bytes(b"x")
            with files.descriptor(path):
                pass
        assert os.pread(number, 4, 0) == b"held"


def test_reading_works_in_a_forked_child_while_a_thread_reads(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "x.safetensors", numbers(1000))
    expected = values(tensor)
    stop = threading.Event()

    def keep_reading() -> None:
        while not stop.is_set():
            values(tensor)

    thread = threading.Thread(target=keep_reading)
    thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if not child:
                os._exit(0 if np.array_equal(values(tensor), expected) else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


def low_rank(tmp_path: Path, rows: int, columns: int, rank: int, transposed: bool = False) -> LowRank:
    shape = (columns, rows) if transposed else (rows, columns)
    tensors = {"w": numbers(*shape), "a": numbers(rank, columns, seed=1), "b": numbers(rows, rank, seed=2)}
    found = read_header(weights(tmp_path / "low.safetensors", tensors)).tensors
    return LowRank(found["w"], found["a"], found["b"], 0.37, transposed)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_low_rank_sums_element_by_element_over_the_rank(tmp_path: Path, transposed: bool, dtype: Any) -> None:
    source = low_rank(tmp_path, 5, 7, 3, transposed)
    parts = [s.read_raw(0, s.numel).reshape(s.shape).astype(dtype) for s in source.inputs()]
    weight, a, b = parts
    expected = np.empty((5, 7), dtype)
    for i in range(5):
        for j in range(7):
            total = dtype(0)
            for k in range(3):
                total = dtype(total + dtype(b[i, k] * a[k, j]))
            before = weight[j, i] if transposed else weight[i, j]
            expected[i, j] = dtype(before + dtype(dtype(0.37) * total))
    out = np.empty(35, dtype)
    source.read(0, 35, out)
    assert out.tobytes() == np.ascontiguousarray(expected.T if transposed else expected).tobytes()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), rank=st.integers(1, 4), flip=st.booleans(), data=st.data())
def test_low_rank_gives_the_same_bits_for_any_cut(
    tmp_path: Path, rows: int, columns: int, rank: int, flip: bool, data: st.DataObject
) -> None:
    source = low_rank(tmp_path, rows, columns, rank, flip)
    whole = np.empty(source.numel, np.float32)
    source.read(0, source.numel, whole)
    cuts = sorted({0, source.numel, *data.draw(st.lists(st.integers(0, source.numel), max_size=5))})
    pieces = []
    for start, stop in pairwise(cuts):
        piece = np.empty(stop - start, np.float32)
        source.read(start, stop, piece)
        pieces.append(piece)
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_low_rank_across_product_blocks(tmp_path: Path) -> None:
    source = low_rank(tmp_path, 300, 257, 4)
    weight, a, b = (values(s) for s in source.inputs())
    whole = values(source)
    np.testing.assert_allclose(whole, weight + 0.37 * (b @ a), rtol=0, atol=1e-12)
    piece = np.empty(40_000, np.float64)
    source.read(30_001, 70_001, piece)
    assert piece.tobytes() == whole.reshape(-1)[30_001:70_001].tobytes()


def test_low_rank_of_a_convolution(tmp_path: Path) -> None:
    tensors = {"w": numbers(4, 3, 2, 2), "a": numbers(2, 3, 2, 2, seed=1), "b": numbers(4, 2, 1, 1, seed=2)}
    found = read_header(weights(tmp_path / "x.safetensors", tensors)).tensors
    source = LowRank(found["w"], found["a"], found["b"], 2.0)
    change = np.einsum("or,rikl->oikl", tensors["b"][:, :, 0, 0].astype(np.float64), tensors["a"])
    np.testing.assert_allclose(values(source), tensors["w"] + 2 * change, atol=1e-12)


def test_low_rank_rounds_once_to_the_type_of_its_base(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).integers(0x3F00, 0x4000, 20).astype("<u2")
    tensors: dict[str, Any] = {"w": ("BF16", (4, 5), bits.tobytes())}
    tensors |= {"a": numbers(2, 5), "b": numbers(4, 2, seed=1)}
    found = read_header(weights(tmp_path / "x.safetensors", tensors)).tensors
    source = LowRank(found["w"], found["a"], found["b"], 1.0)
    exact = np.empty(20, np.float32)
    source.read(0, 20, exact)
    expected = torch.from_numpy(exact).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(source.read_raw(0, 20), expected)
    assert (source.dtype, source.shape, source.nbytes) == ("BF16", (4, 5), 40)


def test_low_rank_notices_a_rewritten_adapter(tmp_path: Path) -> None:
    source = low_rank(tmp_path, 3, 3, 1)
    before = values(source)
    tensors = {"w": numbers(3, 3), "a": numbers(1, 3, seed=5), "b": numbers(3, 1, seed=6)}
    weights(tmp_path / "new.safetensors", tensors).replace(tmp_path / "low.safetensors")
    after = values(source)
    assert not np.array_equal(before, after)
    np.testing.assert_allclose(after, tensors["w"] + 0.37 * (tensors["b"].astype(float) @ tensors["a"]), atol=1e-12)


def test_sources_are_plain_comparable_data(tmp_path: Path) -> None:
    source: Source = low_rank(tmp_path, 3, 4, 2)
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    assert hash(again) == hash(source)
    assert values(again).tobytes() == values(source).tobytes()
