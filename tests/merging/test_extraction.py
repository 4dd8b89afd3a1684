"""LoRA extraction: the adapter that comes out gives the model back, as far as its rank allows."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from consilience.checkpoints.open import open_checkpoint
from consilience.core.jobs import Budget
from consilience.errors import BudgetError, RequestError
from consilience.merging.extraction import extract_adapter
from consilience.merging.recipe import Recipe
from tests.merging.checkpoints import llama_tensors, read_weights, write_model
from tests.merging.tiny_lm import write_lm


def values(checkpoint):
    def read(source):
        out = np.empty(source.numel, np.float64)
        source.read(0, source.numel, out)
        return out.reshape(source.shape)

    return {name: read(source) for name, source in checkpoint.tensors.items()}


def family(folder, ranks=3, seed=1):
    """A base and a model that differs by a low-rank change in every projection, in the head and in one norm."""
    generator = torch.Generator().manual_seed(seed)
    base = llama_tensors(0)
    model = {name: tensor.clone() for name, tensor in base.items()}
    for name, tensor in model.items():
        if tensor.ndim == 2 and "embed" not in name:
            left = torch.randn(tensor.shape[0], ranks, generator=generator)
            model[name] = tensor + 0.05 * left @ torch.randn(ranks, tensor.shape[1], generator=generator)
    model["model.norm.weight"] = model["model.norm.weight"] + 0.1
    write_model(folder / "base", base)
    write_model(folder / "model", model)
    return folder / "base", folder / "model"


def test_the_smallest_rank_of_an_error_is_found_and_the_model_comes_back(tmp_path):
    base, model = family(tmp_path)
    found = extract_adapter(model, base, tmp_path / "adapter", max_error=1e-3, progress=False)
    assert set(found.ranks.values()) == {3} and found.error < 1e-3
    assert found.saved == ("lm_head",) and list(found.left) == ["model.norm.weight"]
    back, wanted = values(open_checkpoint(f"{base}+{tmp_path / 'adapter'}")), values(open_checkpoint(model))
    for name, tensor in wanted.items():
        if name != "model.norm.weight":
            assert np.abs(back[name] - tensor).max() < 1e-5, name
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 3 and config["modules_to_save"] == ["lm_head"]


def test_a_lower_rank_loses_what_the_singular_values_say(tmp_path):
    base, model = family(tmp_path)
    found = extract_adapter(model, base, tmp_path / "adapter", rank=1, embeddings="lora", progress=False)
    before, after = values(open_checkpoint(base)), values(open_checkpoint(model))
    for module, error in found.errors.items():
        sizes = np.linalg.svd(after[f"{module}.weight"] - before[f"{module}.weight"], compute_uv=False)
        assert error == pytest.approx(float(np.sqrt((sizes[1:] ** 2).sum() / (sizes**2).sum())), rel=1e-3)
    assert "lm_head" in found.ranks and not found.saved


def test_ranks_that_differ_are_patterns_that_peft_reads_too(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = write_lm(tmp_path / "base")
    own = read_weights(base)
    full = {name: tensor.clone() for name, tensor in own.items()}
    generator = torch.Generator().manual_seed(0)
    for layer, rank in ((0, 1), (1, 4)):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        left, right = (torch.randn(16, rank, generator=generator), torch.randn(rank, 16, generator=generator))
        full[name] += 0.1 * left @ right
    save_file(full, write_lm(tmp_path / "model") / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "adapter"
    found = extract_adapter(tmp_path / "model", base, out, max_error=1e-3, progress=False)
    assert found.ranks == {"model.layers.0.self_attn.q_proj": 1, "model.layers.1.self_attn.q_proj": 4}
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out).merge_and_unload()
    theirs, ours = merged.state_dict(), values(open_checkpoint(f"{base}+{out}"))
    for name, tensor in ours.items():
        assert np.abs(theirs[name].double().numpy() - tensor).max() < 1e-5
        assert np.abs(full[name].double().numpy() - tensor).max() < 1e-4


def test_it_resumes_where_it_stopped_and_is_not_done_twice(tmp_path):
    base, model = family(tmp_path)
    out = tmp_path / "adapter"
    with pytest.raises(BudgetError):
        extract_adapter(model, base, out, rank=2, budget=Budget(wall_seconds=0.0), progress=False)
    assert not out.exists()
    first = extract_adapter(model, base, out, rank=2, progress=False)
    stamp = (out / "adapter_model.safetensors").stat().st_mtime_ns
    assert extract_adapter(model, base, out, rank=2, progress=False) == first
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns == stamp


def test_all_problems_come_together(tmp_path):
    base, model = family(tmp_path)
    wrong = read_weights(model)
    del wrong["model.norm.weight"]
    wrong["lm_head.weight"] = wrong["lm_head.weight"][:5]
    write_model(tmp_path / "wrong", wrong)
    with pytest.raises(RequestError) as refused:
        extract_adapter(tmp_path / "wrong", base, tmp_path / "out", rank=0, max_error=2.0, include="[")
    for words in ("include: '['", "either rank", "rank: 0", "max_error: 2.0", "model.norm.weight", "lm_head.weight"):
        assert words in str(refused.value)
    with pytest.raises(RequestError, match="nothing to extract"):
        extract_adapter(base, base, tmp_path / "same", rank=2, progress=False)


def test_sums_and_differences_of_adapters_lose_nothing_at_the_sum_of_their_ranks(tmp_path):
    base, _ = family(tmp_path)
    adapters = {}
    for seed, rank in ((1, 2), (2, 3)):
        _, model = family(tmp_path / str(seed), ranks=rank, seed=seed)
        adapters[f"a{seed}"] = tmp_path / f"a{seed}"
        extract_adapter(model, base, adapters[f"a{seed}"], rank=rank, embeddings="lora", progress=False)
    recipe = Recipe(
        method="task_arithmetic",
        base=str(base),
        experts={name: str(folder) for name, folder in adapters.items()},
        parameters={"weight": {"a1": 1.0, "a2": -0.5}},
        output={"adapter": {"rank": "sum"}},
    )
    result = recipe.run(tmp_path / "out")
    assert result.error is not None and result.error < 1e-6
    parts = [values(open_checkpoint(f"{base}+{folder}")) for folder in adapters.values()]
    own, made = values(open_checkpoint(base)), values(open_checkpoint(f"{base}+{tmp_path / 'out'}"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 5
    for name in own:
        assert np.abs(made[name] - (parts[0][name] - 0.5 * (parts[1][name] - own[name]))).max() < 1e-5, name
