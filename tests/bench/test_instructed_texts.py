from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from consilience.bench.experiments.instructed_texts import InstructedTexts
from consilience.errors import DataError

SMALL = {"train": 40, "dev": 6, "test": 8, "pretrain": 40, "pretrain_steps": 2, "batch": 4}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> InstructedTexts:
    return InstructedTexts(**SMALL, cache=tmp_path_factory.mktemp("cache"))  # type: ignore[arg-type]


def test_all_tasks_have_the_same_sentences_and_splits_do_not_meet(family: InstructedTexts) -> None:
    texts = {}
    for split in ("train", "dev", "test"):
        held = {tuple(one.input for one in task.instances(split)) for task in family.data.tasks.values()}
        assert len(held) == 1
        texts[split] = set(held.pop())
    assert len(family.tasks) >= 8 and not texts["train"] & texts["dev"] | texts["train"] & texts["test"]
    assert family.data.training().dropped["same as a dev or test instance"] == 0
    definitions = [task.instruction.definition for task in family.data.tasks.values()]
    assert len(set(definitions)) == len(definitions)
    model = family.model(seed=0)
    unknown = model.tokenizer.unk_token_id
    for task in family.data.tasks.values():
        one = task.instances("test")[0]
        ids = model.tokenizer([task.instruction.definition, one.input, *one.outputs])["input_ids"]
        assert all(unknown not in text for text in ids)
        right = task.score([instance.outputs[0] for instance in task.instances("test")])
        assert right.mean == 1 and right.unparsed == 0
    assert sum(value.numel() for value in model.state().values()) <= 3_000_000


def test_models_are_made_once_and_are_functions_of_the_seed(family: InstructedTexts) -> None:
    state = family.learn(1, steps=2, shots=3)
    again = InstructedTexts(**SMALL, cache=family.cache.parent.parent / "other").learn(1, steps=2, shots=3)  # type: ignore[arg-type]
    assert all(torch.equal(value, again[name]) for name, value in state.items())
    other, alone = family.learn(2, steps=2, shots=3), family.learn(1, steps=2, shots=3, tasks=["tone"])
    assert not torch.equal(other["shared.weight"], state["shared.weight"])
    assert not torch.equal(alone["shared.weight"], state["shared.weight"])
    kept = sorted(path for path in family.cache.rglob("model.safetensors"))
    assert len(kept) == 5
    assert torch.equal(family.learn(1, steps=2, shots=3)["shared.weight"], state["shared.weight"])
    assert kept == sorted(path for path in family.cache.rglob("model.safetensors"))
    with pytest.raises(DataError, match="no task 'tones'; did you mean 'tone'"):
        family.learn(1, steps=2, tasks=["tones"])


def test_scores_are_of_the_tasks_asked_for(family: InstructedTexts, tmp_path: Path) -> None:
    state = family.base(1)
    scores = family.scores(state)
    assert tuple(scores.by_example) == family.tasks and scores.n == 8 * len(family.tasks)
    assert set(family.scores(state, tasks=["tone"], instructed=False, split="dev").by_example) == {"tone"}
    assert all(((one >= 0) & (one <= 1)).all() for one in family.scores(state, swapped=True).by_example.values())
    assert np.isfinite(scores.mean)
