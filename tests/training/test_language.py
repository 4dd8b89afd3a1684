from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from consilience.core.jobs import Budget
from consilience.data import LanguageData
from consilience.errors import BudgetError, DataError, RequestError, WorkError
from consilience.models import create_causal, load_causal
from consilience.training import train_language_model
from consilience.training.language_steps import fit_language_model

LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 24}
PAIRS = [(f"{a}+{b}=", str(a + b)) for a in range(5) for b in range(5)]
DATA = LanguageData.of("sums", train=PAIRS[:18], dev=PAIRS[18:22], test=PAIRS[22:])
SHORT: dict[str, Any] = {"steps": 6, "batch": 8, "learning_rate": 0.01, "progress": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("language") / "base"
    create_causal(place, LLAMA, "0123456789+=")
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_an_adapter_is_trained_with_checkpoints_and_their_losses(tmp_path: Path, base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    record = train_language_model(
        base, DATA, tmp_path / "out", rank=2, alpha=4, checkpoints=[2, 4, 6], dtype="float32", **SHORT
    )
    assert record["loss"]["every_step"][0] > record["loss"]["every_step"][-1]
    assert record["dev"]["base"] > record["dev"]["expert"]
    assert [entry["step"] for entry in record["checkpoints"]] == [2, 4, 6]
    assert record["checkpoints"][-1]["dev"] == record["dev"]["expert"]
    first = record["checkpoints"][0]
    assert first["loss"] == pytest.approx(sum(record["loss"]["every_step"][:2]) / 2, abs=1e-3)
    state = json.loads((tmp_path / "out" / first["folder"] / "trainer_state.json").read_text())
    assert state["global_step"] == 2 and [entry["step"] for entry in state["log_history"]] == [1, 2]

    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM" and "self_attn.q_proj" in config["target_modules"]
    ours = load_causal(f"{base}+{tmp_path / 'out'}", device="cpu")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out").eval()
    (batch,) = ours.batches(PAIRS[:4], 4)
    with torch.no_grad():
        assert torch.allclose(ours.logits(batch), theirs(input_ids=batch.ids).logits, atol=1e-5)
    assert ours.mean_loss(DATA.examples("dev")) == pytest.approx(record["dev"]["expert"], abs=1e-4)


def test_full_training_writes_a_model_folder_and_learns_completions(tmp_path: Path, base: Path) -> None:
    settings = {**SHORT, "steps": 60, "batch": 16}
    record = train_language_model(base, DATA, tmp_path / "out", method="full", **settings)
    model = load_causal(tmp_path / "out")
    answers = model.generate([prompt for prompt, _ in PAIRS[:18]], new_tokens=4)
    right = sum(answer.text == wanted for answer, (_, wanted) in zip(answers, PAIRS[:18], strict=True))
    assert right >= 12
    assert record["method"] == "full" and record["parameters"] == sum(v.numel() for v in model.state().values())


def test_texts_longer_than_the_model_are_cut(tmp_path: Path, base: Path) -> None:
    data = LanguageData.of("long", train=["0123456789" * 20], dev=["01234567"])
    record = train_language_model(base, data, tmp_path / "out", method="full", **{**SHORT, "steps": 30, "batch": 4})
    assert record["dev"]["expert"] < 0.6 * record["dev"]["base"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_stopped_after_every_step_gives_the_undisturbed_result(tmp_path: Path, base: Path, method: str) -> None:
    settings = {**SHORT, "steps": 4, "method": method, "rank": 2, "checkpoints": [2], "state_every": 1}
    train_language_model(base, DATA, tmp_path / "whole", **settings)
    stops = 0
    for _ in range(10):
        try:
            train_language_model(base, DATA, tmp_path / "cut", budget=Budget(wall_seconds=0), **settings)
            break
        except BudgetError:
            stops += 1
    assert stops == 4
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")
    again = train_language_model(base, DATA, tmp_path / "cut", **settings)
    assert again["loss"] == json.loads((tmp_path / "whole" / "expert.json").read_text())["loss"]


def test_seed_and_nothing_else_decides_the_order(tmp_path: Path, base: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_language_model(base, DATA, tmp_path / name, method="full", seed=seed, **{**SHORT, "steps": 2})
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")


def test_one_epoch_is_the_default_and_leaked_examples_are_dropped(tmp_path: Path, base: Path) -> None:
    leaky = LanguageData.of("leaky", train=PAIRS, test=PAIRS[20:])
    settings = {name: value for name, value in SHORT.items() if name != "steps"}
    record = train_language_model(base, leaky, tmp_path / "out", method="full", **settings)
    assert record["settings"]["steps"] == 20 // 8
    assert record["data"]["dropped"]["same as a dev or test example"] == 5
    assert record["dev"]["expert"] is None


def test_what_cannot_be_trained_is_an_error(tmp_path: Path, base: Path) -> None:
    with pytest.raises(RequestError, match=r"(?s)method 'lore'.*batch is 0.*checkpoint 9 is outside"):
        train_language_model(base, DATA, tmp_path / "o", method="lore", steps=3, batch=0, checkpoints=[9])
    with pytest.raises(DataError, match="the batch is 50, but there are only 18"):
        train_language_model(base, DATA, tmp_path / "o", method="full", steps=2, batch=50, progress=False)
    with pytest.raises(RequestError, match="rank 40 is above"):
        train_language_model(base, DATA, tmp_path / "p", rank=40, **SHORT)
    with pytest.raises(WorkError, match="step 1 of 6"):
        broken = load_causal(base)
        broken.load({"model.norm.weight": torch.full((16,), float("inf"))})
        fit_language_model(broken, PAIRS, steps=6, batch=4)


def test_fitting_in_memory_trains_the_parameters_given(base: Path) -> None:
    model = load_causal(base)
    before = model.state()
    name = "model.layers.0.mlp.down_proj.weight"
    state = fit_language_model(
        model, PAIRS, steps=3, batch=8, learning_rate=0.01, parameters={name: model.parameters()[name]}
    )
    changed = [key for key, value in model.state().items() if not torch.equal(value, before[key])]
    assert changed == [name] and len(state.losses) == 3 and not model.module.training
    assert set(before) == set(load_file(base / "model.safetensors"))
