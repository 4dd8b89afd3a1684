"""A bundle of dense text encoders as one: texts are routed, mixed, and encoded in batches by expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.bundles.grouping import weight_groups
from consilience.bundles.routers.protocol import BASE, Routing
from consilience.core.hashing import fingerprint
from consilience.core.progress import Progress
from consilience.errors import RequestError, did_you_mean
from consilience.models import load_encoder

if TYPE_CHECKING:
    from torch import Tensor

    from consilience.bundles.bundle import Bundle
    from consilience.bundles.factored import Changes
    from consilience.models.batching import Tokens
    from consilience.models.encoder import DenseEncoder

__all__ = ["BundleEncoder", "Evaluation"]

Evaluation = Literal["grouped", "factored"]


class BundleEncoder:
    """Encodes with the experts of a bundle, loading the shared encoder once.

    evaluation: "grouped" makes a model for each set of weights that occurs (rounded to `decimals`) and encodes its
    texts; "factored" puts all texts into any batches and mixes layer by layer (see `factored`), which pays where
    weights differ from text to text. None: grouped, and factored where there are more than 8 sets.

    Where experts encode queries only (`encodes: query` of the record), documents are the shared encoder's, in one space
    for all. Where they encode documents too, every expert has a space of its own, and so has the base: `route(...)`
    says which to search, and weights are not mixed.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        evaluation: Evaluation | None = None,
        decimals: int = 2,
        device: str | None = None,
        max_tokens: int | None = None,
    ) -> None:
        if evaluation not in (None, "grouped", "factored"):
            raise RequestError(f"evaluation: {evaluation!r} is neither 'grouped' nor 'factored'")
        self.bundle, self.evaluation, self.decimals = bundle, evaluation, decimals
        self.shared: DenseEncoder = load_encoder(bundle.shared, device=device, max_tokens=max_tokens)
        self.dimension = self.shared.dimension
        self.name = bundle.folder.name

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces that documents can be encoded in: "base" alone, or one for every expert beside it."""
        return (BASE,) if self.bundle.record["encodes"] == "query" else (*self.bundle.experts, BASE)

    @property
    def documents(self) -> DenseEncoder:
        """The encoder of documents. Raises RequestError where there are several spaces."""
        if len(self.spaces) > 1:
            raise RequestError(
                f"bundle {self.bundle.folder}: documents have spaces {', '.join(self.spaces)}: no one encoder"
            )
        return self.shared

    @property
    def prompts(self) -> Mapping[str, str]:
        """The shared encoder's prompts."""
        return self.shared.prompts

    @property
    def fingerprint(self) -> str:
        """Identity of the vectors of queries: shared encoder, residuals and router."""
        router = self.bundle.router
        routed = None
        if router is not None:
            arrays = {name: array.tobytes().hex() for name, array in router.arrays().items()}
            routed = [router.kind, router.threshold, router.settings(), fingerprint(arrays)]
        return fingerprint([self.shared.fingerprint, self.bundle.record["identity"], routed, self.decimals])

    def route(self, texts: Sequence[str], *, prompt: str | None = None) -> Routing:
        """Return the weights of experts and base for every text; raises RequestError where there is no router."""
        return self._routed(self._features(texts, prompt))

    def _features(self, texts: Sequence[str], prompt: str | None) -> NDArray[np.float32]:
        """Return what the router sees: the shared encoder's vectors of the texts."""
        return self.shared.encode(texts, prompt=prompt)

    def _routed(self, features: NDArray[np.float32]) -> Routing:
        router = self.bundle.router
        if router is None:
            raise RequestError(
                f"bundle {self.bundle.folder} has no router; give it one (Bundle.set_router), or name the expert"
            )
        routing = self._aligned(router.route(features))
        return routing.hard() if len(self.spaces) > 1 else routing

    def _aligned(self, routing: Routing) -> Routing:
        """Return the routing over all of the bundle's experts, in its order."""
        if routing.names == (*self.bundle.experts, BASE):
            return routing
        names = (*self.bundle.experts, BASE)
        weights = np.zeros((len(routing), len(names)))
        for place, name in enumerate(routing.names):
            weights[:, names.index(name)] = routing.weights[:, place]
        return Routing(names, weights)

    def encode(
        self,
        texts: Sequence[str],
        *,
        expert: str | None = None,
        routing: Routing | None = None,
        prompt: str | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Return one vector per query, float32 (texts, dimension), in the order of the texts.

        expert: one for all texts ("base": the shared encoder), instead of the router. routing: weights made before.
        Raises RequestError without a router, and for unknown experts.
        """
        if isinstance(texts, str):
            raise RequestError("texts is one string; give a list of strings")
        if expert is not None:
            return self._one(texts, self._known(expert), prompt, progress)
        tokens = self.shared.tokenise(texts, prompt=prompt)
        if not len(tokens):
            return np.empty((0, self.dimension), np.float32)
        if routing is None:
            out = self.shared.encode(tokens, progress=progress)  # the router needs them
            found = self._routed(out)
        elif len(routing) != len(tokens):
            raise RequestError(f"routing: of {len(routing)} inputs, for {len(tokens)} texts")
        else:
            found = self._aligned(routing)
            out = np.empty((len(tokens), self.dimension), np.float32)
            plain = np.flatnonzero(~found.experts.round(self.decimals).any(axis=1))
            out[plain] = self.shared.encode(_only(tokens, plain))
        groups = list(weight_groups(found.experts, self.decimals))
        mixed = [rows for weights, rows in groups if any(weights)]
        if self.evaluation == "factored" or (self.evaluation is None and len(mixed) > 8):
            rows = np.sort(np.concatenate(mixed)) if mixed else np.empty(0, np.int64)
            out[rows] = self._factored(_only(tokens, rows), found.experts[rows])
            return out
        for weights, rows in groups:
            if any(weights):  # no weight at all: the shared encoder's vectors, which are there
                names = dict(zip(self.bundle.experts, weights, strict=True))
                out[rows] = self.shared.encode(_only(tokens, rows), parameters=self._parameters(names))
        return out

    def encode_documents(
        self,
        texts: Sequence[str],
        *,
        space: str | None = None,
        prompt: str | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Return one vector per document, float32 (texts, dimension).

        space: one of `spaces`; needed only where there are several, since vectors of different spaces cannot be
        compared. Raises RequestError for a space that is not there, or is not named.
        """
        if space is None and len(self.spaces) > 1:
            raise RequestError(
                f"bundle {self.bundle.folder}: its experts encode documents too, each in a space of its own; name one "
                f"of {', '.join(self.spaces)}, or encode the documents once for each"
            )
        if space is not None and space not in self.spaces:
            raise RequestError(
                f"bundle {self.bundle.folder}: no space {space!r}{did_you_mean(space, self.spaces)}; documents are "
                f"encoded in {', '.join(self.spaces)}"
            )
        return self._one(texts, space or BASE, prompt, progress)

    def _one(
        self, texts: Sequence[str], name: str, prompt: str | None, progress: Progress | None
    ) -> NDArray[np.float32]:
        parameters = None if name == BASE else self._parameters({name: 1.0})
        return self.shared.encode(texts, prompt=prompt, parameters=parameters, progress=progress)

    def _known(self, expert: str) -> str:
        names = (*self.bundle.experts, BASE)
        if expert not in names:
            raise RequestError(f"bundle {self.bundle.folder}: no expert {expert!r}{did_you_mean(expert, names)}")
        return expert

    def _parameters(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Return the parameters that differ from the shared encoder's, mixed; the expert's own for a single one."""
        self.bundle.require_alike()
        own = self.shared.parameters()
        chosen = {name: weight for name, weight in weights.items() if weight}
        found: dict[str, Tensor] = {}
        for name, weight in chosen.items():
            tensors = self.bundle.expert(name).tensors
            for tensor, parameter in own.items():
                source = tensors[tensor]
                if source is self.bundle.shared.tensors[tensor]:
                    continue
                value = _read(source).to(parameter.device)
                if chosen == {name: 1.0}:
                    found[tensor] = value
                else:
                    found[tensor] = found.get(tensor, parameter.detach()) + weight * (value - parameter.detach())
        return found

    @cached_property
    def changes(self) -> Changes:
        """What the experts change, as factors; read when it is first needed, then kept."""
        from consilience.bundles.factored import read_changes

        return read_changes(self.bundle, device=self.shared.device)

    def _factored(self, tokens: Tokens, weights: NDArray[np.float64]) -> NDArray[np.float32]:
        import torch

        from consilience.bundles.factored import mixed_weights
        from consilience.models.batching import length_sorted_batches

        encoder, out = self.shared, np.empty((len(tokens), self.dimension), np.float32)
        encoder.stack.eval()
        for rows in length_sorted_batches(tokens.lengths, _BATCH_TOKENS):
            own = torch.from_numpy(weights[rows]).float().to(encoder.device)
            with torch.inference_mode(), mixed_weights(encoder.stack, encoder.names, self.changes, own):
                out[rows] = encoder.forward(tokens, rows=rows).cpu().numpy()
        return out


_BATCH_TOKENS = 4096


def _read(source: Any) -> Tensor:
    import torch

    values = np.empty(source.numel, np.float32)
    source.read(0, source.numel, values)
    return torch.from_numpy(values).reshape(tuple(source.shape))


def _only(tokens: Tokens, rows: NDArray[np.int64]) -> Tokens:
    """Return the tokens of some texts."""
    from consilience.models.batching import Tokens as Made

    ids = [tokens.text(int(row)).tolist() for row in rows]
    types = None
    if tokens.types is not None:
        types = [tokens.types[tokens.starts[row] : tokens.starts[row + 1]].tolist() for row in rows]
    return Made.from_lists(ids, types, tokens.prompt)
