"""Fusion-X: what several source models know goes into one target, by distillation from those that fit a text.

    loss = likelihood x cross-entropy + fusion x cross-entropy(fused distribution, target) + feedback x CV^2

A selector, trained with the target, weighs the sources per text by their perplexity on it; the last term keeps it from
listening to few of them. Knowledge distillation is the case of one source, the mean of all ("uniform") and the source
with the least perplexity ("best", as FuseLLM's MinCE) are the simple rules. Source: arXiv 2505.23844.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from consilience.core.progress import Progress
from consilience.core.randomness import stream_key, uniform_bits
from consilience.errors import DataError, Problems, RequestError, did_you_mean
from consilience.training.fitting import TrainingState, fit
from consilience.training.source_fusion import Selector, feedback_loss, fuse_distributions, rewards

if TYPE_CHECKING:
    from consilience.models.model import Predictor

__all__ = ["RULES", "Fused", "distil"]

RULES = ("fusion_x", "uniform", "best")


@dataclass(frozen=True)
class _Settings:
    steps: int
    batch: int
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    clip: float
    seed: int


@dataclass(frozen=True)
class Fused:
    """What a run did: the loss of each step, and which sources the target listens to at the end, over all examples.

    `share`: mean weight of each source; `selected`: share of the texts on which it is kept; `kept`: mean number of
    sources kept; `entropy`: mean entropy of the selector's shares over log N, 1 where all are equal; None for other
    rules than fusion_x.
    """

    losses: tuple[float, ...]
    share: Mapping[str, float]
    selected: Mapping[str, float]
    kept: float
    entropy: float | None


def distil(
    target: Predictor,
    sources: Mapping[str, Predictor],
    examples: Sequence[Any],
    *,
    rule: str = "fusion_x",
    steps: int,
    batch: int = 16,
    learning_rate: float = 1e-5,
    schedule: str = "linear",
    warmup: float = 0.01,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    likelihood: float = 0.9,
    fusion: float = 0.1,
    feedback: float = 0.5,
    temperature: float = 1.0,
    threshold: float = 0.15,
    seed: int = 0,
    state_file: Path | None = None,
    state_every: int = 20,
    after_step: Callable[[TrainingState], None] | None = None,
    check: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> Fused:
    """Train `target` in place on examples, and on what the sources say of them.

    >>> import tempfile
    >>> from consilience.models import create_causal
    >>> config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1}
    >>> models = [create_causal(f"{tempfile.mkdtemp()}/m", config, "ab", seed=seed) for seed in range(3)]
    >>> found = distil(models[0], {"one": models[1], "two": models[2]}, ["abab", "bbaa"], steps=2, batch=2)
    >>> round(sum(found.share.values()), 4)
    1.0

    target, sources: classifiers or causal language models with the same outcomes, each with its own way to tokenise;
    the sources stay as they are. A source whose loss on a text is not finite is left out for that text. rule:
    "fusion_x" (the selector), "uniform" or "best". likelihood, fusion, feedback: weights of the loss's parts.
    temperature: of the distributions. threshold: least share of a source that is kept, see `selection_threshold`. The
    rest as in `train_encoder` and `fit`; the selector's parameters are in the state, so a resumed run goes on with it.

    The same seed gives the same target on one machine. Raises RequestError (all wrong settings together; outcomes that
    differ), DataError for fewer examples than a batch, WorkError naming the step when the loss is not finite.
    """
    settings = _Settings(steps, batch, learning_rate, schedule, warmup, weight_decay, clip, seed)
    _check(target, sources, settings, rule, (likelihood, fusion, feedback), temperature, threshold)
    if len(examples) < batch:
        raise DataError(f"the batch is {batch}, but there are only {len(examples)} examples; use a smaller batch")
    listener = _Listener(sources, rule, temperature, Selector(len(sources), threshold=threshold, seed=seed))
    device = next(target.module.parameters()).device
    listener.selector.to(device)
    epoch_steps = len(examples) // batch

    def loss_at(step: int) -> tuple[Tensor, int]:
        epoch, place = divmod(step, epoch_steps)
        draws = uniform_bits(stream_key(seed, "order", str(epoch)), 0, len(examples))
        rows = np.argsort(draws, kind="stable")[place * batch : (place + 1) * batch]
        chosen = [examples[row] for row in rows]
        (own,) = target.batches(chosen, batch)
        scores, counted = _positions(target.logits(own), own)
        loss = likelihood * target.loss(own)
        if fusion > 0:
            heard = listener(chosen, scores.shape)
            said = functional.log_softmax(scores / temperature, dim=-1)
            apart = -(fuse_distributions(heard.distributions, heard.weights) * said).sum(dim=-1)
            loss = loss + fusion * apart[counted].mean()
            if rule == "fusion_x":
                importance = (heard.weights * counted.sum(dim=1, keepdim=True)).sum(dim=0)
                loss = loss + feedback * feedback_loss(importance)
        return loss, int(counted.sum())

    trained: dict[str, nn.Parameter] = {f"target.{name}": value for name, value in _own(target).items()}
    if rule == "fusion_x" and fusion > 0:
        trained |= {f"selector.{name}": value for name, value in listener.selector.named_parameters()}
    target.module.train(False)
    state = fit(
        loss_at,
        trained,
        settings,
        state_file=state_file,
        state_every=state_every,
        after_step=after_step,
        check=check,
        progress=progress,
    )
    return _summary(state, listener, examples, batch)


def _own(target: Predictor) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in target.module.named_parameters() if parameter.requires_grad}


def _positions(logits: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
    """Return scores (texts, positions, outcomes) and which positions count; a classifier has one position."""
    if logits.dim() == 2:
        return logits[:, None].float(), torch.ones(len(logits), 1, dtype=torch.bool, device=logits.device)
    counted: Tensor = batch.counted[:, 1:]
    return logits[:, :-1].float(), counted


@dataclass(frozen=True)
class _Heard:
    distributions: Tensor
    weights: Tensor
    share: Tensor


class _Listener:
    """What the sources say of texts, and how much each counts."""

    def __init__(self, sources: Mapping[str, Predictor], rule: str, temperature: float, selector: Selector) -> None:
        self.sources, self.rule, self.temperature, self.selector = sources, rule, temperature, selector

    def __call__(self, examples: Sequence[Any], shape: Sequence[int] | None = None) -> _Heard:
        distributions, losses = [], []
        for name, source in self.sources.items():
            with torch.no_grad():
                (batch,) = source.batches(examples, len(examples))
                scores, counted = _positions(source.logits(batch), batch)
                if shape is not None and tuple(scores.shape) != tuple(shape):
                    raise RequestError(
                        f"source {name}: (texts, positions, outcomes) are {list(scores.shape)}, the target's "
                        f"{list(shape)}; sources need the target's tokenizer or classes"
                    )
                losses.append(source.loss(batch, reduction="none").float() / counted.sum(dim=1).clamp(min=1))
                distributions.append(torch.softmax(scores / self.temperature, dim=-1))
        cost = torch.stack(losses, dim=1)
        present = torch.isfinite(cost)
        if not bool(present.any(dim=1).all()):
            raise DataError(f"{int((~present.any(dim=1)).sum())} texts have no source with a finite loss")
        weights, share = self._weigh(cost, present)
        return _Heard(torch.stack(distributions), weights, share)

    def _weigh(self, cost: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        if self.rule == "fusion_x":
            weights, share = self.selector(rewards(cost), present)
            return weights, share
        if self.rule == "uniform":
            weights = present / present.sum(dim=1, keepdim=True)
        else:
            least = cost.masked_fill(~present, float("inf")).argmin(dim=1)
            weights = functional.one_hot(least, cost.shape[1]).float()
        return weights, weights


def _check(
    target: Predictor,
    sources: Mapping[str, Predictor],
    settings: _Settings,
    rule: str,
    parts: tuple[float, float, float],
    temperature: float,
    threshold: float,
) -> None:
    problems = Problems()
    if not sources:
        problems.add("no sources were given")
    if rule not in RULES:
        problems.add(f"rule {rule!r} is unknown{did_you_mean(rule, RULES)}")
    for name, source in sources.items():
        if source.module is target.module:
            problems.add(f"source {name} is the target itself; give a copy of it, whose weights stay as they are")
    for name in ("steps", "batch"):
        if getattr(settings, name) < 1:
            problems.add(f"{name} is {getattr(settings, name)}; it has to be at least 1")
    for name, value in zip(("likelihood", "fusion", "feedback"), parts, strict=True):
        if not value >= 0:
            problems.add(f"{name} is {value:g}; it cannot be below 0")
    if not temperature > 0 or not settings.learning_rate > 0:
        problems.add(f"temperature {temperature:g}, learning rate {settings.learning_rate:g}: both are above 0")
    if not 0 <= threshold < 1:
        problems.add(f"threshold is {threshold:g}; it is a share, from 0 to below 1")
    if settings.schedule not in ("linear", "constant"):
        problems.add(
            f"schedule {settings.schedule!r} is unknown{did_you_mean(settings.schedule, ('linear', 'constant'))}"
        )
    problems.raise_if_any(RequestError, "distillation")


def _summary(state: TrainingState, listener: _Listener, examples: Sequence[Any], batch: int) -> Fused:
    weights, shares = [], []
    with torch.no_grad():
        for start in range(0, len(examples), batch):
            heard = listener(examples[start : start + batch])
            weights.append(heard.weights)
            shares.append(heard.share)
    weight, share = torch.cat(weights), torch.cat(shares)
    names = list(listener.sources)
    entropy: float | None = None
    if listener.rule == "fusion_x" and len(names) > 1:
        entropy = float(torch.special.entr(share).sum(dim=1).mean() / np.log(len(names)))
    return Fused(
        tuple(state.losses),
        dict(zip(names, weight.mean(dim=0).tolist(), strict=True)),
        dict(zip(names, (weight > 0).float().mean(dim=0).tolist(), strict=True)),
        float((weight > 0).sum(dim=1).float().mean()),
        entropy,
    )
