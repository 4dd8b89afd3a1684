"""Sparse mixtures as released models store them: names of tensors and the config of each family.

All families renormalise the weights of the chosen experts, so copies of one expert give that expert back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from consilience.checkpoints.model import Checkpoint
from consilience.errors import did_you_mean

__all__ = ["LAYOUTS", "Layout", "choose_layout", "config_problems", "mixture_config"]

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Layout:
    """One family of mixtures.

    `dense` are the model types it can be built from; `block` stands for `mlp` in the names of a layer; `names` are
    those of the three projections; `shared`: whether each layer also has an expert that all tokens pass.
    """

    name: str
    model_type: str
    architecture: str
    dense: tuple[str, ...]
    block: str
    names: Mapping[str, str]
    shared: bool = False

    def expert(self, layer: str, index: int, projection: str) -> str:
        """Return the name of an expert's matrix; `layer` is the dense layer's prefix, "model.layers.0."."""
        return f"{layer}{self.block}.experts.{index}.{self.names[projection]}.weight"

    def gate(self, layer: str) -> str:
        """Return the name of a layer's router matrix (experts, hidden)."""
        return f"{layer}{self.block}.gate.weight"

    def shared_expert(self, layer: str, projection: str) -> str:
        """Return the name of a matrix of the expert that all tokens pass."""
        return f"{layer}{self.block}.shared_expert.{projection}.weight"

    def shared_gate(self, layer: str) -> str:
        """Return the name of the row whose sigmoid weighs the shared expert."""
        return f"{layer}{self.block}.shared_expert_gate.weight"


_PLAIN = {name: name for name in PROJECTIONS}
LAYOUTS = {
    "mixtral": Layout(
        "mixtral",
        "mixtral",
        "MixtralForCausalLM",
        ("llama", "mistral"),
        "block_sparse_moe",
        {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    ),
    "qwen2": Layout("qwen2", "qwen2_moe", "Qwen2MoeForCausalLM", ("qwen2",), "mlp", _PLAIN, shared=True),
    "qwen3": Layout("qwen3", "qwen3_moe", "Qwen3MoeForCausalLM", ("qwen3",), "mlp", _PLAIN),
}


def choose_layout(written: str, base: Checkpoint) -> tuple[Layout | None, str | None]:
    """Return the layout asked for, or the one that fits the base, or what is wrong."""
    kind = str(base.config.get("model_type"))
    wanted = written.lower().removesuffix("_moe").removesuffix("moe") if written else ""
    if wanted == "qwen":
        wanted = kind if kind in LAYOUTS else "qwen2"
    if wanted and wanted not in LAYOUTS:
        reason = " (its dense first layers and expert groups are not built here)" if "deepseek" in wanted else ""
        return None, f"architecture: {written!r} is none of {', '.join(LAYOUTS)}{did_you_mean(wanted, LAYOUTS)}{reason}"
    fitting = [layout for layout in LAYOUTS.values() if kind in layout.dense]
    if not fitting:
        return None, (
            f"base_model: {base.reference} is of type {kind!r}; mixtures are built from "
            f"{', '.join(sorted(k for layout in LAYOUTS.values() for k in layout.dense))} models"
        )
    layout = LAYOUTS[wanted] if wanted else fitting[0]
    if kind not in layout.dense:
        return None, (
            f"architecture: {layout.name!r} is built from {' or '.join(layout.dense)} models, the base is of type "
            f"{kind!r}; use {fitting[0].name}"
        )
    return layout, None


def config_problems(layout: Layout, config: Mapping[str, Any]) -> list[str]:
    """Return why a dense model cannot be said in the layout although its type fits."""
    problems = []
    if layout.name == "mixtral":
        for key in ("attention_bias", "mlp_bias"):
            if config.get(key):
                problems.append(f"{key} is set, and the mixtral layout has no such biases")
    if layout.name == "qwen3" and config.get("attention_bias"):
        problems.append("attention_bias is set, and is not carried into the qwen3 layout")
    return problems


def mixture_config(
    layout: Layout, base: Mapping[str, Any], experts: int, per_token: int, shared: int
) -> dict[str, Any]:
    """Return the config of the mixture: the base's (positions, rope, norms, tokens) plus what the experts add."""
    config = dict(base)
    config["model_type"] = layout.model_type
    config["architectures"] = [layout.architecture]
    config.pop("auto_map", None)
    added: dict[str, Any] = {"num_experts_per_tok": per_token, "router_aux_loss_coef": 0.001}
    if layout.name == "mixtral":
        added["num_local_experts"] = experts
        added.setdefault("sliding_window", config.get("sliding_window"))
    else:
        added |= {
            "num_experts": experts,
            "moe_intermediate_size": config["intermediate_size"],
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if layout.shared:
        added["shared_expert_intermediate_size"] = shared
    return {**config, **added, "output_router_logits": False}
