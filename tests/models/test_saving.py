from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from consilience.checkpoints import open_checkpoint
from consilience.errors import NonFiniteError, OutputError, RequestError
from consilience.models import load_encoder
from tests.models.test_encoder import theirs
from tests.models.tiny import TEXTS, write_bert, write_sentence_transformer


def test_saved_folder_opens_everywhere_with_the_same_vectors(tmp_path: Path) -> None:
    write_sentence_transformer(tmp_path / "model", dense=(8, "Tanh"), normalize=True, prompts={"query": "w1 "})
    encoder = load_encoder(tmp_path / "model", device="cpu")
    with torch.no_grad():
        for parameter in encoder.parameters().values():
            parameter.mul_(1.5)
    wanted = encoder.encode(TEXTS)
    copy = encoder.save(tmp_path / "copy")
    assert np.array_equal(load_encoder(copy, device="cpu").encode(TEXTS), wanted)
    np.testing.assert_allclose(theirs(copy).encode(TEXTS), wanted, atol=1e-5)
    before, after = open_checkpoint(tmp_path / "model"), open_checkpoint(copy)
    assert {name: (t.dtype, t.shape) for name, t in before.tensors.items()} == {
        name: (t.dtype, t.shape) for name, t in after.tensors.items()
    }
    pooler = "pooler.dense.weight"  # takes no part in the vectors, but belongs to the model
    assert torch.equal(
        load_file(tmp_path / "model/model.safetensors")[pooler], load_file(copy / "model.safetensors")[pooler]
    )
    assert load_encoder(copy, device="cpu").prompts["query"] == "w1 "


def test_plain_folder_becomes_a_sentence_transformers_folder(tmp_path: Path) -> None:
    write_bert(tmp_path / "plain")
    encoder = load_encoder(tmp_path / "plain", device="cpu")
    copy = encoder.save(tmp_path / "copy", dtype="bfloat16")
    assert json.loads((copy / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_file(copy / "model.safetensors")["encoder.layer.0.output.dense.bias"].dtype == torch.bfloat16
    model: Any = theirs(copy, model_kwargs={"dtype": torch.float32})
    np.testing.assert_allclose(model.encode(TEXTS), load_encoder(copy, device="cpu").encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(model.encode(TEXTS), encoder.encode(TEXTS), atol=0.2)


def test_bad_outputs_are_refused(tmp_path: Path) -> None:
    write_bert(tmp_path / "plain")
    encoder = load_encoder(tmp_path / "plain", device="cpu")
    with pytest.raises(OutputError, match="not an empty folder"):
        encoder.save(tmp_path / "plain")
    with pytest.raises(RequestError, match="'int8' is no floating-point type"):
        encoder.save(tmp_path / "copy", dtype="int8")
    with torch.no_grad():
        encoder.parameters()["encoder.layer.0.output.dense.bias"][3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"encoder\.layer\.0\.output\.dense\.bias"):
        encoder.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
