from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consilience.core.jobs import Budget
from consilience.data import Documents, GradedData, ReservedQueries, TrainingPairs
from consilience.errors import BudgetError, DataError, RequestError
from consilience.models import load_encoder
from consilience.training import Joint, train_encoder
from consilience.training.groups import Groups
from consilience.training.joint_steps import JointSteps
from consilience.training.settings import Settings
from tests.models.tiny import write_bert
from tests.training.toy import toy_data

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


def toy_pairs(*, train: int = 90, dev: int = 30) -> GradedData:
    """Sentences of 3 words; the score is the share of words that the second has from the first."""
    draw = random.Random(5)

    def pair() -> tuple[str, str, float]:
        words, kept = draw.sample(range(200), 6), draw.randrange(4)
        first, second = words[:3], [*words[:kept], *words[3 : 6 - kept]]
        return " ".join(f"w{w}" for w in first), " ".join(f"w{w}" for w in second), kept / 3

    return GradedData.of("grades", train=[pair() for _ in range(train)], dev=[pair() for _ in range(dev)], highest=1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    write_bert(folder)
    return folder


def test_joint_training_raises_both_metrics(tmp_path: Path, base: Path) -> None:
    options = {**SHORT, "steps": 36, "batch": 16, "rank": 8, "alpha": 16.0}
    joint = Joint(similarity_batch=15, positives=2, negatives=1, temperature=0.05)
    record = train_encoder(base, [toy_data(), toy_pairs()], tmp_path / "out", joint=joint, checkpoints=[25], **options)
    before, after = record["dev"]["base"], record["dev"]["expert"]
    assert record["dev"]["metric"] == {"toy": "nDCG@10 x 100", "grades": "Spearman x 100"}
    assert after["toy"] > before["toy"] and after["grades"] > before["grades"] + 3
    assert set(record["dev"]["checkpoints"]["step-25"]) == {"toy", "grades"}
    assert [part["name"] for part in record["data"]["datasets"]] == ["toy", "grades"]
    assert record["settings"]["joint"]["weights"]["rank"] == 5.0 and record["data"]["notices"] == []


def test_a_stopped_joint_run_gives_the_undisturbed_result(tmp_path: Path, base: Path) -> None:
    data = [toy_data(), toy_pairs()]
    options = {**SHORT, "dropout": True, "method": "full", "joint": Joint(negatives=1)}
    whole = train_encoder(base, data, tmp_path / "whole", **options)
    for _ in range(20):
        try:
            train_encoder(base, data, tmp_path / "cut", state_every=1, budget=Budget(wall_seconds=0.0), **options)
            break
        except BudgetError:
            pass
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert written[0] == written[1]
    assert train_encoder(base, data, tmp_path / "cut", **options)["loss"] == whole["loss"]


def steps_of(base: Path, joint: Joint, data: list[Any]) -> JointSteps:
    encoder = load_encoder(base, device="cpu", max_tokens=8)
    settings = Settings(
        method="full",
        rank=1,
        alpha=1.0,
        targets=None,
        steps=6,
        batch=8,
        learning_rate=1e-3,
        schedule="linear",
        warmup=0.0,
        weight_decay=0.0,
        clip=1.0,
        dropout=False,
        max_tokens=8,
        seed=1,
        dtype=None,
        checkpoints=(),
        scale=20.0,
        dev_queries=0,
        dev_documents=0,
    )
    return JointSteps(encoder, data, settings, joint)


@pytest.mark.parametrize("sampler", ["single", "mixed"])
def test_the_baselines_train_by_one_contrastive_loss(base: Path, sampler: Any) -> None:
    parts = [toy_data().training_pairs(reserved=ReservedQueries.empty()), toy_pairs().training()]
    steps = steps_of(base, Joint(objective="infonce", sampler=sampler, alike=0.6), parts)
    for step in range(4):
        loss, tokens = steps(step)
        assert torch.isfinite(loss) and tokens > 0
        assert loss.item() == steps(step)[0].item()
    # without any alike pair a batch has nothing to teach
    never = steps_of(
        base,
        Joint(objective="infonce", sampler=sampler),
        [GradedData.of("low", highest=1.0, train=[(f"w{i}", f"w{i + 1}", 0.5) for i in range(20)]).training()],
    )
    assert never(0)[0].item() == 0.0


def test_the_middle_of_the_encoder_is_the_state_at_half_its_list(base: Path) -> None:
    encoder = load_encoder(base, device="cpu", max_tokens=8)
    tokens = encoder.tokenise(["w1 w2", "w3"])
    vectors, middle = encoder.forward_with_middle(tokens)
    assert torch.equal(vectors, encoder.forward(tokens))
    inputs = encoder._inputs(tokens, np.arange(2))
    states = encoder.stack.transformer(**inputs, output_hidden_states=True).hidden_states  # embeddings, 2 layers
    by_hand = (states[1] * inputs["attention_mask"][..., None]).sum(1) / inputs["attention_mask"].sum(1, keepdim=True)
    torch.testing.assert_close(middle, by_hand)


def test_groups_pad_negatives_with_other_documents_and_mark_relevant_ones() -> None:
    documents = Documents(tuple("abcde"), tuple("vwxyz"))
    pairs = TrainingPairs("tiny", ("p", "q"), ((0, 1, 2), (1,)), ((3,), (4,)), documents)
    groups = Groups(pairs, positives=2, negatives=3, seed=0)
    seen = set()
    for epoch in range(12):
        group = groups.at(np.array([0, 1]), epoch)
        seen.add(tuple(group.positives[0].tolist()))
        assert group.positives[1].tolist() == [1, 1]  # the only one, repeated
        assert group.negatives[0, 0] == 3 and group.negatives[1, 0] == 4  # judged ones come first
        assert not set(group.negatives[0].tolist()) & {0, 1, 2} and 1 not in group.negatives[1]
        for slot in range(2):
            row = [*group.positives[:, slot].tolist(), *group.negatives.ravel().tolist()]
            assert group.left_out[slot, 0].tolist() == [place in (0, 1, 2) for place in row]
            assert group.left_out[slot, 1].tolist() == [place == 1 for place in row]
    assert len(seen) > 2  # three relevant documents, two slots: drawn anew
    everything = TrainingPairs("tiny", ("p",), ((0, 1),), ((),), documents)
    with pytest.raises(DataError, match="all 2 documents are relevant for one query"):
        Groups(everything, negatives=1)


def test_a_small_dataset_is_named_and_left_out(tmp_path: Path, base: Path) -> None:
    with pytest.warns(UserWarning, match="dataset grades: 4 rows do not fill a batch of 8"):
        record = train_encoder(base, [toy_data(), toy_pairs(train=4, dev=5)], tmp_path / "out", **{**SHORT, "steps": 1})
    assert "takes no part" in record["data"]["notices"][0]


def test_wrong_joint_settings_are_reported_together(tmp_path: Path, base: Path) -> None:
    wrong = Joint(objective="codienb", sampler="mixed", positives=0, temperature=0.0, weights={"rank": -1.0}, alike=2.0)
    with pytest.raises(RequestError) as caught:
        train_encoder(base, [toy_data(), toy_pairs()], tmp_path / "out", joint=wrong, **SHORT)
    for part in ("did you mean 'codiemb'", "positives is 0", "temperature is 0", "weights are of rank", "alike is 2"):
        assert part in str(caught.value)
    with pytest.raises(RequestError, match="puts two tasks into a batch"):
        Joint(sampler="mixed").check()
    with pytest.raises(RequestError, match="two named toy"):
        train_encoder(base, [toy_data(), toy_data()], tmp_path / "out", **SHORT)
    with pytest.raises(RequestError, match="no dataset was given"):
        train_encoder(base, [], tmp_path / "out", **SHORT)
