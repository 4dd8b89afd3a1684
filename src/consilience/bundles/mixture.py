"""A sparse mixture of experts from dense models: attention, norms and embeddings of the base, one feed-forward expert
per model, and a router per layer.

The output is an ordinary model folder that transformers and servers load. Everything but the routers is copied from
the inputs as it is stored, so N copies of one model give that model back. Whether prompts make a good router is not
known before it is measured; `consilience eval` and a few steps of training tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.bundles.mixture_config import MixtureRequest, load_mixture
from consilience.bundles.mixture_gates import gate_rows
from consilience.bundles.mixture_layouts import (
    PROJECTIONS,
    Layout,
    choose_layout,
    config_problems,
    mixture_config,
)
from consilience.checkpoints.dtypes import DTYPES, encode, torch_name
from consilience.checkpoints.layers import find_layers
from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.open import open_checkpoint
from consilience.checkpoints.sources import Source
from consilience.checkpoints.writer import OutputTensor, plan_shards
from consilience.core.hashing import fingerprint, xxh3_hex
from consilience.core.jobs import Budget, check_output
from consilience.errors import ConsilienceError, Problems, RecipeError
from consilience.merging.engine import MergeResult, run_plan
from consilience.merging.memory import InMemory
from consilience.merging.plan import Plan
from consilience.merging.request import MergeRequest
from consilience.merging.task import DEFAULT_CHUNK, TensorTask

__all__ = ["make_mixture"]

_MLP = re.compile(r"(?P<layer>.*\.\d+\.)mlp\.(?P<projection>gate_proj|up_proj|down_proj)\.weight")
Gates = NDArray[np.float32]
_NO_SHARED = 8
"""Width of the shared expert of zeros where the layout demands one and none is wanted."""


@dataclass(frozen=True)
class _Opened:
    """What the file names, opened and checked."""

    layout: Layout
    base: Checkpoint
    experts: tuple[Checkpoint, ...]
    shared: Checkpoint | None
    layers: tuple[str, ...]


def make_mixture(
    request: MixtureRequest | str | Path,
    out: str | Path,
    *,
    device: str | None = None,
    workers: int = 1,
    budget: Budget | None = None,
    progress: bool | None = None,
) -> MergeResult:
    """Build the mixture that a file (or request) describes in the folder `out`; resumes after an interruption.

    The file is in mergekit-moe's language; see `load_mixture`. Layouts: mixtral from llama and mistral models, qwen2
    and qwen3 from models of those types. Router rows come from the prompts' hidden states ("hidden"; the base runs on
    `device`), from the embeddings of their tokens ("cheap_embed"), or are random.

    A qwen2 layout always has a shared expert: the one named under shared_experts, whose share is its residual_scale
    (where it has prompts, its sigmoid gate follows them), or one of zeros. Raises RecipeError listing all problems:
    models of other sizes or types, features that the layout cannot say; nothing is read before.
    """
    asked = request if isinstance(request, MixtureRequest) else load_mixture(request)
    place = Path(out)
    opened = _open(asked, place)
    hidden = int(opened.base.config["hidden_size"])
    described = [*asked.experts]
    if asked.shared is not None and asked.shared.positive and asked.gate_mode != "random":
        described.append(asked.shared)
    layers = len(opened.layers)
    gates = gate_rows(asked.gate_mode, opened.base, described, layers, hidden, seed=asked.seed, device=device)
    plan = _plan(asked, opened, gates, place, workers)
    return run_plan(plan, budget=budget, progress=progress)


def _open(request: MixtureRequest, out: Path) -> _Opened:
    problems = Problems()
    problems.extend(check_output(out))
    listed = {"base_model": request.base}
    listed |= {f"experts[{i}]": expert.model for i, expert in enumerate(request.experts)}
    if request.shared is not None:
        listed["shared_experts[0]"] = request.shared.model
    models: dict[str, Checkpoint] = {}
    for where, reference in listed.items():
        near = Path.cwd() if (Path.cwd() / reference.split("+")[0]).exists() else request.folder
        try:
            models[where] = open_checkpoint(reference, relative_to=near)
        except ConsilienceError as error:
            problems.add(f"{where}: {error}")
    problems.raise_if_any(RecipeError, "mixture")
    base = models["base_model"]
    layout, wrong = choose_layout(request.architecture, base)
    if layout is None:
        raise RecipeError(f"mixture: {wrong}")
    for where, model in models.items():
        kind = str(model.config.get("model_type"))
        if kind not in layout.dense:
            problems.add(
                f"{where}: {model.reference} is of type {kind!r}; this layout takes {' or '.join(layout.dense)}"
            )
        problems.extend(f"{where}: {text}" for text in config_problems(layout, model.config))
        problems.extend(f"{where}: {text}" for text in _differences(model, base))
    if request.shared is not None and not layout.shared:
        problems.add(f"shared_experts: the {layout.name} layout has no shared expert; leave it out")
    scheme = find_layers(base.tensors, base.config)
    if len(scheme.containers) != 1:
        problems.add(f"base_model: expected one stack of layers, found {', '.join(scheme.containers) or 'none'}")
    problems.raise_if_any(RecipeError, "mixture")
    container = next(iter(scheme.containers))
    layers = tuple(f"{container}{index}." for index in range(scheme.count))
    wanted = [f"{layer}mlp.{projection}.weight" for layer in layers for projection in PROJECTIONS]
    if absent := [name for name in wanted if name not in base.tensors]:
        named = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
        raise RecipeError(
            f"mixture: base_model: {base.reference} lacks {named}; its layers are not those of {layout.name}"
        )
    experts = tuple(models[f"experts[{i}]"] for i in range(len(request.experts)))
    return _Opened(layout, base, experts, models.get("shared_experts[0]"), layers)


def _differences(model: Checkpoint, base: Checkpoint) -> list[str]:
    """Return what of a model's feed-forward layers does not fit the base's."""
    problems = []
    wanted = {n: tuple(t.shape) for n, t in base.tensors.items() if _MLP.fullmatch(n)}
    found = {n: tuple(t.shape) for n, t in model.tensors.items() if _MLP.fullmatch(n)}
    if not wanted:
        return ["no feed-forward layers (mlp.gate_proj, up_proj, down_proj) are in the base"]
    absent = [name for name in wanted if name not in found]
    if absent or len(found) != len(wanted):
        extra = len(found.keys() - wanted.keys())
        problems.append(f"{len(absent)} feed-forward matrices are missing, {extra} are extra; use models of one depth")
    other = [name for name in wanted if name in found and found[name] != wanted[name]]
    if other:
        shapes = f"{list(found[other[0]])}, the base's {list(wanted[other[0]])}"
        problems.append(f"{other[0]} has shape {shapes}; use models of one size")
    return problems


def _plan(request: MixtureRequest, opened: _Opened, gates: Gates, out: Path, workers: int) -> Plan:
    made = _made_tensors(request, opened, gates)
    sources = _sources(opened, made)
    tasks = []
    for name, source in sources.items():
        is_float = DTYPES[source.dtype].kind == "float"
        tasks.append(
            TensorTask(
                name, tuple(source.shape), request.dtype or source.dtype if is_float else source.dtype, copy=source
            )
        )
    shards = plan_shards([OutputTensor(t.name, t.dtype, t.shape) for t in tasks])
    models = {"base": opened.base, **{f"expert {i}": model for i, model in enumerate(opened.experts)}}
    if opened.shared is not None:
        models["shared expert"] = opened.shared
    width = opened.base.config["intermediate_size"] if opened.shared is not None else _NO_SHARED
    count, per_token = len(opened.experts), request.experts_per_token
    config = mixture_config(opened.layout, opened.base.config, count, per_token, width)
    if request.dtype is not None:
        config["torch_dtype"] = torch_name(request.dtype)
    facts = {
        "mixture": opened.layout.name,
        "models": {name: model.fingerprint for name, model in models.items()},
        "gates": xxh3_hex(np.ascontiguousarray(gates)),
        "tasks": [[t.name, t.shape, t.dtype, str(t.copy) if t.name not in made else ""] for t in tasks],
        "experts_per_token": per_token,
    }
    merge = MergeRequest(
        f"mixture ({opened.layout.name}, gates {request.gate_mode})",
        {name: model.reference for name, model in models.items()},
        tuple(name for name in models if name != "base"),
        "base",
        seed=request.seed,
        folder=request.folder,
        text=request.text,
    )
    written = sum(shard.size for shard in shards)
    read = sum(task.pass_bytes for task in tasks)
    memory = workers * DEFAULT_CHUNK * 16
    identity = fingerprint(facts)
    return Plan(
        merge, out, opened.base, models, tuple(tasks), shards, config, {}, (), read, written, memory, workers, identity
    )


def _made_tensors(request: MixtureRequest, opened: _Opened, gates: Gates) -> dict[str, Source]:
    """Return the routers, and what stands for a shared expert where the layout demands one."""
    layout, hidden = opened.layout, int(opened.base.config["hidden_size"])
    dtype = request.dtype or opened.base.tensors[f"{opened.layers[0]}mlp.gate_proj.weight"].dtype
    made: dict[str, Source] = {}
    for place, layer in enumerate(opened.layers):
        made[layout.gate(layer)] = _stored(gates[place, : len(opened.experts)], dtype)
        if not layout.shared:
            continue
        row = np.zeros((1, hidden), np.float32)
        if gates.shape[1] > len(opened.experts):
            row = gates[place, -1:]
        made[layout.shared_gate(layer)] = _stored(row, dtype)
        if opened.shared is None:
            for projection in PROJECTIONS:
                shape = (hidden, _NO_SHARED) if projection == "down_proj" else (_NO_SHARED, hidden)
                made[layout.shared_expert(layer, projection)] = _stored(np.zeros(shape, np.float32), dtype)
    if opened.shared is not None and request.shared is not None:
        gated = bool(request.shared.positive)
        scale = request.shared.residual_scale * (1.0 if gated else 2.0)  # a gate of zeros lets half of it through
        for layer in opened.layers:
            source = opened.shared.tensors[f"{layer}mlp.down_proj.weight"]
            values = np.empty(source.numel, np.float32)
            source.read(0, source.numel, values)
            scaled = (values * np.float32(scale)).reshape(source.shape)
            made[layout.shared_expert(layer, "down_proj")] = _stored(scaled, dtype)
    return made


def _stored(values: np.ndarray[Any, Any], dtype: str) -> Source:
    raw = np.empty(values.size, DTYPES[dtype].storage)
    encode(np.ascontiguousarray(values, np.float32).reshape(-1), dtype, raw)
    return InMemory(raw, dtype, tuple(values.shape))


def _sources(opened: _Opened, made: Mapping[str, Source]) -> dict[str, Source]:
    """Return every output tensor in the order of the base's files."""
    layout = opened.layout
    sources: dict[str, Source] = {}
    for name, source in opened.base.tensors.items():
        match = _MLP.fullmatch(name)
        if match is None:
            sources[name] = source
            continue
        layer, projection = match["layer"], match["projection"]
        for own in (layout.gate(layer), layout.shared_gate(layer), layout.shared_expert(layer, projection)):
            if own in made:
                sources.setdefault(own, made[own])
        for index, expert in enumerate(opened.experts):
            sources[layout.expert(layer, index, projection)] = expert.tensors[name]
        if opened.shared is not None:
            sources.setdefault(layout.shared_expert(layer, projection), opened.shared.tensors[name])
    return sources
