"""How the result of a recipe is compared with the reference: by value, by token, by statistics, by its chat."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from consilience.checkpoints.open import open_checkpoint
from consilience.merging import vocabulary
from consilience.merging.chat_templates import model_template

Tensors = Mapping[str, torch.Tensor]


def read_vocabulary(folder: Path) -> Mapping[str, int]:
    """Return the tokens of a merged folder."""
    return vocabulary.read_vocabulary(open_checkpoint(folder)).tokens


def compare_tensors(
    ours: Tensors, theirs: Tensors, expected: Mapping[str, Any], tokens: Mapping[str, int]
) -> list[str]:
    """Compare names, shapes, stored types and values; rows of tokens by token where vocabularies are merged."""
    problems = []
    if set(ours) != set(theirs):
        problems.append(f"tensors only in one of the two: {sorted(set(ours) ^ set(theirs))[:5]}")
    facts = expected.get("tensors") or {}
    off = total = 0
    examples = []
    for name in sorted(set(ours) & set(theirs)):
        mine, other = ours[name], theirs[name]
        if mine.shape != other.shape:
            problems.append(f"{name}: shape {list(mine.shape)}, not {list(other.shape)}")
            continue
        if mine.dtype != other.dtype:
            problems.append(f"{name}: stored as {mine.dtype}, not {other.dtype}")
        tolerance = facts.get(name) or expected["tolerance"]
        wrong = _wrong(mine.double(), other.double(), tolerance, expected, tokens, name)
        off, total = off + wrong, total + mine.numel()
        if wrong:
            examples.append(f"{name}: {wrong} of {mine.numel()}")
    if off > expected.get("allowed_mismatch_fraction", 0.0) * total:
        problems.append(f"{off} of {total} elements off ({', '.join(examples[:4])})")
    return problems


def _wrong(
    mine: torch.Tensor,
    other: torch.Tensor,
    tolerance: Mapping[str, float],
    expected: Mapping[str, Any],
    tokens: Mapping[str, int],
    name: str,
) -> int:
    """Return how many elements are beyond the tolerance."""
    if vocabulary.is_vocabulary_name(name):
        reference = (expected.get("tokenizer") or {}).get("vocab")
        if reference:
            common = [token for token in reference if token in tokens]
            if len(common) != len(reference):
                return mine.numel()
            rest = len(reference)
            mine = torch.cat((mine[[tokens[token] for token in common]], mine[rest:]))
            other = torch.cat((other[[reference[token] for token in common]], other[rest:]))
        elif expected.get("tokens"):  # the reference's order of tokens is unknown: every row must be somewhere
            mine = mine[torch.cdist(other, mine).argmin(dim=1)]
    allowed = tolerance["atol"] + tolerance["rtol"] * other.abs()
    return int((~((mine - other).abs() <= allowed)).sum())


def compare_statistics(ours: Tensors, full: Tensors, base: Tensors, facts: Mapping[str, Any]) -> list[str]:
    """Compare a merge with random masks with the merge without dropping, on the changes from the base."""
    problems = []
    kept = size = 0
    dot = square = 0.0
    for name, whole in full.items():
        change = whole.double() - base[name].double()
        mine = ours[name].double() - base[name].double()
        real = change.abs() > 1e-7
        stays = (mine.abs() > 1e-9) & real
        kept, size = kept + int(stays.sum()), size + int(real.sum())
        dot, square = dot + float((mine * change).sum()), square + float((change * change).sum())
        if not facts.get("single") or not int(stays.sum()):
            continue
        ratio = mine[stays] / change[stays]
        weighed = float((ratio * change[stays].abs()).sum() / change[stays].abs().sum())
        if float(((ratio - weighed).abs() * change[stays].abs()).max()) > 1e-5:
            problems.append(f"{name}: kept entries are not one multiple of the change")
        if facts.get("l1", True):
            norms = float(mine.abs().sum()), float(change.abs().sum())
            if abs(norms[0] - norms[1]) > 1e-3 * norms[1]:
                problems.append(f"{name}: the sum of magnitudes is {norms[0]:.6g}, not {norms[1]:.6g}")
    share, density = kept / size, facts["density"]
    if abs(share - density) > 5 * math.sqrt(density * (1 - density) / size):
        problems.append(f"{share:.4f} of the entries are kept, not {density}")
    low, high = facts["slope"]
    if not low <= dot / square <= high:
        problems.append(f"the projection on the undropped change is {dot / square:.4f}, not in [{low}, {high}]")
    return problems


def chat_problems(folder: Path, chat: Mapping[str, Any]) -> list[str]:
    """Render the chat template of a folder as transformers does, and compare."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = model_template(folder)
    if template is None:
        return ["no chat template"]
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    special = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(template).render(messages=chat["messages"], add_generation_prompt=False, **special)
    wanted = [option.strip() for option in chat["rendered_any_of"]]
    return [] if text.strip() in wanted else [f"the chat template writes {text!r}, not {wanted}"]
