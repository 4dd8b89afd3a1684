"""Encoders opened by several threads at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

from consilience.models import load_encoder
from consilience.models.sparse import load_sparse
from tests.models.tiny import TEXTS, write_sentence_transformer, write_tokenizer


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


def test_models_with_heads_are_opened_beside_encoders(tmp_path: Path) -> None:
    write_sentence_transformer(tmp_path / "model")
    tokenizer = write_tokenizer(tmp_path / "masked")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "masked")
    before = {name: getattr(torch.nn.init, name) for name in ("normal_", "uniform_", "kaiming_uniform_", "zeros_")}
    expected = load_sparse(tmp_path / "masked", device="cpu").encode(TEXTS).toarray()
    start = threading.Barrier(6)

    def opened(place: int) -> bool:
        start.wait()
        if place % 2:
            return bool(len(load_encoder(tmp_path / "model", device="cpu").encode(TEXTS)))
        return np.array_equal(load_sparse(tmp_path / "masked", device="cpu").encode(TEXTS).toarray(), expected)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(opened, range(6)))
    assert {name: getattr(torch.nn.init, name) for name in before} == before
