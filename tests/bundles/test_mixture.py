"""Mixtures of experts: copies of one model give that model back; prompts make the router; wrong files are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from consilience.bundles.mixture import make_mixture
from consilience.bundles.mixture_config import load_mixture
from consilience.checkpoints.open import open_checkpoint
from consilience.cli.app import run
from consilience.errors import RecipeError
from tests.merging.tiny_lm import write_lm

PROMPTS = (["w1 w1 w1", "w1 1"], ["2 22 w222"], ["33 w3"])


def mixture_file(folder, base, models, **keys):
    experts = [{"source_model": str(m), "positive_prompts": p} for m, p in zip(models, PROMPTS, strict=False)]
    content = {"base_model": str(base), "gate_mode": "hidden", "experts": experts, **keys}
    path = folder / "moe.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def logits(folder, ids):
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder).float().eval()(input_ids=ids).logits


IDS = torch.arange(2, 26).reshape(2, 12)


@pytest.mark.parametrize("gates", ["hidden", "cheap_embed", "random"])
@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("mistral", False), ("qwen2", False), ("qwen3", True)])
def test_copies_of_one_model_give_that_model(tmp_path, kind, tied, gates):
    base = write_lm(tmp_path / "base", kind, tie_word_embeddings=tied)
    path = mixture_file(tmp_path, base, [base, base, base], gate_mode=gates)
    make_mixture(path, tmp_path / "out", progress=False)
    assert torch.allclose(logits(tmp_path / "out", IDS), logits(base, IDS), atol=1e-5)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_experts_per_tok"] == 2 and config["tie_word_embeddings"] is tied
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_token_goes_to_the_expert_whose_prompts_it_is_like(tmp_path, kind):
    base = write_lm(tmp_path / "base", kind)
    models = [write_lm(tmp_path / name, kind, seed, near=base) for seed, name in enumerate(("a", "b"), start=1)]
    path = mixture_file(tmp_path, base, models, experts_per_token=1)
    make_mixture(path, tmp_path / "out", progress=False)
    name = "block_sparse_moe" if kind == "llama" else "mlp"
    gate = open_checkpoint(tmp_path / "out").tensors[f"model.layers.0.{name}.gate.weight"]
    rows = np.empty(gate.numel, np.float32)
    gate.read(0, gate.numel, rows)
    assert np.allclose(np.linalg.norm(rows.reshape(gate.shape), axis=1), 1, atol=1e-6)
    from consilience.models.causal_loading import load_causal

    model = load_causal(base)
    seen = []
    model.module.model.layers[0].mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for prompts in PROMPTS[:2]:
        (batch,) = model.batches(prompts[:1], 1)
        model.logits(batch)
    scores = np.stack([s[0].mean(0).detach().numpy() @ rows.reshape(gate.shape).T for s in seen])
    assert scores[0].argmax() == 0 and scores[1].argmax() == 1


def test_a_shared_expert_of_qwen2_counts_with_its_residual_scale(tmp_path):
    base = write_lm(tmp_path / "base", "qwen2")
    shared = [{"source_model": str(base), "residual_scale": 0.0}]
    make_mixture(mixture_file(tmp_path, base, [base, base], shared_experts=shared), tmp_path / "none", progress=False)
    assert torch.allclose(logits(tmp_path / "none", IDS), logits(base, IDS), atol=1e-5)
    shared[0]["residual_scale"] = 1.0
    make_mixture(mixture_file(tmp_path, base, [base, base], shared_experts=shared), tmp_path / "one", progress=False)
    twice = {n: t.clone() for n, t in _weights(base).items()}
    for name, tensor in twice.items():
        if name.endswith("mlp.down_proj.weight"):
            tensor *= 2  # routed experts and the shared one say the same
    assert torch.allclose(logits(tmp_path / "one", IDS), _logits_of(base, twice), atol=1e-4)


def _weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def _logits_of(folder, weights):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    model.load_state_dict(weights, strict=False)
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def test_experts_are_the_inputs_byte_for_byte_and_the_command_says_what_it_made(tmp_path, capsys):
    base = write_lm(tmp_path / "base", "llama")
    models = [write_lm(tmp_path / name, "llama", seed, near=base) for seed, name in enumerate(("a", "b"), start=1)]
    path = mixture_file(tmp_path, base, models)
    assert run(["moe", str(path), "--out", str(tmp_path / "out"), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    made, first = open_checkpoint(tmp_path / "out"), open_checkpoint(models[0])
    expert = made.tensors["model.layers.1.block_sparse_moe.experts.0.w2.weight"]
    dense = first.tensors["model.layers.1.mlp.down_proj.weight"]
    assert (expert.read_raw(0, expert.numel) == dense.read_raw(0, dense.numel)).all()
    mlp = 3 * 2 * 16 * 24
    assert manifest["parameters"] == first.parameters + mlp + 2 * 2 * 16
    assert run(["moe", str(path), "--out", str(tmp_path / "out")]) == 0


def test_all_problems_of_a_file_come_together(tmp_path):
    path = tmp_path / "moe.yml"
    path.write_text(
        "gate_mode: hiden\nexperts_per_token: 5\nexpert: []\nexperts:\n  - source_model: a\n    positive_prompt: [x]\n"
    )
    with pytest.raises(RecipeError) as refused:
        load_mixture(path)
    for words in ("base_model", "'hiden'", "'hidden'", "5 is not", "expert: unknown", "positive_prompt: unknown"):
        assert words in str(refused.value), words


def test_models_that_do_not_fit_are_refused_by_name(tmp_path):
    base = write_lm(tmp_path / "base", "llama")
    wide = write_lm(tmp_path / "wide", "llama", intermediate_size=32)
    qwen = write_lm(tmp_path / "qwen", "qwen2")
    with pytest.raises(RecipeError) as refused:
        make_mixture(mixture_file(tmp_path, base, [base, wide, qwen]), tmp_path / "out")
    for words in ("experts[1]", "[16, 32]", "experts[2]", "'qwen2'", "llama or mistral"):
        assert words in str(refused.value), words
    with pytest.raises(RecipeError, match="built from qwen3"):
        make_mixture(mixture_file(tmp_path, base, [base, base], architecture="qwen3"), tmp_path / "out")
    with pytest.raises(RecipeError, match="no shared expert"):
        shared = [{"source_model": str(base)}]
        make_mixture(mixture_file(tmp_path, base, [base, base], shared_experts=shared), tmp_path / "out")
    biased = write_lm(tmp_path / "biased", "llama", attention_bias=True)
    with pytest.raises(RecipeError, match="attention_bias"):
        make_mixture(mixture_file(tmp_path, biased, [biased, biased]), tmp_path / "out")
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    kept = {n: t for n, t in load_file(base / "model.safetensors").items() if "gate_proj" not in n}
    save_file(kept, bare / "model.safetensors")
    with pytest.raises(RecipeError, match=r"base_model: .* lacks model.layers.0.mlp.gate_proj.weight"):
        make_mixture(mixture_file(tmp_path, bare, [bare, bare]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
