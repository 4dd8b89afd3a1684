"""Methods that weigh or choose by what is known of experts: metrics of training, the rank or size of their changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consilience.merging.memory import merge_state_dicts
from tests.golden.translate import MERGEKIT, Translation, plain, same, without_effect


def weights_agree(
    facts: Mapping[str, Any], groups: Any, parameters: Mapping[str, Any], merged: Mapping[str, Any]
) -> list[str]:
    """The weights that a case states are those that its values have here."""
    found: dict[str, dict[str, Any]] = {}
    names = sorted((name for name in groups if name.startswith("expert")), key=lambda name: int(name[6:]))
    merge_state_dicts("mwa", None, {name: groups[name] for name in names}, facts=found, **parameters)
    stated = dict(zip(names, facts["params"]["weights"], strict=True))
    expected = [stated[name] for name in sorted(names)]
    off = max(abs(a - b) for told in found.values() for a, b in zip(told["weights"], expected, strict=True))
    return [] if off < 1e-12 else [f"weights off by up to {off:.3g}"]


TABLE: Mapping[tuple[str, str], Translation] = {
    ("widen", "yule-BUAA/MergeLLM"): Translation(plain("above_average_value_ratio", "score_calibration_value")),
    ("mwa", "none"): Translation(
        {**plain("metric", "penalty_factor"), "values": same("value"), "weights": without_effect}, extra=weights_agree
    ),
    ("arcee_fusion", MERGEKIT): Translation({}),
    ("codiemb", "RECONSTRUCTION"): Translation(
        {**plain("granularity"), "n_experts": without_effect}, method="delta_guided"
    ),
}
