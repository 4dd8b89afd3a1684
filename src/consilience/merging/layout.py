"""Which output tensors a merge has, and which tensor of which model each is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from consilience.checkpoints.layers import LayerScheme, find_layers
from consilience.checkpoints.model import Checkpoint
from consilience.errors import Problems
from consilience.merging.method import find_method
from consilience.merging.parameters import matches
from consilience.merging.request import MergeRequest, Slice

__all__ = ["Origin", "lay_out", "roles"]

_FIRST = ("embed", "wte", "wpe", "shared.weight")


@dataclass(frozen=True)
class Origin:
    """One output tensor: the tensor of each expert (name to name), of the base, and its place in the layers."""

    name: str
    experts: Mapping[str, str]
    base: tuple[str, str] | None
    slice: int = 0
    position: float = 0.0


def lay_out(
    request: MergeRequest, models: Mapping[str, Checkpoint], problems: Problems, notices: list[str]
) -> tuple[list[Origin], int | None]:
    """Return the output tensors in the order of the donor's files, and the layer count where slices change it.

    Records missing and extra tensors, tied and untied inputs, and layer ranges beyond a model's depth.
    """
    if request.slices is not None:
        return _sliced(request, models, request.slices, problems)
    donor = request.base or request.experts[0]
    left: dict[str, int] = {}
    for name in dict.fromkeys((*request.experts, *([request.base] if request.base else []))):
        if name != donor:
            problems.extend(_differences(request, name, models[name], donor, models[donor], left))
    notices.extend(
        f"{count} tensor(s) of model {name!r} are no part of the merge (tensors.merge, tensors.copy) and are left out"
        for name, count in left.items()
    )
    scheme = find_layers(models[donor].tensors, models[donor].config)
    origins = []
    for tensor in models[donor].tensors:
        experts = {e: tensor for e in request.experts if tensor in models[e].tensors}
        base = (request.base, tensor) if request.base else None
        origins.append(Origin(tensor, experts, base, 0, _position(scheme, tensor)))
    return origins, None


def _position(scheme: LayerScheme, tensor: str) -> float:
    place = scheme.split(tensor)
    if place is None:
        return 0.0
    count = scheme.count
    return place[1] / (count - 1) if count > 1 else 1.0


def _differences(
    request: MergeRequest, name: str, model: Checkpoint, donor: str, reference: Checkpoint, left: dict[str, int]
) -> list[str]:
    """Return which tensors that are to be merged are not in both; counts in `left` what a model has beyond them."""
    missing = [t for t in reference.tensors if t not in model.tensors and is_merged(request, t)]
    extra = [t for t in model.tensors if t not in reference.tensors and is_merged(request, t)]
    beyond = sum(t not in reference.tensors for t in model.tensors) - len(extra)
    if beyond:
        left[name] = beyond
    problems = []
    for kept, dropped, names, tied in ((donor, name, missing, model.tied), (name, donor, extra, reference.tied)):
        for tensor in [t for t in names if t in tied]:
            problems.append(
                f"model {dropped!r} ties {tensor!r} to {tied[tensor]!r} while {kept!r} stores it; "
                f"untie it in {dropped!r} or tie it in {kept!r}, so that all inputs agree"
            )
            names.remove(tensor)
    if missing:
        problems.append(f"model {name!r} lacks {_listed(missing)} that {donor!r} has; merge models of one architecture")
    if extra:
        problems.append(f"model {name!r} has {_listed(extra)} that {donor!r} lacks; merge models of one architecture")
    return problems


def is_merged(request: MergeRequest, tensor: str) -> bool:
    """Whether the recipe's name patterns let a tensor be merged (tensors that no expert changes are copied)."""
    if any(matches(pattern, tensor) for pattern in request.copy):
        return False
    return not request.merge or any(matches(pattern, tensor) for pattern in request.merge)


def _listed(names: list[str]) -> str:
    kinds: dict[str, str] = {}
    for name in names:  # one example of each kind of tensor says more than ten layers of the same
        kinds.setdefault(".".join(part for part in name.split(".") if not part.isdigit()), name)
    shown = list(kinds.values())[:6]
    return f"{len(names)} tensor(s) ({', '.join(shown)}{', ...' if len(names) > len(shown) else ''})"


def _sliced(
    request: MergeRequest, models: Mapping[str, Checkpoint], slices: tuple[Slice, ...], problems: Problems
) -> tuple[list[Origin], int | None]:
    schemes = {name: find_layers(model.tensors, model.config) for name, model in models.items()}
    for index, part in enumerate(slices):
        for source in part.sources:
            scheme = schemes[source.model]
            if len(scheme.containers) != 1:
                found = ", ".join(scheme.containers) or "none"
                problems.add(f"slices[{index}]: model {source.model!r} must have one stack of layers, found {found}")
            elif source.stop > scheme.count:
                problems.add(
                    f"slices[{index}]: layer_range [{source.start}, {source.stop}) goes beyond model "
                    f"{source.model!r}, which has {scheme.count} layers"
                )
    if problems:
        return [], None
    total = sum(part.sources[0].stop - part.sources[0].start for part in slices)
    first, last = slices[0], slices[-1]
    donor = first.sources[0].model
    outside = [t for t in models[donor].tensors if schemes[donor].split(t) is None]
    before = [t for t in outside if any(word in t for word in _FIRST)]
    origins = [_outside(request, models, t, first, 0, problems) for t in before]
    offset = 0
    for index, part in enumerate(slices):
        origins.extend(_layers(request, models, schemes, part, index, offset, problems))
        offset += part.sources[0].stop - part.sources[0].start
    after = [t for t in outside if t not in before]
    origins.extend(_outside(request, models, t, last, len(slices) - 1, problems) for t in after)
    return origins, total


def roles(request: MergeRequest, part: Slice) -> tuple[list[tuple[str, int]], tuple[str, int] | None]:
    """Return (expert, first layer) pairs and the base with its first layer."""
    base = part.base or request.base
    apart = find_method(request.method).base != "none"
    experts = [(s.model, s.start) for s in part.sources if not (apart and s.model == base)]
    if base is None:
        return experts, None
    own = next((s.start for s in part.sources if s.model == base), part.sources[0].start)
    return experts, (base, own)


def _layers(
    request: MergeRequest,
    models: Mapping[str, Checkpoint],
    schemes: Mapping[str, LayerScheme],
    part: Slice,
    index: int,
    offset: int,
    problems: Problems,
) -> list[Origin]:
    lead = part.sources[0]
    experts, base = roles(request, part)
    length = lead.stop - lead.start
    scheme = schemes[lead.model]
    by_layer: dict[int, list[str]] = {}
    for tensor in models[lead.model].tensors:
        if (place := scheme.split(tensor)) is not None:
            by_layer.setdefault(place[1], []).append(tensor)
    origins = []
    for step in range(length):
        for tensor in by_layer.get(lead.start + step, []):
            found = {}
            for name, start in (*experts, *([base] if base else [])):
                source = scheme.rename(tensor, start + step)
                if source not in models[name].tensors:
                    problems.add(f"slices[{index}]: model {name!r} lacks {source!r} that {lead.model!r} has")
                found[name] = source
            origins.append(
                Origin(
                    scheme.rename(tensor, offset + step),
                    {name: found[name] for name, _ in experts},
                    (base[0], found[base[0]]) if base else None,
                    index,
                    step / (length - 1) if length > 1 else 1.0,
                )
            )
    return origins


def _outside(
    request: MergeRequest,
    models: Mapping[str, Checkpoint],
    tensor: str,
    part: Slice,
    index: int,
    problems: Problems,
) -> Origin:
    experts, base = roles(request, part)
    for name in (*(e for e, _ in experts), *([base[0]] if base else [])):
        if tensor not in models[name].tensors:
            problems.add(f"slices[{index}]: model {name!r} lacks {tensor!r} that the first model has")
    return Origin(tensor, {e: tensor for e, _ in experts}, (base[0], tensor) if base else None, index, 0.0)
