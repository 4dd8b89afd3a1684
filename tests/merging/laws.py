"""The laws that methods declare, as checks that take any method: values of parameters come from its signature."""

import numpy as np

from consilience.merging.memory import merge_state_dicts
from consilience.merging.method import find_method

NARROW = {"learning_rate": (1e-7, 1e-6), "eps": (0.0, 1e-6), "tol": (1e-9, 1e-5), "epsilon": (0.0, 0.25)}
"""Ranges of parameters that mean something only when small; densities then stay within 0.3 to 0.7."""


def sample_parameters(method, experts, seed):
    """Random valid parameters for a method, read from its signature."""
    rng = np.random.default_rng(seed)
    values = {}
    parameters = find_method(method).parameters
    for name, parameter in parameters.items():
        count = len(experts) if parameter.per_expert else 1

        def draw(name=name, parameter=parameter):
            if name in NARROW or (name == "density" and "epsilon" in parameters):
                return float(rng.uniform(*NARROW.get(name, (0.3, 0.7))))
            if parameter.choices:
                return parameter.choices[rng.integers(len(parameter.choices))]
            if parameter.kind is str:
                return parameter.default  # names of experts and regular expressions
            if parameter.kind is bool:
                return bool(rng.integers(2))
            low = max(parameter.allowed.low if parameter.allowed else 0.2, 0.05)
            high = min(parameter.allowed.high if parameter.allowed else 1.5, 4.0)
            value = rng.uniform(low, high)
            return round(value) if parameter.kind is int else float(value)

        drawn = [draw() for _ in range(count)]
        values[name] = dict(zip(experts, drawn, strict=True)) if parameter.per_expert else drawn[0]
    return values


def make_models(shapes, experts, seed, dtype="float32", spread=1e-2):
    """A base and experts near it; torch tensors for bfloat16, NumPy otherwise."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def tensors(around=None):
        made = {}
        for name, shape in shapes.items():
            noise = torch.randn(shape, generator=generator)
            made[name] = (noise if around is None else around[name].float() + spread * noise).to(getattr(torch, dtype))
        return made

    base = tensors()
    return base, {name: tensors(base) for name in experts}


def sample_aux(method, models, seed):
    """Random valid artefacts for a method, for every floating-point tensor of the models (expert -> tensors)."""
    rng = np.random.default_rng(seed)
    first = next(iter(models.values()))
    floats = {n: tuple(t.shape) for n, t in first.items() if "float" in str(t.dtype)}

    def draw(declared, shape):
        expected = declared.expected(shape) if declared.expected(shape) is not None else ()
        values = rng.uniform(0.1, 1.0, expected).astype(np.float32)
        if declared.shape == "gram":
            rows = rng.standard_normal((2 * shape[-1] + 1, shape[-1]))
            values = (rows.T @ rows / max(len(rows), 1)).astype(np.float32)
        return values

    def artefact(declared):
        fits = {n: s for n, s in floats.items() if declared.shape not in ("gram", "columns") or len(s) == 2}
        return {n: draw(declared, s) for n, s in fits.items()}

    return {
        kind: {name: artefact(declared) for name in models} if declared.per_expert else artefact(declared)
        for kind, declared in find_method(method).aux.items()
    }


def write_aux(folder, aux, method):
    """Write artefacts as recipes name them and return the recipe's `aux`."""
    from safetensors.numpy import save_file

    places = {}
    for kind, held in aux.items():
        groups = held if find_method(method).aux[kind].per_expert else {"": held}
        for name, tensors in groups.items():
            place = folder / f"{kind}-{name or 'all'}"
            place.mkdir(parents=True, exist_ok=True)
            save_file({n: np.array(v, order="C") for n, v in tensors.items()}, place / f"{kind}.safetensors")
            places.setdefault(kind, {})[name] = str(place)
    return {kind: named[""] if set(named) == {""} else named for kind, named in places.items()}


def merge(method, base, models, seed=0, **values):
    """Merge in memory with random artefacts where the method needs some."""
    aux = sample_aux(method, models, seed)
    return merge_state_dicts(method, base, models, seed=seed, **({"aux": aux} if aux else {}), **values)


def same_bytes(a, b):
    """Whether two state dicts hold the same names, shapes and bytes."""
    import torch

    def raw(t):
        t = torch.as_tensor(np.asarray(t)) if not isinstance(t, torch.Tensor) else t
        return t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""

    return a.keys() == b.keys() and all(tuple(a[k].shape) == tuple(b[k].shape) and raw(a[k]) == raw(b[k]) for k in a)


def check_idempotent(method, shapes, seed, dtype):
    """Byte-equal inputs give that input."""
    experts = ["a", "b", "c"][: find_method(method).max_experts or 3]
    base, _ = make_models(shapes, experts, seed, dtype)
    values = sample_parameters(method, experts, seed)
    if "normalize" in values and find_method(method).base == "none":
        values["normalize"] = True
    if method == "passthrough":
        values["scale"] = 1.0
    merged = merge(method, base, dict.fromkeys(experts, base), seed=seed, **values)
    assert same_bytes(merged, base), method


def check_zero_weight(method, shapes, seed, dtype):
    """Weights of zero (or t = 0) give the base."""
    experts = ["a", "b", "c"][: find_method(method).max_experts or 3]
    base, models = make_models(shapes, experts, seed, dtype)
    values = sample_parameters(method, experts, seed)
    values["weight" if "weight" in values else "t"] = 0.0
    merged = merge(method, base, models, seed=seed, **values)
    assert same_bytes(merged, base), method


def check_permutation(method, shapes, seed, dtype):
    """The order in which experts are given does not matter."""
    experts = ["a", "b", "c"][: find_method(method).max_experts or 3]
    base, models = make_models(shapes, experts, seed, dtype)
    values = sample_parameters(method, experts, seed)
    aux = sample_aux(method, models, seed)
    values = {**values, **({"aux": aux} if aux else {})}
    one = merge_state_dicts(method, base, models, seed=seed, **values)
    other = merge_state_dicts(method, base, dict(reversed(models.items())), seed=seed, **values)
    assert same_bytes(one, other), method


def check_scale(method, shapes, seed, dtype):
    """Inputs multiplied by a power of two give the merge multiplied by it, to the bit.

    float16 is left out: its numbers near zero have fewer digits, so scaling them is not exact.
    """
    dtype = "float32" if dtype == "float16" else dtype
    experts = ["a", "b", "c"][: find_method(method).max_experts or 3]
    base, models = make_models(shapes, experts, seed, dtype)
    values = sample_parameters(method, experts, seed)
    if "guard" in values:
        values["guard"] = "relative"  # the published guards are absolute
    one = merge(method, base, models, seed=seed, **values)
    twice = merge(
        method,
        {k: v * 4 for k, v in base.items()},
        {n: {k: v * 4 for k, v in m.items()} for n, m in models.items()},
        seed=seed,
        **values,
    )
    assert same_bytes({k: v * 4 for k, v in one.items()}, twice), method


CHECKS = {
    "idempotent": check_idempotent,
    "zero_weight": check_zero_weight,
    "permutation": check_permutation,
    "scale": check_scale,
}
