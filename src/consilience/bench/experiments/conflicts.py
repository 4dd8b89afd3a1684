"""Domains that contradict each other: the same sentences, but what makes two of them similar differs by domain.

A sentence says who did what to what, and where. Two are similar in the domain "who" when the persons are of one kind (a
doctor and a nurse), whatever else they say; in "what" and "where" likewise. One vector per sentence cannot serve all
three, a mixture of experts can. Words and sentences are made here; no data are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from consilience.bench.experiments.small_encoder import first_layers
from consilience.bench.experiments.workbench import CACHE
from consilience.core.randomness import stream_key
from consilience.data.pair_metrics import wins
from consilience.errors import RequestError

if TYPE_CHECKING:
    from consilience.models.encoder import DenseEncoder
    from consilience.models.routed import RoutedEncoder
    from consilience.training.routed import PairTraining

__all__ = ["Conflicts", "PairSample"]

_KINDS: Mapping[str, tuple[str, ...]] = {
    "who": (
        "doctor nurse surgeon midwife",
        "judge lawyer bailiff notary",
        "farmer shepherd gardener miller",
        "singer drummer pianist fiddler",
        "sailor fisherman captain rower",
        "teacher pupil professor tutor",
    ),
    "what": (
        "apple pear plum cherry",
        "hammer saw drill pliers",
        "letter parcel postcard telegram",
        "horse donkey mule pony",
        "coat scarf glove hat",
        "chair table stool bench",
    ),
    "where": (
        "kitchen bedroom cellar attic",
        "forest grove wood thicket",
        "harbour pier beach quay",
        "station platform tram bus",
        "church chapel temple shrine",
        "market shop kiosk stall",
    ),
}
_VERBS = ("found", "lost", "bought", "sold", "carried", "left", "saw", "forgot")


@dataclass(frozen=True)
class PairSample:
    """Pairs of sentences: `positive` are similar, `negative` are not."""

    positive: tuple[tuple[str, str], ...]
    negative: tuple[tuple[str, str], ...]


class Conflicts:
    """Encoders of contradicting domains; scores are shares of negatives below each positive, their mean the ROC-AUC.

    >>> family = Conflicts(pairs=8, tested=8)
    >>> family.domains, len(family.training("who", seed=0)), len(family.sample("who", "test").negative)
    (('who', 'what', 'where'), 8, 8)

    layers: of all-MiniLM-L6-v2, from the first. pairs: training pairs of a domain and seed. tested: positive and
    negative pairs that are measured, the same for all seeds; no sentence of theirs is trained on. Within a domain one
    word of each kind is held out: the fourth.
    """

    domains = tuple(_KINDS)

    def __init__(
        self, *, layers: int = 2, pairs: int = 600, tested: int = 300, cache: str | Path | None = None
    ) -> None:
        self.layers, self.pairs, self.tested = layers, pairs, tested
        self.cache = Path(CACHE if cache is None else cache) / "text"

    @cached_property
    def _folder(self) -> Path:
        return first_layers(self.layers, self.cache)

    def encoder(self) -> DenseEncoder:
        """Return the encoder that all models start from, a new one each time."""
        from consilience.models.loading import load_encoder

        return load_encoder(self._folder, max_tokens=16)

    def training(self, domain: str, seed: int) -> list[tuple[str, str]]:
        """Return similar sentences of a domain."""
        return list(self._drawn(domain, f"train {seed}", self.pairs, range(3))[0])

    def sample(self, domain: str, split: str) -> PairSample:
        """Return the pairs that are measured: "dev" of words seen in training, "test" with the held-out ones."""
        if split not in ("dev", "test"):
            raise RequestError(f"split {split!r} is unknown; use dev or test")
        words = range(3) if split == "dev" else range(4)
        return PairSample(*self._drawn(domain, split, self.tested, words))

    def trained(self, kind: str, seed: int, settings: PairTraining) -> DenseEncoder | RoutedEncoder:
        """Return a "dense" encoder of all domains, a "mixture" with an expert per domain, or the one of a domain."""
        from consilience.models.routed import upcycle
        from consilience.training.routed import train_on_pairs

        encoder = self.encoder()
        pairs = {name: self.training(name, seed) for name in self.domains if kind in (name, "dense", "mixture")}
        if not pairs:
            raise RequestError(f"{kind!r} is no kind of model; there are dense, mixture, {', '.join(self.domains)}")
        model = upcycle(encoder, self.domains) if kind == "mixture" else encoder
        train_on_pairs(model, pairs, settings, seed=seed)
        return model

    def scores(
        self,
        model: DenseEncoder | RoutedEncoder,
        *,
        split: str = "test",
        through: Mapping[str, str] | None = None,
    ) -> dict[str, NDArray[np.float64]]:
        """Return per domain and positive pair the share of negatives of lower cosine.

        through: the expert that each domain goes through in a mixture, its own by default.
        """
        from consilience.models.routed import RoutedEncoder

        found = {}
        for domain in self.domains:
            sample = self.sample(domain, split)
            texts = [text for pair in (*sample.positive, *sample.negative) for text in pair]
            if isinstance(model, RoutedEncoder):
                expert = (through or {}).get(domain, domain)
                vectors = model.encode(texts, [expert] * len(texts))
            else:
                vectors = model.encode(texts)
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            cosine = (vectors[::2] * vectors[1::2]).sum(axis=1)
            count = len(sample.positive)
            found[domain] = wins(cosine[:count], cosine[count:])
        return found

    def moved_by(self, domain: str) -> list[str]:
        """Return the experts of a new mixture that a batch of one domain gives gradients to."""
        from consilience.models.routed import upcycle

        routed = upcycle(self.encoder(), self.domains)
        for parameter in routed.parameters().values():
            parameter.requires_grad_(True)
        texts = [text for pair in self.sample(domain, "dev").positive[:3] for text in pair]
        total = routed.forward(routed.encoder.tokenise(texts), [domain] * len(texts)).square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return [name for name, own in routed.experts.items() if any(value.grad is not None for value in own.values())]

    def _drawn(
        self, domain: str, stream: str, count: int, words: range
    ) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
        """Return pairs of one kind and of two kinds in the domain; the other places are drawn independently."""
        if domain not in _KINDS:
            raise RequestError(f"domain {domain!r} is unknown; there are {', '.join(_KINDS)}")
        random = np.random.Generator(np.random.Philox(stream_key(0, "conflicts", domain, stream)))
        kinds = {place: [group.split() for group in groups] for place, groups in _KINDS.items()}

        def sentence(kind: int) -> str:
            word = {
                place: groups[kind if place == domain else random.integers(len(groups))][random.choice(words)]
                for place, groups in kinds.items()
            }
            verb = _VERBS[random.integers(len(_VERBS))]
            return f"the {word['who']} {verb} the {word['what']} near the {word['where']}"

        combinations = list(itertools.permutations(range(len(kinds[domain])), 2))
        positive, negative = [], []
        for _ in range(count):
            one = int(random.integers(len(kinds[domain])))
            positive.append((sentence(one), sentence(one)))
            left, right = combinations[random.integers(len(combinations))]
            negative.append((sentence(left), sentence(right)))
        return tuple(positive), tuple(negative)
