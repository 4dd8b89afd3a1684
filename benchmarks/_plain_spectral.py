"""The spectral methods as their formulas stand: `torch.linalg.svd` of whole matrices, one tensor after the other.

`python benchmarks/_plain_spectral.py METHOD DEVICE OUT BASE EXPERT...` reads safetensors files (or LoRA folders for
knots), merges and writes OUT.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

_SVD = torch.linalg.svd


def polar(matrix: Tensor) -> Tensor:
    """Return the polar factor."""
    try:
        u, _, v = _SVD(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # float32 does not converge for some stacks of nearly orthogonal vectors
        u, _, v = (part.float() for part in _SVD(matrix.double(), full_matrices=False))
    return u @ v


def tsv(taus: list[Tensor], kept: int | None = None, weights: list[float] | None = None) -> Tensor:
    """Keep the leading triplets of each, orthogonalise."""
    kept = kept or min(taus[0].shape) // len(taus)
    us, ss, vs = [], [], []
    for i, tau in enumerate(taus):
        u, s, v = _SVD(tau, full_matrices=False)
        us.append(u[:, :kept])
        ss.append(s[:kept] * (weights[i] if weights else 1.0))
        vs.append(v[:kept])
    return torch.linalg.multi_dot((polar(torch.cat(us, 1)), torch.diag(torch.cat(ss)), polar(torch.cat(vs))))


def iso_c(taus: list[Tensor]) -> Tensor:
    """Make the directions of the sum equally long."""
    u, s, v = _SVD(torch.stack(taus).sum(0), full_matrices=False)
    return s.mean() * (u @ v)


def iso_cts(taus: list[Tensor], fraction: float = 0.8) -> Tensor:
    """Common directions and each expert's own, equally long."""
    room = min(taus[0].shape)
    own = round((room - int(room * fraction)) / len(taus))
    common = room - own * len(taus)
    u, s, v = _SVD(torch.stack(taus).sum(0), full_matrices=False)
    u, s, v = u[:, :common], s[:common], v[:common]
    us, ss, vs = [], [], []
    for tau in taus:
        left, values, right = _SVD(tau - u @ (u.T @ tau), full_matrices=False)
        us.append(left[:, :own])
        ss.append(values[:own])
        vs.append(right[:own])
    return torch.cat([*ss, s]).mean() * polar(torch.cat([*us, u], 1)) @ polar(torch.cat([*vs, v]))


def r_tsvm(taus: list[Tensor], scales: list[float]) -> Tensor:
    """TSV-M, weighed by outliers and of a rank that follows sparsity."""
    masses, shares = [], []
    for tau, scale in zip(taus, scales, strict=True):
        size = tau.abs()
        limit = size.mean(dtype=torch.float64) + 3.0 * size.double().std(unbiased=False)
        masses.append(float(size[size > limit].sum()))
        shares.append(float((size < 0.1 * scale).double().mean()))
    room = min(taus[0].shape) // len(taus)
    kept = min(max(round(room * (1 - sum(shares) / len(shares))), 1), room)
    weights = [len(taus) * mass / sum(masses) for mass in masses] if all(masses) else [1.0] * len(taus)
    return tsv(taus, kept, weights)


def knots(deltas: dict[str, list[Tensor]], density: float = 0.2) -> dict[str, Tensor]:
    """TIES on the components in a shared basis; decompositions in float64."""
    bases, parts = {}, {}
    for name in sorted(deltas):
        u, s, v = _SVD(torch.cat(deltas[name], 1).double(), full_matrices=False)
        kept = s > 1e-5
        bases[name] = u[:, kept].float()
        parts[name] = (torch.diag(s[kept]) @ v[kept]).float().chunk(len(deltas[name]), 1)
    count = len(next(iter(deltas.values())))
    flat = torch.stack([torch.cat([parts[n][i].reshape(-1) for n in bases]) for i in range(count)])
    size = flat.shape[1]
    limits = flat.abs().kthvalue(size - int(size * density), dim=1, keepdim=True)[0]
    flat = flat * (flat.abs() >= limits)
    flat = flat * (flat.sign() == flat.sum(0).sign())
    merged = flat.sum(0) / (flat != 0).sum(0).clamp(min=1)
    changes, start = {}, 0
    for name, basis in bases.items():
        rows, columns = basis.shape[1], parts[name][0].shape[1]
        changes[name] = basis @ merged[start : start + rows * columns].reshape(rows, columns)
        start += rows * columns
    return changes


def lora_deltas(folders: list[Path], device: str) -> dict[str, list[Tensor]]:
    """Return the task matrices of LoRA folders, by tensor."""
    deltas: dict[str, list[Tensor]] = {}
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_text())
        factors = load_file(folder / "adapter_model.safetensors", device=device)
        for key in sorted(key for key in factors if key.endswith(".lora_A.weight")):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") + ".weight"
            b = factors[key.replace("lora_A", "lora_B")].float()
            deltas.setdefault(name, []).append(b @ factors[key].float() * (config["lora_alpha"] / config["r"]))
    return deltas


def main() -> None:
    """Merge the files named on the command line."""
    method, device, out, *inputs = sys.argv[1:]
    base, *experts = [safe_open(path, "pt", device=device) for path in inputs[: 1 if method == "knots" else None]]
    merged = {}
    changes = knots(lora_deltas([Path(path) for path in inputs[1:]], device)) if method == "knots" else {}

    def deltas(name: str, start: Tensor) -> list[Tensor]:
        return [expert.get_tensor(name).float() - start for expert in experts]

    names = list(base.keys())
    scales = [0.0] * len(experts)
    entries = 0
    for name in names if method == "r_tsvm" else ():
        start = base.get_tensor(name).float()
        entries += start.numel()
        for i, tau in enumerate(deltas(name, start)):
            scales[i] += float(tau.double().square().sum())
    scales = [(square / max(entries, 1)) ** 0.5 for square in scales]
    for name in names:
        start = base.get_tensor(name).float()
        if method == "knots":
            change = changes.get(name, torch.zeros_like(start))
        elif method == "r_tsvm":
            change = r_tsvm(deltas(name, start), scales)
        else:
            change = {"tsv": tsv, "iso_c": iso_c, "iso_cts": iso_cts}[method](deltas(name, start))
        merged[name] = (start + change).bfloat16().cpu()
    save_file(merged, out)


if __name__ == "__main__":
    main()
