"""MODEL+ADAPTER against PEFT's own merge, on tiny models made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from consilience.checkpoints import LowRank, open_checkpoint
from tests.checkpoints.build import values


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)


def bert() -> Any:
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=30,
        max_position_embeddings=12,
    )
    return transformers.BertModel(config)


def gpt2() -> Any:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=12, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def llama() -> Any:
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=30
    )
    return transformers.LlamaForCausalLM(config)


CASES: dict[str, tuple[Any, dict[str, Any], int]] = {
    "bert": (bert, {"target_modules": ["query", "value", "dense"]}, 2 * 5 + 1),
    "bert rank patterns, rsLoRA, biases": (
        bert,
        {
            "target_modules": ["query", "intermediate.dense"],
            "rank_pattern": {"query": 2},
            "alpha_pattern": {"layer.1.attention.self.query": 5},
            "use_rslora": True,
            "bias": "lora_only",
        },
        4,
    ),
    "bert embeddings": (bert, {"target_modules": ["word_embeddings", "key"]}, 3),
    "gpt2 transposed": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}, 8),
    "gpt2 square only": (gpt2, {"target_modules": r".*attn\.c_proj", "fan_in_fan_out": True}, 2),
    "llama with modules saved whole": (
        llama,
        {"target_modules": "all-linear", "modules_to_save": ["lm_head", "embed_tokens"]},
        14,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_merge_and_unload(tmp_path: Path, case: str) -> None:
    make, settings, changed = CASES[case]
    model = make()
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, **settings))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.1
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload().state_dict()
    opened = open_checkpoint(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")
    assert set(merged) - set(opened.tensors) == set(opened.tied)
    assert sum(isinstance(source, LowRank) for source in opened.tensors.values()) == changed
    for name, source in opened.tensors.items():
        np.testing.assert_allclose(values(source), merged[name].double().numpy(), rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_a_tied_model_computes_what_the_running_adapter_computes(tmp_path: Path) -> None:
    """PEFT's merge changes both tied weights (its own output changes); ours keeps what the adapter computes."""
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=30,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"])).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        expected = adapted(input_ids=tokens).logits
    opened = open_checkpoint(f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")
    config.tie_word_embeddings = opened.config["tie_word_embeddings"]
    ours = transformers.LlamaForCausalLM(config).eval()
    ours.load_state_dict({name: torch.from_numpy(values(source)) for name, source in opened.tensors.items()})
    with torch.no_grad():
        np.testing.assert_allclose(ours(input_ids=tokens).logits, expected, atol=1e-5)
