"""Every kind of statistic against its definition, written out on small networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from consilience.errors import NonFiniteError, RequestError
from consilience.models import create_causal, load_encoder
from consilience.models.retrieval import RetrievalPredictor
from consilience.tuning import gather_statistics
from tests.models.tiny import write_sentence_transformer
from tests.tuning.toy import ToyPredictor, toy, toy_examples


def gathered(out: Path, model: Any, examples: Any, kind: str, **options: Any) -> dict[str, np.ndarray]:
    gather_statistics(model, examples, out, kinds=(kind,), progress=False, **options)
    return load_file(out / f"{kind}.safetensors")


def gradients(model: ToyPredictor, value: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, list(model.module.parameters()), retain_graph=True))


def test_fisher_is_the_expected_square_of_each_examples_gradient(tmp_path: Path) -> None:
    model, examples = toy(0), toy_examples(1)
    expected = [torch.zeros_like(p) for p in model.module.parameters()]
    for batch in model.batches(examples, 1):
        logs = model.logits(batch)[0].log_softmax(0)
        for log in logs:
            for total, gradient in zip(expected, gradients(model, log), strict=True):
                total += float(log.detach().exp()) * gradient**2 / len(examples)
    found = gathered(tmp_path / "out", model, examples, "fisher")
    for name, total in zip(model.names, expected, strict=True):
        assert found[name] == pytest.approx(total.numpy(), rel=1e-6), name


def test_drawn_fisher_has_the_same_expectation(tmp_path: Path) -> None:
    model, examples = toy(0), toy_examples(1, 3)
    exact = gathered(tmp_path / "exact", model, examples, "fisher")
    drawn = gathered(tmp_path / "drawn", model, examples, "fisher", draws=3000)
    other = gathered(tmp_path / "other", model, examples, "fisher", draws=3000, seed=1)
    for name, value in exact.items():
        assert drawn[name] == pytest.approx(value, rel=0.2, abs=0.05 * float(value.max()))
    assert any((drawn[name] != other[name]).any() for name in drawn)


def test_sensitivity_is_the_mean_of_each_examples_own_gradient(tmp_path: Path) -> None:
    model, examples = toy(2), toy_examples(3)
    expected = dict.fromkeys(model.names, 0.0)
    for batch in model.batches(examples, 1):
        for (name, value), gradient in zip(
            model.module.named_parameters(), gradients(model, model.loss(batch)), strict=True
        ):
            expected[name] += float((value.detach() * gradient).abs().sum()) / len(examples)
    found = gathered(tmp_path / "out", model, examples, "sensitivity")
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-6)


def test_grams_and_activations_are_those_of_the_inputs(tmp_path: Path) -> None:
    model, examples = toy(4), toy_examples(5)
    inputs = torch.stack([torch.as_tensor(x) for x, _ in examples])
    hidden = torch.relu(model.module[0](inputs)).detach()  # type: ignore[index]
    grams = gathered(tmp_path / "grams", model, examples, "gram", batch=3)
    means = gathered(tmp_path / "means", model, examples, "activation", batch=3)
    for name, x in (("0.weight", inputs), ("2.weight", hidden)):
        assert grams[name] == pytest.approx((x.T @ x / len(x)).numpy(), rel=1e-5, abs=1e-7)
        assert means[name] == pytest.approx(x.abs().mean(0).numpy(), rel=1e-6)
    assert set(grams) == {"0.weight", "2.weight"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("encoder") / "model"
    write_sentence_transformer(folder, dense=(8, "Tanh"), normalize=True)
    return load_encoder(folder, device="cpu")


PAIRS = [("w1 w2 w3", "w4"), ("w5", "w6 w7 w8 w9 w10"), ("w11 w12", "w13 w14"), ("w1 w15", "w16"), ("w17", "w18 w19")]


def test_padding_enters_no_statistic_of_an_encoder(tmp_path: Path, encoder: Any) -> None:
    model = RetrievalPredictor(encoder)
    for kind in ("gram", "activation"):
        padded = gathered(tmp_path / f"{kind}5", model, PAIRS, kind, batch=5)
        less = gathered(tmp_path / f"{kind}2", model, [*PAIRS, PAIRS[0]][:4], kind, batch=2)
        again = gathered(tmp_path / f"{kind}4", model, [*PAIRS, PAIRS[0]][:4], kind, batch=4)
        assert padded.keys() == less.keys()
        for name, value in less.items():
            assert again[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert "2_Dense/linear.weight" in padded and "embeddings.LayerNorm.weight" in padded
    assert not any("word_embeddings" in name for name in padded)


def test_fisher_of_an_encoder_covers_every_tensor_of_its_checkpoint(tmp_path: Path, encoder: Any) -> None:
    found = gathered(tmp_path / "out", RetrievalPredictor(encoder), PAIRS, "fisher", batch=2)
    floats = {name: source.shape for name, source in encoder.checkpoint.tensors.items()}
    assert {name: value.shape for name, value in found.items()} == floats
    assert (found["pooler.dense.weight"] == 0).all() and (found["2_Dense/linear.weight"] > 0).any()
    embeddings = found["embeddings.word_embeddings.weight"]
    assert (embeddings[6] > 0).any() and (embeddings[150] == 0).all()


def test_fisher_of_a_retriever_is_that_of_the_softmax_over_documents(tmp_path: Path, encoder: Any) -> None:
    model, name = RetrievalPredictor(encoder), "2_Dense/linear.bias"
    (batch,) = model.batches(PAIRS[:3], 3)
    bias = encoder.parameters()[name]
    expected = torch.zeros_like(bias)
    for logs in model.logits(batch).log_softmax(1):
        for log in logs:
            (gradient,) = torch.autograd.grad(log, bias, retain_graph=True)
            expected += float(log.detach().exp()) * gradient**2 / 3
    found = gathered(tmp_path / "out", model, PAIRS[:3], "fisher", batch=3)
    assert found[name] == pytest.approx(expected.detach().numpy(), rel=1e-4, abs=1e-9)


def test_documents_that_also_answer_are_no_outcome(encoder: Any) -> None:
    model = RetrievalPredictor(encoder)
    (batch,) = model.batches([("w1", "w2"), ("w1", "w3"), ("w4", "w2")], 3)
    logits = model.logits(batch)
    assert torch.isinf(logits).tolist() == [[False, True, True], [True, False, True], [True, False, False]]
    assert torch.isfinite(model.loss(batch)) and model.loss(batch, reduction="none").shape == (3,)


LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2}
SUMS = ["1+1=2", "12+2=14", ("2+2=", "4"), ("10+2=", "12")]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return create_causal(tmp_path_factory.mktemp("causal") / "model", LLAMA, "0123456789+=", device="cpu")


def test_padding_enters_no_statistic_of_a_language_model(tmp_path: Path, causal: Any) -> None:
    for kind in ("gram", "activation", "sensitivity", "fisher"):
        together = gathered(tmp_path / f"{kind}4", causal, SUMS, kind, batch=4)
        alone = gathered(tmp_path / f"{kind}1", causal, SUMS, kind, batch=1)
        for name, value in alone.items():
            assert together[name] == pytest.approx(value, rel=1e-4, abs=1e-7), name
    assert set(together) == set(causal.names.values())


def test_fisher_of_texts_looks_at_counted_tokens_only(tmp_path: Path, causal: Any) -> None:
    found = gathered(tmp_path / "out", causal, [("12+3=", "4")], "fisher", draws=400)
    expected = 0.0
    (batch,) = causal.batches([("12+3=", "4")], 1)
    logs = causal.logits(batch)[0].log_softmax(-1)
    weight = causal.parameters()["model.norm.weight"]
    for position in (5, 6):  # those that predict "4" and the end
        for log in logs[position]:
            (gradient,) = torch.autograd.grad(log, weight, retain_graph=True)
            expected = expected + float(log.detach().exp()) * gradient**2
    assert found["model.norm.weight"].sum() == pytest.approx(float(expected.sum()), rel=0.2)


def test_layers_without_a_linear_module_have_no_gram(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = create_causal(tmp_path / "gpt2", config, "0123456789+=", device="cpu")
    with pytest.raises(RequestError, match=r"no torch\.nn\.Linear layer.*Conv1D"):
        gather_statistics(model, SUMS, tmp_path / "out", kinds=("gram",), progress=False)
    assert "transformer.h.0.ln_1.weight" in gathered(tmp_path / "norms", model, SUMS, "activation")


def test_modules_that_data_do_not_reach_are_left_out(tmp_path: Path) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(6, 4).double(), nn.Linear(6, 4).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    model = ToyPredictor("idle", Idle(), torch.randn(3, 4, dtype=torch.float64))
    assert set(gathered(tmp_path / "gram", model, toy_examples(0), "gram")) == {"used.weight"}
    fisher = gathered(tmp_path / "fisher", model, toy_examples(0), "fisher")
    assert (fisher["idle.weight"] == 0).all() and (fisher["used.weight"] > 0).any()


def test_nan_in_the_weights_stops_the_work_by_name(tmp_path: Path) -> None:
    model = toy(0)
    with torch.no_grad():
        next(model.module.parameters())[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"2\.weight"):
        gathered(tmp_path / "out", model, toy_examples(0), "gram")
    assert not (tmp_path / "out").exists()
