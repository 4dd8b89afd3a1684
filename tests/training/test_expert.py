from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from consilience.core.jobs import Budget
from consilience.data import RetrievalData
from consilience.errors import BudgetError, DataError, OutputError, RequestError, WorkError
from consilience.models import load_encoder
from consilience.training import train_encoder
from consilience.training.fitting import learning_rate_at
from tests.models.tiny import TEXTS, write_bert
from tests.training.toy import toy_data

ADAPTER = "adapter_model.safetensors"
SHORT: dict[str, Any] = {
    "rank": 4,
    "alpha": 8.0,
    "steps": 6,
    "batch": 8,
    "learning_rate": 5e-3,
    "max_tokens": 8,
    "seed": 1,
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    write_bert(folder)
    return folder


def test_training_lowers_the_loss_and_raises_the_dev_metric(tmp_path: Path, base: Path) -> None:
    out = tmp_path / "expert"
    options = {**SHORT, "steps": 40, "batch": 16, "rank": 8, "alpha": 16.0}
    record = train_encoder(base, toy_data(), out, checkpoints=[40, 20], licence="CC0", **options)
    assert record["loss"]["last_20"] < record["loss"]["first_5"] - 0.5
    assert record["dev"]["expert"] > record["dev"]["base"] + 5
    assert len(record["loss"]["every_step"]) == 40
    assert record == json.loads((out / "expert.json").read_text())
    assert record["data"]["queries"] == 120 and record["data"]["licence"] == "CC0"
    assert record["settings"]["learning_rate"] == 5e-3 and record["seconds"] > 0
    assert not (tmp_path / "expert.partial").exists()
    # the checkpoints are adapters, measured as written; the last one is the expert
    assert list(record["dev"]["checkpoints"]) == ["step-20", "step-40"]
    assert record["dev"]["checkpoints"]["step-40"] == record["dev"]["expert"]
    assert (out / "checkpoints/step-40" / ADAPTER).read_bytes() == (out / ADAPTER).read_bytes()
    assert (out / "checkpoints/step-20" / ADAPTER).read_bytes() != (out / ADAPTER).read_bytes()


def test_peft_and_base_plus_adapter_give_the_same_vectors(tmp_path: Path, base: Path) -> None:
    from peft import PeftModel
    from sentence_transformers import SentenceTransformer

    out = tmp_path / "expert"
    train_encoder(base, toy_data(), out, **SHORT)
    assert {tensor.dtype for tensor in load_file(out / ADAPTER).values()} == {torch.bfloat16}
    model = SentenceTransformer(str(base), device="cpu")
    before = model.encode(TEXTS)
    model[0].model = PeftModel.from_pretrained(model[0].model, str(out)).merge_and_unload()
    ours = load_encoder(f"{base}+{out}", device="cpu").encode(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), ours, atol=1e-5)
    assert np.abs(ours - before).max() > 1e-3


def test_the_seed_decides_every_byte(tmp_path: Path, base: Path) -> None:
    written = []
    for number, seed in enumerate((1, 1, 2)):
        train_encoder(base, toy_data(), tmp_path / str(number), **{**SHORT, "seed": seed})
        written.append((tmp_path / str(number) / ADAPTER).read_bytes())
    assert written[0] == written[1]
    assert written[0] != written[2]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_stopped_after_every_step_gives_the_undisturbed_result(tmp_path: Path, base: Path, method: str) -> None:
    options = {**SHORT, "method": method, "dropout": True, "checkpoints": [3], "dtype": "float32"}
    whole = train_encoder(base, toy_data(), tmp_path / "whole", **options)
    stops = 0
    while not (tmp_path / "stopped").exists():
        try:
            train_encoder(
                base, toy_data(), tmp_path / "stopped", state_every=1, budget=Budget(wall_seconds=0.0), **options
            )
        except BudgetError:
            stops += 1
            if stops > 20:
                raise
    assert stops == SHORT["steps"]
    name = ADAPTER if method == "lora" else "model.safetensors"
    for place in (name, f"checkpoints/step-3/{name}"):
        assert (tmp_path / "stopped" / place).read_bytes() == (tmp_path / "whole" / place).read_bytes()
    record = json.loads((tmp_path / "stopped/expert.json").read_text())
    assert record["loss"] == whole["loss"] and record["dev"] == whole["dev"]


def test_full_training_writes_a_sentence_transformers_folder(tmp_path: Path, base: Path) -> None:
    from sentence_transformers import SentenceTransformer

    record = train_encoder(base, toy_data(), tmp_path / "full", method="full", **{**SHORT, "steps": 12})
    assert record["method"] == "full" and record["loss"]["last_20"] < record["loss"]["first_5"]
    ours = load_encoder(tmp_path / "full", device="cpu").encode(TEXTS)
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path / "full"), device="cpu").encode(TEXTS), ours, atol=1e-5)
    assert np.abs(ours - load_encoder(base, device="cpu").encode(TEXTS)).max() > 1e-3


def test_the_same_call_after_the_end_returns_the_record(tmp_path: Path, base: Path) -> None:
    first = train_encoder(base, toy_data(), tmp_path / "expert", **SHORT)
    before = (tmp_path / "expert" / ADAPTER).stat().st_mtime_ns
    assert train_encoder(base, toy_data(), tmp_path / "expert", **SHORT) == first
    assert (tmp_path / "expert" / ADAPTER).stat().st_mtime_ns == before


def test_another_request_does_not_take_over_unfinished_work(tmp_path: Path, base: Path) -> None:
    with pytest.raises(BudgetError, match="run the same command again"):
        train_encoder(base, toy_data(), tmp_path / "expert", budget=Budget(wall_seconds=0.0), **SHORT)
    with pytest.raises(OutputError, match="left by another request"):
        train_encoder(base, toy_data(), tmp_path / "expert", **{**SHORT, "seed": 9})


def test_leaked_queries_are_dropped_and_counted(tmp_path: Path, base: Path) -> None:
    tables = toy_data(counts={"train": 30, "test": 3})
    queries = dict(zip(tables.queries("train").ids, tables.queries("train").texts, strict=True))
    listed = {name: (text, "train") for name, text in queries.items()}
    listed["leak"] = (f"{queries['train0'].upper()}.", "test")
    documents = dict(zip(tables.documents.ids, tables.documents.texts, strict=True))
    judgements = [(name, f"d-{name}", 1.0) for name in queries] + [("leak", "d-train0", 1.0)]
    data = RetrievalData.of("leaky", documents=documents, queries=listed, judgements=judgements)
    record = train_encoder(base, data, tmp_path / "expert", **SHORT)
    assert record["data"]["dropped"]["same as a dev or test query"] == 1
    assert record["data"]["queries"] == 29
    assert record["dev"]["base"] is None and record["dev"]["expert"] is None  # no dev split: nothing is measured


def test_wrong_settings_are_reported_together_before_any_work(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {"method": "lorra", "rank": 0, "learning_rate": -1.0, "checkpoints": [9], "dtype": "int8"}
    with pytest.raises(RequestError) as caught:
        train_encoder("nowhere", tmp_path, tmp_path / "out", **{**SHORT, **wrong})
    for part in ("did you mean 'lora'", "rank is 0", "learning_rate is -1", "checkpoint 9 is outside", "'int8'"):
        assert part in str(caught.value)


def test_what_cannot_be_trained_is_an_error(tmp_path: Path, base: Path) -> None:
    with pytest.raises(DataError, match="the batch is 64, but there are only 20 training pairs"):
        train_encoder(base, toy_data(counts={"train": 20}), tmp_path / "out", **{**SHORT, "batch": 64})
    with pytest.raises(DataError, match="no queries in the split 'train'"):
        train_encoder(base, toy_data(counts={"test": 20}), tmp_path / "out", **SHORT)
    with pytest.raises(RequestError, match="threads is 0"):
        train_encoder(base, toy_data(), tmp_path / "out", threads=0, **SHORT)
    with pytest.raises(RequestError, match=r"\['qerry'\] match no linear layer; linear layers found: encoder"):
        train_encoder(base, toy_data(), tmp_path / "out", targets=["qerry"], **SHORT)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path: Path, base: Path) -> None:
    with pytest.raises(WorkError, match=r"step \d+ of 6: the loss is .* nothing was published"):
        train_encoder(base, toy_data(), tmp_path / "out", method="full", **{**SHORT, "learning_rate": 1e36})
    assert not (tmp_path / "out").exists()


def test_learning_rate_rises_then_falls_or_stays() -> None:
    linear = [learning_rate_at(step, 20, top=2.0, schedule="linear", warmup=0.1) for step in range(20)]
    assert linear[:3] == [1.0, 2.0, 2.0] and 0 < linear[-1] < 0.2
    assert linear[2:] == sorted(linear[2:], reverse=True)
    constant = [learning_rate_at(step, 20, top=2.0, schedule="constant", warmup=0.0) for step in range(20)]
    assert set(constant) == {2.0}


KILLED = """
import sys
from consilience.training import train_encoder
from tests.training.toy import toy_data
from tests.training.test_expert import SHORT
train_encoder(sys.argv[1], toy_data(), sys.argv[2], state_every=2, checkpoints=[10, 20], **{**SHORT, "steps": 60})
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path, base: Path) -> None:
    options = {**SHORT, "steps": 60, "checkpoints": [10, 20]}
    train_encoder(base, toy_data(), tmp_path / "whole", **options)
    out, partial = tmp_path / "killed", tmp_path / "killed.partial"
    command = [sys.executable, "-c", KILLED, str(base), str(out)]
    kills = 0
    for wait in (0.05, 0.3, 0.6):
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        started = time.monotonic()
        while process.poll() is None and not (partial / "state.safetensors").exists():
            assert time.monotonic() - started < 120
            time.sleep(0.01)
        time.sleep(wait)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 1 and not out.exists()
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    for place in (ADAPTER, f"checkpoints/step-10/{ADAPTER}", f"checkpoints/step-20/{ADAPTER}"):
        assert (out / place).read_bytes() == (tmp_path / "whole" / place).read_bytes()
