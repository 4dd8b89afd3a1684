"""What every runnable model offers to learners and statistics: log-probabilities as a function of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Predictor"]


class Predictor(Protocol):
    """A model that predicts one of several outcomes: a class, the next token, the document that answers a query.

    `module` holds the weights; `names` maps its parameters to the names of the checkpoint's tensors.
    """

    @property
    def name(self) -> str:
        """What the model is called in tables."""
        ...

    @property
    def module(self) -> torch.nn.Module:
        """The network."""
        ...

    @property
    def names(self) -> Mapping[str, str]:
        """Name of each parameter in `module` -> name of the tensor in the checkpoint."""
        ...

    def batches(self, examples: Sequence[Any], size: int) -> Iterator[Any]:
        """Yield examples as batches of `size`, ready on the model's device."""
        ...

    def logits(self, batch: Any, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return scores before the softmax: (examples, outcomes), or (examples, positions, outcomes) of a text.

        parameters: substitutes by tensor name, some or all; gradients flow to them.
        """
        ...

    def loss(
        self,
        batch: Any,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """Return the negative log-likelihood of the right outcomes: the mean, or one value per example."""
        ...
