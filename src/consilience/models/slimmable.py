"""A multi-task network of slimmable width: a shared encoder, one decoder per task, any of several widths each.

A layer of width w uses the first ceil(w C) of its C channels, so every sub-network is made of slices of one set of
weights, and can be exported as an ordinary dense network. Norms are taken over the channels in use (LayerNorm), so
there are no statistics that would differ between widths.

Reconstruction from the abstract of Aich et al. 2023, Efficient Controllable Multi-Task Architectures, arXiv 2308.11744
(no code was found), on slimmable networks, arXiv 1812.08928. Perceptrons here; what is slimmed are linear layers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilience.core.atomic import write_text_atomic
from consilience.errors import CheckpointError, OutputError, Problems, RequestError

__all__ = ["SlimmableConfig", "SlimmableNetwork", "Widths", "load_slimmable"]


@dataclass(frozen=True)
class Widths:
    """Which part of the channels is used: of the encoder, and of each task's decoder (0: the task is left out)."""

    encoder: float
    decoders: Mapping[str, float]

    def __str__(self) -> str:
        return f"encoder {self.encoder:g}, " + ", ".join(f"{task} {width:g}" for task, width in self.decoders.items())


@dataclass(frozen=True)
class SlimmableConfig:
    """Sizes of the full network.

    inputs: numbers per example. encoder: channels of the encoder's layers, the last the features. decoder: channels of
    every decoder. outputs: task -> numbers that come out, which are never slimmed. choices: the widths, ascending to 1.
    """

    inputs: int
    encoder: tuple[int, ...]
    decoder: int
    outputs: Mapping[str, int]
    choices: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)

    def __post_init__(self) -> None:
        problems = Problems()
        if not self.encoder or min(self.inputs, self.decoder, *self.encoder) < 1:
            problems.add(f"inputs {self.inputs}, encoder {self.encoder}, decoder {self.decoder}: sizes are at least 1")
        if not self.outputs or min(self.outputs.values()) < 1:
            problems.add(f"outputs {dict(self.outputs)}: at least one task, at least one number each")
        fine = all(0 < width <= 1 for width in self.choices) and list(self.choices) == sorted(set(self.choices))
        if not fine or self.choices[-1:] != (1.0,):
            problems.add(f"choices {self.choices}: widths above 0, ascending, the last one 1")
        problems.raise_if_any(RequestError, "slimmable network")

    @property
    def full(self) -> Widths:
        """All channels everywhere."""
        return Widths(1.0, dict.fromkeys(self.outputs, 1.0))

    @property
    def smallest(self) -> Widths:
        """The fewest channels everywhere."""
        return Widths(self.choices[0], dict.fromkeys(self.outputs, self.choices[0]))

    def every(self) -> Iterator[Widths]:
        """Yield every combination of widths, the encoder's slowest."""
        for encoder, *decoders in product(self.choices, repeat=1 + len(self.outputs)):
            yield Widths(encoder, dict(zip(self.outputs, decoders, strict=True)))

    def encoder_cost(self, width: float) -> int:
        """Return multiply-adds of the encoder for one example."""
        sizes = [self.inputs, *(_channels(size, width) for size in self.encoder)]
        return sum(before * after for before, after in pairwise(sizes))

    def decoder_cost(self, task: str, encoder: float, width: float) -> int:
        """Return multiply-adds of a decoder for one example, which reads the features of an encoder's width."""
        if not width:
            return 0
        inner = _channels(self.decoder, width)
        return inner * (_channels(self.encoder[-1], encoder) + self.outputs[task])

    def cost(self, widths: Widths) -> int:
        """Return multiply-adds of a sub-network for one example.

        >>> SlimmableConfig(4, (8,), 6, {"a": 2}).cost(Widths(0.5, {"a": 1.0}))
        52
        """
        decoders = (self.decoder_cost(task, widths.encoder, width) for task, width in widths.decoders.items())
        return self.encoder_cost(widths.encoder) + sum(decoders)


class SlimmableNetwork(nn.Module):
    """The network; `forward` takes the widths with the inputs.

    >>> network = SlimmableNetwork(SlimmableConfig(4, (8,), 6, {"a": 2, "b": 1}), seed=0)
    >>> found = network(torch.ones(3, 4), Widths(0.5, {"a": 0.25, "b": 0.0}))
    >>> {task: tuple(values.shape) for task, values in found.items()}
    {'a': (3, 2)}

    Inputs (examples, inputs), outputs (examples, numbers of the task) by task. The same seed gives the same weights.
    """

    def __init__(self, config: SlimmableConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = (config.inputs, *config.encoder)
            pairs = list(pairwise(sizes))
            self.encoder = nn.ModuleList(nn.Linear(before, after) for before, after in pairs)
            self.norms = nn.ModuleList(nn.LayerNorm(after) for after in config.encoder)
            self.decoders = nn.ModuleDict({task: _Decoder(config, task) for task in config.outputs})

    def features(self, inputs: Tensor, width: float) -> Tensor:
        """Return the encoder's features at a width: (examples, channels in use)."""
        hidden = inputs
        for layer, norm in zip(self.encoder, self.norms, strict=True):
            hidden = functional.gelu(_normed(norm, _linear(layer, hidden, width)))
        return hidden

    def projected(self, features: Tensor, task: str) -> Tensor:
        """Return what a task's full-width decoder makes of features first; features of all widths become alike."""
        return _linear(self._decoder(task).project, features, 1.0)

    def decode(self, features: Tensor, task: str, width: float) -> Tensor:
        """Return a task's outputs from features of any width."""
        decoder = self._decoder(task)
        hidden = functional.gelu(_normed(decoder.norm, _linear(decoder.project, features, width)))
        return _linear(decoder.output, hidden, 1.0)

    def forward(self, inputs: Tensor, widths: Widths | None = None) -> dict[str, Tensor]:
        """Return the outputs of every task that is not left out; widths: all channels by default."""
        chosen = self.checked(self.config.full if widths is None else widths)
        features = self.features(inputs, chosen.encoder)
        return {task: self.decode(features, task, width) for task, width in chosen.decoders.items() if width}

    def checked(self, widths: Widths) -> Widths:
        """Return widths, or raise RequestError where they are no choices of this network."""
        problems = Problems()
        known = self.config.choices
        if widths.encoder not in known:
            problems.add(f"encoder: width {widths.encoder:g} was not trained; there are {known}")
        for task, width in widths.decoders.items():
            if task not in self.config.outputs:
                problems.add(f"task {task!r} is unknown; there are {', '.join(self.config.outputs)}")
            elif width not in (0, *known):
                problems.add(f"decoder {task}: width {width:g} was not trained; there are {known}, or 0 for none")
        problems.raise_if_any(RequestError, "widths")
        return widths

    def exported(self, widths: Widths) -> SlimmableNetwork:
        """Return a sub-network as a dense network of its own, with copies of the slices; it has one width, 1.

        Raises RequestError for widths that were not trained, or where every task is left out.
        """
        self.checked(widths)
        tasks = [task for task, width in widths.decoders.items() if width]
        if not tasks:
            raise RequestError("every task is left out; nothing can be exported")
        encoder = tuple(_channels(size, widths.encoder) for size in self.config.encoder)
        outputs = {task: self.config.outputs[task] for task in tasks}
        decoders = {task: _channels(self.config.decoder, widths.decoders[task]) for task in tasks}
        made = SlimmableNetwork(SlimmableConfig(self.config.inputs, encoder, max(decoders.values()), outputs, (1.0,)))
        for task, size in decoders.items():
            made.decoders[task] = _Decoder(made.config, task, size=size)
        own = self.state_dict()
        for name, value in made.state_dict().items():
            value.copy_(own[name][tuple(slice(length) for length in value.shape)])
        return made

    def save(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors to a new folder, which `load_slimmable` opens, and return it."""
        from consilience.models.saving import write_tensors

        place = Path(folder)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise OutputError(f"output {place}: exists and is not an empty folder; choose another place")
        place.mkdir(parents=True, exist_ok=True)
        write_tensors(place, self.state_dict(), dtype="float32", file="model.safetensors")
        write_text_atomic(
            place / "config.json", json.dumps({"model_type": "slimmable", **asdict(self.config)}, indent=2)
        )
        return place

    def _decoder(self, task: str) -> _Decoder:
        decoder = self.decoders[task]
        assert isinstance(decoder, _Decoder)
        return decoder


class _Decoder(nn.Module):
    def __init__(self, config: SlimmableConfig, task: str, *, size: int | None = None) -> None:
        super().__init__()
        inner = config.decoder if size is None else size
        self.project = nn.Linear(config.encoder[-1], inner)
        self.norm = nn.LayerNorm(inner)
        self.output = nn.Linear(inner, config.outputs[task])


def load_slimmable(folder: str | Path) -> SlimmableNetwork:
    """Open a network that `SlimmableNetwork.save` wrote; RequestError or CheckpointError where there is none."""
    from safetensors.torch import load_file

    place = Path(folder)
    try:
        record = json.loads((place / "config.json").read_bytes())
        tensors = load_file(place / "model.safetensors")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place}: no slimmable network: {error}") from error
    if record.get("model_type") != "slimmable":
        raise CheckpointError(f"{place}: model_type is {record.get('model_type')!r}, not 'slimmable'")
    fields = {key: record[key] for key in ("inputs", "decoder", "outputs")}
    config = SlimmableConfig(**fields, encoder=tuple(record["encoder"]), choices=tuple(record["choices"]))
    network = SlimmableNetwork(config)
    for task in config.outputs:
        size = len(tensors[f"decoders.{task}.norm.weight"])
        network.decoders[task] = _Decoder(config, task, size=size)
    network.load_state_dict(tensors)
    return network


def _channels(size: int, width: float) -> int:
    return math.ceil(width * size - 1e-9)


def _linear(layer: nn.Module, inputs: Tensor, width: float) -> Tensor:
    """Apply the first channels of a linear layer to as many inputs as there are."""
    assert isinstance(layer, nn.Linear)
    rows = _channels(layer.out_features, width)
    return functional.linear(inputs, layer.weight[:rows, : inputs.shape[-1]], layer.bias[:rows])


def _normed(norm: nn.Module, values: Tensor) -> Tensor:
    assert isinstance(norm, nn.LayerNorm)
    count = values.shape[-1]
    return functional.layer_norm(values, (count,), norm.weight[:count], norm.bias[:count], norm.eps)
