"""Twin-Merging and RouterRetriever: what is made of bundles and routers, beside merges."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from consilience.bundles.creation import create_bundle
from consilience.bundles.routers.pilots import PilotLibrary
from tests.golden.translate import Translation, Untranslated, fixed

TWIN = "LZY-the-boys/Twin-Merging"
ROUTER = "amy-hyunji/RouterRetriever"

Groups = Mapping[str, Mapping[str, Any]]
Case = Mapping[str, Any]
Parameters = Mapping[str, Any]

KINDS = {"svd": "low_rank"}


def excluded(value: Sequence[str], experts: int) -> dict[str, Any]:
    """The reference's regular expressions, as globs."""
    if any(pattern.strip(".*").isalpha() is False for pattern in value):
        raise Untranslated(f"exclude_param {value!r}: only .*WORD.* can be said")
    return {"exclude": [f"*{pattern.strip('.*')}*" for pattern in value]}


def bundled(case: Case, groups: Groups, names: Sequence[str], parameters: Parameters, folder: str) -> Any:
    """Make the bundle of a case; patterns that match no tensor of it are left out."""
    options = dict(parameters)
    options["exclude"] = [p for p in options["exclude"] if any(p.strip("*") in name for name in groups["base"])]
    experts = {name: groups[name] for name in names}
    return create_bundle(Path(folder) / "bundle", groups["base"], experts, excluded="base", **options)


def twin(case: Case, groups: Groups, names: Sequence[str], parameters: Parameters) -> Mapping[str, Any]:
    """Make the bundle and mix its experts by the softmax of the router's outputs."""
    logits = groups["aux"]["router_logits"].astype(np.float64)
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundled(case, groups, names, parameters, folder)
        mixed = bundle.mix(dict(zip(names, weights.tolist(), strict=True)))
    return {name: value.numpy() for name, value in mixed.items()}


def check_shared(case: Case, groups: Groups, parameters: Parameters, merged: Mapping[str, Any]) -> list[str]:
    """Compare the shared expert with the published one."""
    names = sorted(name for name in groups if name.startswith("expert"))
    tolerance = case["tolerance"]
    with tempfile.TemporaryDirectory() as folder:
        shared = bundled(case, groups, names, parameters, folder).state("base")
    problems = []
    for name, wanted in groups["aux"].items():
        if not name.startswith("shared."):
            continue
        found = shared[name.removeprefix("shared.")].numpy()
        if not np.allclose(found, wanted, rtol=tolerance["rtol"], atol=tolerance["atol"]):
            problems.append(f"{name}: off by up to {np.abs(found - wanted).max():.3g}")
    return problems


def check_routes(case: Case, groups: Groups, parameters: Parameters, merged: Mapping[str, Any]) -> list[str]:
    """Build the pilots from the training scores; compare them and all four ways of routing."""
    aux = groups["aux"]
    experts = [str(place) for place in range(case["params"]["n_experts"])]
    library = PilotLibrary(
        aux["train_emb"],
        tuple(str(dataset) for dataset in aux["train_dataset"]),
        {name: aux["train_score"][:, place] for place, name in enumerate(experts)},
    )
    problems = []
    for similarity, short in (("dot", "dot"), ("cosine", "cos")):
        for rule in ("mean", "max"):
            router = library.router(parameters["k"], rule=rule, similarity=similarity)
            found = [int(name) for name in router.route(aux["query_emb"]).chosen]
            wrong = int((np.array(found) != aux[f"route_{short}_{rule}"]).sum())
            if wrong:
                problems.append(f"route_{short}_{rule}: {wrong} of {len(found)} queries go elsewhere")
    if [int(owner) for owner in router.owners] != aux["pilot_expert"].tolist():
        return [*problems, f"pilots belong to {router.owners}, not {aux['pilot_expert'].tolist()}"]
    if len(router.pilots) != case["params"]["n_pilots"] or np.abs(router.pilots - aux["pilot_emb"]).max() > 1e-4:
        problems.append(f"{len(router.pilots)} pilots, off by up to {np.abs(router.pilots - aux['pilot_emb']).max()}")
    similar = library.router(parameters["k"]).similarities(aux["query_emb"])[:, :-1]
    served = np.isfinite(similar)
    if np.abs(similar - aux["dot_mean_score"])[served].max() > 1e-4:
        problems.append("mean similarities are off by more than 1e-4")
    return problems


def nothing(value: Any, experts: int) -> dict[str, Any]:
    """A number that follows from the case."""
    return {}


TABLE: Mapping[tuple[str, str], Translation] = {
    ("twin", TWIN): Translation(
        {
            "second_merge_method": lambda value, experts: {"shared": value},
            "scaling": lambda value, experts: {"parameters": {"lambda": value}},
            "mask_strategy": lambda value, experts: {"residual": KINDS[value]},
            "mask_rate": lambda value, experts: {"density": 1 - value},
            "density": fixed("1-mask_rate"),
            "exclude_param": excluded,
        },
        merge=twin,
        extra=check_shared,
    ),
    ("router-retriever", ROUTER): Translation(
        {
            "k": lambda value, experts: {"k": value},
            "similarity": fixed("dot"),
            "n_experts": nothing,
            "n_pilots": nothing,
            "max_pilots": nothing,
        },
        extra=check_routes,
    ),
}
