"""Image classifiers: a network that makes vectors, and a linear head that stays as it is while networks are merged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from consilience.core.atomic import write_text_atomic
from consilience.errors import OutputError, RequestError, did_you_mean
from consilience.models.classifier import Head
from consilience.models.image_network import Config, build_network, config_of, config_record

__all__ = ["ImageBatch", "ImageClassifier", "ImageEncoder", "load_image_classifier", "load_image_encoder"]

ImageExample = tuple[NDArray[np.float32], int]


@dataclass(frozen=True)
class ImageBatch:
    """Images (n, rows, columns) float32 with the indices of their classes, (n,) int64, on the model's device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


class ImageEncoder:
    """Turns grey images into vectors.

    >>> from consilience.models.image_network import TransformerConfig
    >>> encoder = ImageEncoder(TransformerConfig(image_size=14, hidden_size=8, num_hidden_layers=1), seed=1)
    >>> encoder.encode(np.zeros((3, 14, 14), np.float32)).shape
    torch.Size([3, 8])

    config: a `PerceptronConfig` or `TransformerConfig`. state: weights by tensor name; without it, initial weights
    that depend on `seed`. Images are (n, image_size, image_size) float32 from 0 to 1.
    """

    def __init__(
        self,
        config: Config,
        state: Mapping[str, Tensor] | None = None,
        *,
        seed: int = 0,
        name: str = "image encoder",
        device: str = "cpu",
    ) -> None:
        self.config, self.name = config, name
        self.module = build_network(config, seed=seed).to(device)
        self.names: Mapping[str, str] = {parameter: parameter for parameter, _ in self.module.named_parameters()}
        self.module.eval()
        if state is not None:
            missing = sorted(set(self.names) - set(state))
            if missing:
                raise RequestError(f"{name}: the state lacks {', '.join(missing[:5])} ({len(missing)} tensors)")
            self.load({tensor: state[tensor] for tensor in self.names})

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return self.config.dimension

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the parameters in use, by tensor name."""
        return dict(self.module.named_parameters())

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the weights, by tensor name: what merges take."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters, by tensor name, some or all. Raises RequestError for unknown ones."""
        checked = self._checked(state)
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                if name in checked:
                    parameter.copy_(checked[name])

    def _checked(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = self.parameters()
        for name, value in values.items():
            if name not in own:
                raise RequestError(f"{self.name}: no parameter is named {name!r}{did_you_mean(name, own)}")
            if value.shape != own[name].shape:
                raise RequestError(
                    f"{self.name}: {name} has shape {list(own[name].shape)}, not {list(value.shape)} as given"
                )
        return dict(values)

    def forward(self, images: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return (n, dimension); gradients flow to substituted parameters (tensor name -> value)."""
        if parameters is None:
            out: Tensor = self.module(images)
            return out
        vectors: Tensor = torch.func.functional_call(self.module, self._checked(parameters), (images,))
        return vectors

    def encode(self, images: NDArray[np.float32], *, batch: int = 512) -> Tensor:
        """Return the vectors of images, (n, dimension) float32, without gradients."""
        size = self.config.image_size
        if images.ndim != 3 or images.shape[1:] != (size, size):
            raise RequestError(f"{self.name}: images {list(images.shape)}, but it takes (n, {size}, {size})")
        with torch.inference_mode():
            parts = [
                self.module(torch.from_numpy(np.ascontiguousarray(images[start : start + batch])).to(self.device))
                for start in range(0, len(images), batch)
            ]
            return torch.cat(parts) if parts else torch.zeros(0, self.dimension, device=self.device)

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint, config.json and model.safetensors, to a new or empty folder."""
        from consilience.models.saving import write_tensors

        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"output {folder}: exists and is not an empty folder; choose another place")
        write_tensors(folder, self.state(), dtype="float32", file="model.safetensors")
        write_text_atomic(folder / "config.json", json.dumps(config_record(self.config), indent=2) + "\n")
        return folder


class ImageClassifier:
    """Predicts the class of an image: a linear head on the encoder's vector. A `Predictor`.

    >>> from consilience.models.image_network import PerceptronConfig
    >>> encoder = ImageEncoder(PerceptronConfig(image_size=2, hidden_sizes=(3,)))
    >>> classifier = ImageClassifier(encoder, Head(torch.eye(3)[:2], torch.zeros(2), ("dark", "bright")))
    >>> (batch,) = classifier.batches([(np.zeros((2, 2), np.float32), 0), (np.ones((2, 2), np.float32), 1)], 2)
    >>> classifier.logits(batch).shape, classifier.loss(batch, reduction="none").shape
    (torch.Size([2, 2]), torch.Size([2]))

    An example is (image, class index). `names` are the encoder's parameters: the head is no part of what is merged.
    """

    def __init__(self, encoder: ImageEncoder, head: Head) -> None:
        expected = (len(head.labels), encoder.dimension)
        if tuple(head.weight.shape) != expected or tuple(head.bias.shape) != expected[:1]:
            raise RequestError(
                f"head: weight {list(head.weight.shape)} and bias {list(head.bias.shape)}; {expected[0]} classes and "
                f"vectors of {expected[1]} numbers need {list(expected)} and {list(expected[:1])}"
            )
        self.encoder = encoder
        self.head = Head(head.weight.to(encoder.device), head.bias.to(encoder.device), head.labels)

    @property
    def name(self) -> str:
        """The encoder's name."""
        return self.encoder.name

    @property
    def module(self) -> torch.nn.Module:
        """The encoder's network."""
        return self.encoder.module

    @property
    def names(self) -> Mapping[str, str]:
        """Parameter of `module` -> tensor of the checkpoint."""
        return self.encoder.names

    def batches(self, examples: Sequence[ImageExample], size: int) -> Iterator[ImageBatch]:
        """Yield examples as batches of `size`, in their order."""
        if size < 1:
            raise RequestError(f"batches of {size} examples were asked for; use 1 or more")
        device = self.encoder.device
        for start in range(0, len(examples), size):
            images, labels = zip(*examples[start : start + size], strict=True)
            yield ImageBatch(torch.from_numpy(np.stack(images)).to(device), torch.tensor(labels, device=device))

    def logits(self, batch: ImageBatch, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return (images, classes)."""
        return self.classify(self.encoder.forward(batch.images, parameters))

    def classify(self, vectors: Tensor) -> Tensor:
        """Return (images, classes) of the encoder's vectors."""
        return functional.linear(vectors, self.head.weight, self.head.bias)

    def loss(
        self,
        batch: ImageBatch,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """Return the negative log-likelihood of the classes: the mean, or one value per image."""
        return functional.cross_entropy(self.logits(batch, parameters), batch.labels, reduction=reduction)

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the index of the likeliest class of every image, the lowest of equal ones."""
        found: NDArray[np.int64] = self.classify(self.encoder.encode(images)).argmax(dim=1).cpu().numpy()
        return found

    def correct(self, images: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return 1 for every image whose class is found, else 0; the mean is the accuracy."""
        right: NDArray[np.float64] = (self.predict(images) == labels).astype(np.float64)
        return right

    def save(self, folder: str | Path) -> Path:
        """Write the encoder's checkpoint with the head in `folder/head`."""
        place = self.encoder.save(folder)
        self.head.write(place)
        return place


def load_image_encoder(reference: str | Path, *, device: str = "cpu") -> ImageEncoder:
    """Open an image encoder: a folder that `ImageEncoder.save` wrote, or a merge of such folders.

    Raises RequestError where it is another kind of model.
    """
    from consilience.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(reference)
    state: dict[str, Any] = {}
    for name, source in checkpoint.tensors.items():
        values = np.empty(source.numel, np.float32)
        source.read(0, source.numel, values)
        state[name] = torch.from_numpy(values).reshape(source.shape)
    return ImageEncoder(config_of(checkpoint.config), state, name=checkpoint.name, device=device)


def load_image_classifier(
    reference: str | Path, *, head: str | Path | None = None, device: str = "cpu"
) -> ImageClassifier:
    """Open an image classifier: an encoder with its own head, or the one in the folder `head`."""
    encoder = load_image_encoder(reference, device=device)
    return ImageClassifier(encoder, Head.read(reference if head is None else head))
