"""Which tensor of a checkpoint belongs to which parameter of an encoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from consilience.errors import CheckpointError, Problems

__all__ = ["match_names"]

_HEADS = ("pooler", "cls", "lm_head", "classifier", "score", "qa_outputs", "predictions", "discriminator_predictions")
_SHOWN = 8


def match_names(
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    *,
    prefix: str,
    buffers: Collection[str] = (),
    unused: Sequence[str] = (),
    subject: str,
) -> dict[str, str]:
    """Return the tensor name of each wanted parameter.

    >>> wanted = {"encoder.weight": (2, 2), "norm.LayerNorm.bias": (2,)}
    >>> found = {"bert.encoder.weight": (2, 2), "bert.norm.LayerNorm.beta": (2,), "cls.bias": (9,)}
    >>> match_names(wanted, found, prefix="bert", subject="a model")
    {'encoder.weight': 'bert.encoder.weight', 'norm.LayerNorm.bias': 'bert.norm.LayerNorm.beta'}

    A tensor may carry the `prefix` under which a model with a head keeps its encoder, and LayerNorm the older names
    gamma and beta. Tensors of heads and poolers (`unused` names more first parts) and of `buffers` need no parameter.
    Raises CheckpointError listing missing tensors, tensors that belong nowhere, and shapes that differ.
    """
    matched: dict[str, str] = {}
    missing: list[str] = []
    problems = Problems()
    for name, shape in wanted.items():
        tensor = next((one for one in _spellings(name, prefix) if one in found), None)
        if tensor is None:
            missing.append(name)
        elif tuple(found[tensor]) != tuple(shape):
            problems.add(f"tensor {tensor} has shape {list(found[tensor])}, the config asks for {list(shape)}")
        else:
            matched[name] = tensor
    if missing:
        problems.add(f"missing tensors ({len(missing)}): {_some(missing)}")
    used = set(matched.values())
    headed = any(tensor.startswith(prefix + ".") for tensor in used)
    strange = []
    for tensor in found:
        own = tensor.removeprefix(prefix + ".")
        foreign = headed and own == tensor  # beside the encoder: the head of a model with a head
        first = own.split(".", 1)[0]
        if tensor not in used and not foreign and own not in buffers and first not in (*_HEADS, *unused):
            strange.append(tensor)
    if strange and not problems:
        problems.add(f"tensors that no parameter of this architecture takes ({len(strange)}): {_some(strange)}")
    elif strange:
        problems.add(f"tensors left over ({len(strange)}): {_some(strange)}")
    problems.raise_if_any(CheckpointError, subject)
    return matched


def _spellings(name: str, prefix: str) -> list[str]:
    older = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    names = [name, f"{prefix}.{name}"]
    return names if older == name else [*names, older, f"{prefix}.{older}"]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, ... and {len(names) - _SHOWN} more"
