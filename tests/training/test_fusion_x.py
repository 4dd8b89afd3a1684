from __future__ import annotations

from pathlib import Path

import pytest
import torch

from consilience.errors import DataError, RequestError
from consilience.models import create_causal
from consilience.models.causal import CausalModel
from consilience.training.fusion_x import distil
from consilience.training.language_steps import fit_language_model
from consilience.training.source_fusion import Selector, feedback_loss, fuse_distributions, rewards

CONFIG = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1}
TEXTS = ["abababab", "abbaabba", "babababa", "aabbaabb", "abab", "bbaa", "abba", "baba"]


def model(folder: Path, seed: int, characters: str = "abc") -> CausalModel:
    return create_causal(folder / f"model-{seed}", CONFIG, characters, seed=seed, device="cpu")


def test_identical_sources_give_that_source_and_weights_sum_to_one() -> None:
    one = torch.softmax(torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    weights, share = Selector(4, seed=1)(torch.rand(2, 4, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(share.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(fuse_distributions(one.expand(4, -1, -1, -1), weights), one)
    with pytest.raises(DataError, match="do not sum to 1"):
        fuse_distributions(0.9 * one[None], torch.ones(2, 1))


def test_ten_equal_sources_are_all_kept_and_absent_ones_never() -> None:
    selector = Selector(10, seed=0)
    for parameter in selector.parameters():
        torch.nn.init.zeros_(parameter)
    weights, _ = selector(torch.rand(3, 10))
    assert bool((weights > 0).all())
    present = torch.ones(3, 10, dtype=torch.bool)
    present[1, :9] = False
    weights, _ = selector(torch.rand(3, 10), present)
    assert weights[1].nonzero().squeeze(1).tolist() == [9]
    with pytest.raises(DataError, match="1 texts have no source"):
        selector(torch.rand(1, 10), torch.zeros(1, 10, dtype=torch.bool))


def test_feedback_grows_with_dominance_and_a_hopeless_source_has_no_reward() -> None:
    values = [feedback_loss(torch.tensor([1.0 + gap, 1.0, 1.0 - gap])).item() for gap in (0.0, 0.3, 0.9)]
    assert values[0] == 0.0 and values[0] < values[1] < values[2]
    assert feedback_loss(torch.tensor([7.0])).item() == 0.0
    assert rewards(torch.tensor([[1e6, float("inf"), float("nan")]])).tolist() == [[0.0, 0.0, 0.0]]


def test_the_selector_learns_and_the_target_follows_the_sources(tmp_path: Path) -> None:
    source, other, target = (model(tmp_path, seed) for seed in (1, 2, 3))
    fit_language_model(source, TEXTS, steps=20, batch=4, learning_rate=0.03)
    before, frozen = target.mean_loss(TEXTS), source.state()
    found = distil(target, {"good": source, "random": other}, TEXTS, steps=15, batch=4, learning_rate=0.03)
    assert target.mean_loss(TEXTS) < before - 0.3
    assert all(torch.equal(frozen[name], value) for name, value in source.state().items())
    assert found.entropy is not None and 0 < found.entropy <= 1
    assert sum(found.share.values()) == pytest.approx(1.0, abs=1e-5) and 1 <= found.kept <= 2
    best = distil(target, {"good": source, "random": other}, TEXTS, rule="best", steps=1, batch=4)
    assert best.share == {"good": 1.0, "random": 0.0} and best.entropy is None
    uniform = distil(target, {"good": source, "random": other}, TEXTS, rule="uniform", steps=1, batch=4)
    assert uniform.share == {"good": 0.5, "random": 0.5}


def test_gradients_reach_the_selector(tmp_path: Path) -> None:
    selector = Selector(3, seed=0)
    weights, _ = selector(torch.tensor([[0.9, 0.5, 0.1]]))
    distributions = torch.softmax(torch.randn(3, 1, 4, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    loss = fuse_distributions(distributions, weights)[..., 0].sum() + feedback_loss(weights.sum(dim=0))
    gradients = torch.autograd.grad(loss, list(selector.parameters()))
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_the_seed_decides_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    sources = {"one": model(tmp_path, 1), "two": model(tmp_path, 2)}
    first = model(tmp_path, 3)
    start = first.state()
    options = {"steps": 6, "batch": 4, "learning_rate": 0.01, "seed": 5}
    whole = distil(first, sources, TEXTS, **options)  # type: ignore[arg-type]
    expected = first.state()

    class Stop(Exception):
        pass

    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stop

    first.load(start)
    file = tmp_path / "state.safetensors"
    with pytest.raises(Stop):
        distil(first, sources, TEXTS, state_file=file, state_every=1, check=stop, **options)  # type: ignore[arg-type]
    first.load(start)
    again = distil(first, sources, TEXTS, state_file=file, state_every=1, **options)  # type: ignore[arg-type]
    assert again == whole
    assert all(torch.equal(expected[name], value) for name, value in first.state().items())


def test_what_cannot_be_fused_is_an_error(tmp_path: Path) -> None:
    target, other = model(tmp_path, 1), model(tmp_path, 2, "abcdef")
    with pytest.raises(RequestError) as caught:
        distil(target, {"self": target}, TEXTS, rule="unifrom", steps=0, batch=4, fusion=-1.0)
    for part in ("did you mean 'uniform'", "is the target itself", "steps is 0", "fusion is -1"):
        assert part in str(caught.value)
    with pytest.raises(RequestError, match="sources need the target's tokenizer or classes"):
        distil(target, {"other": other}, TEXTS, steps=1, batch=4)
    with pytest.raises(DataError, match="only 8 examples"):
        distil(target, {"other": other}, TEXTS, steps=1, batch=16)
