"""Families of small language models and of preference experts, on tiny data made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from consilience.bench.experiments import Workbench
from consilience.bench.experiments.adapter_run import AdapterRun
from consilience.bench.experiments.alignment import MIXTURES, Alignment
from consilience.bench.experiments.alignment_data import AlignmentData, unsafe_requests
from consilience.bench.experiments.passages import Passages
from consilience.bench.experiments.reasoning import Addition, quick_answer, slow_answer
from consilience.errors import DataError, RequestError

TINY = {"hidden": 16, "layers": 1}


def write(folder: Path, rows: list[dict[str, object]], name: str = "data") -> None:
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions of six kinds, passages and paragraphs; known and unknown intents."""
    place = tmp_path_factory.mktemp("data")
    splits = ["train"] * 8 + ["dev"] * 2 + ["test"] * 2
    kinds = ["who", "where", "when", "how", "which", "what"]
    rows = [
        {"text": f"{word} is number {index} ?", "label": kind, "split": split}
        for kind, word in enumerate(kinds)
        for index, split in enumerate(splits)
    ]
    write(place / "classification" / "trec6", rows)
    write(place / "tasks" / "wiki_passages", [{"text": f"passage {i} of the wiki"} for i in range(40)], "corpus")
    paragraphs = [{"text": f"section {i} of the code: " + "the mayor may. " * (i % 30)} for i in range(80)]
    write(place / "retrieval" / "law_dccode", paragraphs, "corpus")
    intents = [f"intent {index}" for index in range(34)] + ["out_of_scope", "report_fraud"]
    for name, labels in (("clinc150", intents), ("banking77", ["compromised_card", "top_up"])):
        rows = [
            {"text": f"please do {label} now {index}", "label": number, "split": split}
            for number, label in enumerate(labels)
            for index, split in enumerate(splits)
        ]
        write(place / "classification" / name, rows)
        (place / "classification" / name / "labels.json").write_text(json.dumps(labels))
    return place


def test_sums_are_answered_in_both_styles_and_split_apart() -> None:
    assert quick_answer(97, 5) == "102"
    assert slow_answer(97, 15) == "7+5=12;9+1+1=11;112"
    family = Addition(**TINY, base_steps=1, expert_steps=1)
    asked = {
        split: {question for question, _ in family.examples("quick", split=split)} for split in ("train", "dev", "test")
    }
    assert {split: len(found) for split, found in asked.items()} == {"train": 6600, "dev": 500, "test": 1000}
    assert not asked["train"] & asked["test"] and not asked["train"] & asked["dev"] and not asked["dev"] & asked["test"]
    longest = max(len(answer) for _, answer in family.examples("slow"))
    assert longest < 28


def test_a_slow_expert_answers_longer_than_a_quick_one(tmp_path: Path) -> None:
    settings = {**TINY, "base_rate": 0.01, "expert_rate": 0.02, "questions": (5, 20)}
    family = Addition(base_steps=20, expert_steps=50, **settings)
    bench = Workbench(family, cache=tmp_path)
    found = {task: family.responses(state, "test") for task, state in bench.experts.items()}
    assert found["quick"].reflective.mean() == 0 and found["quick"].tokens.mean() < 5
    assert found["slow"].reflective.mean() > 0.9 and found["slow"].tokens.mean() > 10
    assert (found["slow"].tokens[found["slow"].cut == 1] == 28).all()
    again = Workbench(Addition(base_steps=20, expert_steps=50, **settings), cache=tmp_path)
    assert torch.equal(again.base["model.norm.weight"], bench.base["model.norm.weight"])
    assert Workbench(Addition(base_steps=21, expert_steps=50, **settings), cache=tmp_path).folder != bench.folder


def test_passages_have_a_light_and_a_heavy_expert_and_adapter_runs(tmp_path: Path, texts: Path) -> None:
    family = Passages(
        texts, vocabulary=300, base_steps=4, question_steps=4, law_steps=12, law_rate=0.01, batch=8, size=10, **TINY
    )
    bench = Workbench(family, cache=tmp_path)
    assert bench.base_scores().n == 20
    law = bench.expert_scores(tasks=["law"]) - bench.base_scores(tasks=["law"])
    assert law.mean > 0.3
    longest = max(len(ids) for ids in family.models.tokenizer(family.examples("law", split="test"))["input_ids"])
    assert longest <= 96
    data = family.law_data(32)
    run = AdapterRun(bench, data, checkpoints=2, batch=8, rank=2, learning_rate=0.05, progress=False)
    assert list(run.folders) == ["step-2", "step-4"]
    uniform = run.merge_scores("mwa", penalty_factor=0.0)
    assert uniform.mean > bench.base_scores(tasks=["law"]).mean
    last = run.merge_scores("mwa", penalty_factor=64.0, metric="steps")
    np.testing.assert_allclose(last.by_example["law"], run.scores(run.folders["step-4"]).by_example["law"], atol=1e-4)


def test_alignment_data_keep_splits_and_dimensions_apart(texts: Path) -> None:
    data = AlignmentData(texts, size=12)
    train = {prompt for part in data.train.values() for prompt in part.prompts}
    for split in ("dev", "test"):
        for sets in data.tests[split].values():
            assert all(len(held.prompts) == 12 and not train & set(held.prompts) for held in sets)
    assert not set(unsafe_requests("train")) & set(unsafe_requests("test"))
    abstained = data.train["abstention"]
    assert set(abstained.rejected[abstained.chosen == data.abstain]) == {-1}
    assert set(abstained.rejected[abstained.chosen != data.abstain]) == {data.abstain}
    answerable = data.tests["test"]["abstention"][2]
    assert answerable.right(np.full(12, data.abstain)).sum() == 0 and answerable.right(np.zeros(12)).sum() == 12
    with pytest.raises(DataError, match=r"data\.parquet: no such file; set CONSILIENCE_DATA"):
        AlignmentData(texts / "absent")


def test_experts_learn_their_dimension_and_mixtures_all(texts: Path) -> None:
    family = Alignment(texts, width=16, base_steps=10, expert_steps=80, expert_rate=0.02, batch=32, size=12)
    base = family.base(0)
    refusing, abstaining = family.expert("refusal", 0), family.expert("abstention", 0)
    assert family.datasets(refusing, "refusal", "test")["unsafe"].mean() > 0.9
    assert family.datasets(abstaining, "abstention", "test")["out of scope"].mean() > 0.9
    for kind in MIXTURES:
        mixed = family.mixture(kind, 0)  # type: ignore[arg-type]
        total = {task: family.scores(mixed, task, "dev").mean() for task in family.tasks}
        assert sum(total.values()) > sum(family.scores(base, task, "dev").mean() for task in family.tasks)
    assert torch.equal(family.expert("refusal", 0)["first.weight"], refusing["first.weight"])
    assert not torch.equal(family.expert("refusal", 1)["first.weight"], refusing["first.weight"])
    with pytest.raises(RequestError, match="mixture 'even' is unknown"):
        family.mixture("even", 0)  # type: ignore[arg-type]
