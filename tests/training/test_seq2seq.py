from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consilience.core.jobs import Budget
from consilience.data.instructions import InstructionData, InstructionTask, TaskInstance
from consilience.data.prompting import Prompting
from consilience.data.rendering import Demonstration, Instruction, render
from consilience.errors import BudgetError, DataError, RequestError, WorkError
from consilience.models.seq2seq_loading import create_seq2seq, load_seq2seq, word_tokenizer
from consilience.training.seq2seq import train_seq2seq
from consilience.training.seq2seq_steps import Seq2SeqSteps, _Defaults, answer_tasks, fit_seq2seq

LETTERS = ["a", "b", "c", "d", "e", "f", "g", "h"]
TEXTS = [f"{LETTERS[n * 27 % 64 // 8]} {LETTERS[n * 27 % 8]}" for n in range(64)]
WANTED = {"first": lambda text: text.split()[0], "last": lambda text: text.split()[-1]}
SHORT: dict[str, Any] = {"method": "full", "steps": 6, "batch": 8, "learning_rate": 0.005, "progress": False}


def tasks(train: list[str], dev: list[str], *, words: dict[str, str] | None = None) -> list[InstructionTask]:
    found = []
    for name, answer in WANTED.items():
        splits = {
            split: [TaskInstance(text, (answer(text),)) for text in texts]
            for split, texts in (("train", train), ("dev", dev), ("test", dev))
        }
        definition = (words or {}).get(name, f"write the {name} letter")
        shown = (Demonstration("a a", "a"),)
        found.append(InstructionTask(name, Instruction(definition, examples=shown), splits, metric="exact"))
    return found


DATA = InstructionData.of("letters", tasks(TEXTS[:40], TEXTS[40:]))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("seq2seq") / "base"
    shown = [render(task.instruction, " ".join(LETTERS)) for task in DATA.tasks.values()]
    create_seq2seq(place, {"model_type": "t5", "d_model": 32, "dropout_rate": 0.1}, word_tokenizer(shown), seed=1)
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_instructions_tell_tasks_on_the_same_inputs_apart(tmp_path: Path, base: Path) -> None:
    settings = {**SHORT, "steps": 200, "batch": 16, "learning_rate": 0.003, "examples": 0, "dev_instances": 8}
    record = train_seq2seq(base, DATA, tmp_path / "with", **settings)
    model = load_seq2seq(tmp_path / "with", device="cpu")
    asked: dict[str, Any] = {"split": "train", "prompting": Prompting(examples=0), "new_tokens": 4}
    found = answer_tasks(model, DATA, **asked)
    assert min(scores.mean for scores in found.values()) >= 0.9
    swapped = tasks(TEXTS[:40], TEXTS[40:], words={"first": "write the last letter", "last": "write the first letter"})
    confused = answer_tasks(model, InstructionData.of("swapped", swapped), **asked)
    assert max(scores.mean for scores in confused.values()) <= 0.25, "only where both letters are the same"
    assert sum(record["dev"]["base"].values()) < sum(record["dev"]["expert"].values())
    assert record["dev"]["instances"] == {"first": 8, "last": 8}
    assert record["settings"]["fields"] == ["definition", "examples"] and record["data"]["fewer_examples"] == 0

    train_seq2seq(base, DATA, tmp_path / "without", fields=(), **{**settings, "steps": 50})
    without = load_seq2seq(tmp_path / "without", device="cpu")
    plain = answer_tasks(without, DATA, **{**asked, "prompting": Prompting(fields=())})
    assert sum(scores.mean for scores in plain.values()) <= 1.25, "it cannot know which letter is asked for"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_stopped_after_every_step_gives_the_undisturbed_result(tmp_path: Path, base: Path, method: str) -> None:
    settings = {**SHORT, "steps": 3, "method": method, "rank": 2, "checkpoints": [2], "state_every": 1, "dropout": True}
    settings |= {"dev_instances": 2, "new_tokens": 3}
    train_seq2seq(base, DATA, tmp_path / "whole", **settings)
    stops = 0
    for _ in range(10):
        try:
            train_seq2seq(base, DATA, tmp_path / "cut", budget=Budget(wall_seconds=0), **settings)
            break
        except BudgetError:
            stops += 1
    assert stops == 3
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")
    assert "checkpoints/step-2/" in " ".join(contents(tmp_path / "cut"))
    again = train_seq2seq(base, DATA, tmp_path / "cut", **settings)
    assert again["loss"] == json.loads((tmp_path / "whole" / "expert.json").read_text())["loss"]


def test_an_adapter_opens_here_and_in_peft(tmp_path: Path, base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    settings = {**SHORT, "method": "lora", "rank": 2, "dtype": "float32", "dev_instances": 0}
    record = train_seq2seq(base, DATA, tmp_path / "out", **settings)
    assert record["dev"]["base"] is None and record["delta_norm"] > 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM" and "EncDecAttention.q" in config["target_modules"]
    ours = load_seq2seq(f"{base}+{tmp_path / 'out'}", device="cpu")
    theirs = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), tmp_path / "out").eval()
    (batch,) = ours.batches([("a b", "a"), ("c", "d e")], 2)
    labels = batch.targets.masked_fill(~batch.counted, -100)
    with torch.no_grad():
        wanted = theirs(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=labels).loss
        assert ours.loss(batch).item() == pytest.approx(wanted.item(), rel=1e-5)
        assert ours.loss(batch).item() != load_seq2seq(base, device="cpu").loss(batch).item()


def test_seed_shots_and_mixing_decide_what_is_seen(tmp_path: Path, base: Path) -> None:
    settings = {**SHORT, "steps": 2, "dev_instances": 0}
    for name, more in {
        "a": {"seed": 1},
        "b": {"seed": 1},
        "c": {"seed": 2},
        "d": {"seed": 1, "mixing": "equal"},
        "e": {"seed": 1, "shots": 5},
        "f": {"seed": 1, "fields": ("definition",)},
    }.items():
        record = train_seq2seq(base, DATA, tmp_path / name, **{**settings, **more})
        assert record["data"]["instances"] == dict.fromkeys(WANTED, more.get("shots", 40))
    found = [contents(tmp_path / name)["model.safetensors"] for name in "abcdef"]
    assert found[0] == found[1] and len(set(found)) == 5


def test_mixing_draws_tasks_as_asked(base: Path) -> None:
    model = load_seq2seq(base, device="cpu")
    settings = _Defaults(400, 10, 0.1, "linear", 0.1, 0.0, 1.0, 0, False)
    pairs = [("a", "b")] * 18

    def shares(mixing: Any) -> list[float]:
        rows = Seq2SeqSteps(model, pairs, settings, sizes=(16, 2), mixing=mixing).rows
        assert len(rows) == 4000 and rows.min() == 0 and rows.max() == 17
        counts = np.bincount(rows, minlength=18)
        assert counts[:16].max() - counts[:16].min() <= 1 and abs(counts[16] - counts[17]) <= 1
        return [counts[:16].sum() / 4000, counts[16:].sum() / 4000]

    assert shares("proportional") == pytest.approx([16 / 18, 2 / 18], abs=0.002)
    assert shares("equal") == pytest.approx([0.5, 0.5], abs=0.03)
    root = 4 / (4 + 2**0.5)
    assert shares(2.0) == pytest.approx([root, 1 - root], abs=0.03)
    for wrong in ("alike", 0.0, float("nan")):
        with pytest.raises(RequestError, match="mixing"):
            Seq2SeqSteps(model, pairs, settings, mixing=wrong)


def test_what_is_shortened_is_counted_and_what_cannot_be_is_an_error(tmp_path: Path, base: Path) -> None:
    settings = {**SHORT, "steps": 1, "dev_instances": 0}
    record = train_seq2seq(base, DATA, tmp_path / "short", max_tokens=24, **settings)
    assert record["data"]["fewer_examples"] == 80 and record["data"]["cut_inputs"] == 0
    with pytest.raises(DataError, match="task first: its instruction takes 14 tokens"):
        train_seq2seq(base, DATA, tmp_path / "none", max_tokens=12, **settings)
    long = InstructionTask("t", Instruction("write it"), {"train": [TaskInstance("a", ("a " * 70,))]})
    with pytest.raises(DataError, match="task t: an answer has 71 tokens, the model takes 40"):
        train_seq2seq(base, InstructionData.of("long", [long]), tmp_path / "none", max_tokens=40, **settings)


def test_what_cannot_be_trained_is_an_error(tmp_path: Path, base: Path) -> None:
    out = tmp_path / "o"
    with pytest.raises(RequestError, match=r"(?s)method 'lore'.*batch is 0.*new_tokens is 0.*checkpoint 9 is outside"):
        train_seq2seq(base, DATA, out, method="lore", steps=3, batch=0, checkpoints=[9], new_tokens=0)
    with pytest.raises(DataError, match="examples is -1"):
        train_seq2seq(base, DATA, out, examples=-1)
    with pytest.raises(RequestError, match="mixing 'alike' is unknown"):
        train_seq2seq(base, DATA, out, mixing="alike")
    with pytest.raises(RequestError, match="rank 40 is above"):
        train_seq2seq(base, DATA, out, **{**SHORT, "method": "lora", "rank": 40})
    with pytest.raises(WorkError, match="step 1 of 6"):
        broken = load_seq2seq(base, device="cpu")
        broken.load({"decoder.final_layer_norm.weight": torch.full((32,), float("inf"))})
        fit_seq2seq(broken, [("a", "b")], steps=6, batch=4)


def test_one_epoch_is_the_default_and_leaked_instances_are_dropped(tmp_path: Path, base: Path) -> None:
    leaky = InstructionData.of("leaky", tasks(TEXTS[:40], TEXTS[36:]))
    settings = {name: value for name, value in SHORT.items() if name != "steps"}
    record = train_seq2seq(base, leaky, tmp_path / "out", dev_instances=0, **settings)
    assert record["settings"]["steps"] == 2 * 36 // 8
    assert record["data"]["dropped"]["same as a dev or test instance"] == 8


def test_fitting_in_memory_trains_the_parameters_given(base: Path) -> None:
    model = load_seq2seq(base, device="cpu")
    before = model.state()
    name = "decoder.block.0.layer.2.DenseReluDense.wi.weight"
    state = fit_seq2seq(
        model,
        [("a", "b"), ("c", "d")],
        steps=3,
        batch=8,
        learning_rate=0.01,
        parameters={name: model.parameters()[name]},
    )
    changed = [key for key, value in model.state().items() if not torch.equal(value, before[key])]
    assert changed == [name] and len(state.losses) == 3 and not model.module.training
