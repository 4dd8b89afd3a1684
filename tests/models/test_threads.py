"""Encoders opened by several threads at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from consilience.models import load_encoder
from tests.models.tiny import TEXTS, write_sentence_transformer


def test_threads_open_encoders_and_leave_torch_as_it_was(tmp_path: Path) -> None:
    write_sentence_transformer(tmp_path / "model")
    before = {name: getattr(torch.nn.init, name) for name in ("normal_", "uniform_", "kaiming_uniform_", "zeros_")}
    expected = load_encoder(tmp_path / "model", device="cpu").encode(TEXTS)
    start = threading.Barrier(6)

    def opened(_: int) -> np.ndarray:
        start.wait()
        return load_encoder(tmp_path / "model", device="cpu").encode(TEXTS)

    with ThreadPoolExecutor(6) as pool:
        assert all(np.array_equal(found, expected) for found in pool.map(opened, range(6)))
    assert {name: getattr(torch.nn.init, name) for name in before} == before
