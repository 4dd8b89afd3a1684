from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilience.checkpoints import LowRank, open_adapter, open_checkpoint
from consilience.errors import CheckpointError
from tests.checkpoints.build import adapter, numbers, values, weights, write_json


def factors(module: str, rows: int, columns: int, rank: int = 2) -> dict[str, Any]:
    return {
        f"{module}.lora_A.weight": numbers(rank, columns, seed=1),
        f"{module}.lora_B.weight": numbers(rows, rank, seed=2),
    }


def product(tensors: dict[str, Any], module: str) -> Any:
    return tensors[f"{module}.lora_B.weight"].astype(float) @ tensors[f"{module}.lora_A.weight"]


def base(folder: Path, tensors: dict[str, Any], **config: Any) -> Path:
    weights(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", config)
    return folder


def refusal(model: Path, expert: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(f"{model}+{expert}")
    return str(caught.value)


def not_opened(expert: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_adapter(expert)
    assert str(expert) in str(caught.value)
    return str(caught.value)


def test_reading_an_adapter(tmp_path: Path) -> None:
    expert = open_adapter(adapter(tmp_path / "words", {**factors("a.x", 3, 4), "a.y.bias": numbers(3)}))
    assert (expert.name, expert.base_model, expert.parameters) == ("words", "some/base", 2 * 4 + 3 * 2 + 3)
    a, b, scale, kind = expert.pairs["a.x"]
    assert (a.shape, b.shape, scale, kind) == ((2, 4), (3, 2), 2.0, "linear")
    assert list(expert.replaced) == ["a.y.bias"]
    assert open_adapter(tmp_path / "words/adapter_model.safetensors").pairs == expert.pairs


@pytest.mark.parametrize("suffix", ["lora_A.default.weight", "lora_A.weight"])
def test_names_with_and_without_the_adapter_name(tmp_path: Path, suffix: str) -> None:
    tensors = {f"x.{suffix}": numbers(2, 4), f"x.{suffix.replace('A', 'B', 1)}": numbers(3, 2)}
    assert list(open_adapter(adapter(tmp_path / "e", tensors)).pairs) == ["x"]


def test_rank_and_alpha_patterns(tmp_path: Path) -> None:
    tensors = {**factors("l.0.q", 3, 4, rank=4), **factors("l.1.q", 3, 4), **factors("l.1.k", 3, 4)}
    patterns = {"rank_pattern": {"0.q": 4}, "alpha_pattern": {r"l\.\d+\.k": 10}}
    pairs = open_adapter(adapter(tmp_path / "e", tensors, **patterns)).pairs
    assert {module: pair.scale for module, pair in pairs.items()} == {"l.0.q": 1.0, "l.1.q": 2.0, "l.1.k": 5.0}


def test_rank_stabilised_scale(tmp_path: Path) -> None:
    pairs = open_adapter(adapter(tmp_path / "e", factors("x", 3, 4), use_rslora=True)).pairs
    assert pairs["x"].scale == 4 / np.sqrt(2)


def test_a_rank_that_contradicts_the_config(tmp_path: Path) -> None:
    expert = adapter(tmp_path / "e", {**factors("l.0.q", 3, 4, rank=3)}, rank_pattern={"q": 5})
    assert "module 'l.0.q': its factors have rank 3, adapter_config.json says 5 (r and rank_pattern)" in not_opened(
        expert
    )


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("peft_type", "LOHA", "its peft_type is 'LOHA'; only LORA can be merged"),
        ("use_dora", True, "use_dora is set: DoRA rescales"),
        ("use_qalora", True, "use_qalora is set"),
        ("lora_bias", True, "lora_bias is set"),
        ("layer_replication", [[0, 2], [1, 3]], "layer_replication is set"),
        ("target_parameters", ["mlp.experts.gate_up_proj"], "target_parameters is set"),
        ("trainable_token_indices", [3], "trainable_token_indices is set"),
        ("alora_invocation_tokens", [1], "alora_invocation_tokens is set"),
        ("init_lora_weights", "pissa_niter_4", "init_lora_weights is 'pissa_niter_4', which changed the base"),
        ("use_newlora", True, "use_newlora is set, and it is not known"),
        ("r", 0, "r is 0; expected a whole number above 0"),
        ("rank_pattern", {"x": "two"}, "rank_pattern['x'] is 'two'"),
        ("alpha_pattern", [1], "alpha_pattern is [1]; expected an object"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(tmp_path: Path, setting: str, value: Any, said: str) -> None:
    assert said in not_opened(adapter(tmp_path / "e", factors("x", 3, 4), **{setting: value}))


def test_adapters_that_are_incomplete_or_foreign(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert "is not an adapter: it has no adapter_config.json" in not_opened(tmp_path / "none")
    half = {"x.lora_A.weight": numbers(2, 4), "y.lora_magnitude_vector": numbers(3), "z.lora_B.bias": numbers(1)}
    message = not_opened(adapter(tmp_path / "half", half))
    assert "module 'x' has lora_A but not its partner" in message
    assert "'base_model.model.y.lora_magnitude_vector' is not a factor of plain LoRA" in message
    assert "'base_model.model.z.lora_B.bias' is not a factor of plain LoRA" in message
    wrong = {"x.lora_A.weight": numbers(2, 4), "x.lora_B.weight": numbers(3, 5)}
    assert "lora_A (2, 4) and lora_B (3, 5) are not factors of one product" in not_opened(
        adapter(tmp_path / "w", wrong)
    )
    write_json(tmp_path / "pickle/adapter_config.json", {"peft_type": "LORA"})
    (tmp_path / "pickle/adapter_model.bin").write_bytes(b"x")
    message = not_opened(tmp_path / "pickle")
    assert "holds pickle weights only (adapter_model.bin)" in message
    assert "'adapter_model.safetensors'" in message
    (tmp_path / "pickle/adapter_model.bin").unlink()
    assert "it has no adapter_model.safetensors" in not_opened(tmp_path / "pickle")


def test_an_adapter_for_another_base(tmp_path: Path) -> None:
    model = base(tmp_path / "b", {"q.weight": numbers(8, 8), "k.weight": numbers(8, 8)})
    expert = adapter(tmp_path / "e", {**factors("q", 16, 16), **factors("k", 8, 8)})
    message = refusal(model, expert)
    assert f"adapter {expert} (made for some/base) does not fit {model}" in message
    assert "module 'q': lora_B @ lora_A has shape (16, 16), the model's weight has (8, 8)" in message
    assert "the adapter belongs to another base" in message
    assert "'k'" not in message


def test_every_adapter_tensor_that_matches_nothing_is_listed(tmp_path: Path) -> None:
    model = base(tmp_path / "b", {"m.layers.0.q_proj.weight": numbers(3, 4)})
    tensors = {**factors("m.layers.0.q_proj", 3, 4), **factors("m.layers.7.q_proj", 3, 4), "m.head.bias": numbers(2)}
    message = refusal(model, adapter(tmp_path / "e", tensors))
    assert "'m.layers.7.q_proj.weight' matches no tensor of the model, such as 'm.layers.0.q_proj.weight'" in message
    assert "'m.head.bias' matches no tensor of the model" in message


def test_replaced_weights_and_a_resized_vocabulary(tmp_path: Path) -> None:
    model = base(tmp_path / "b", {"emb.weight": numbers(5, 4), "x.weight": numbers(3, 4), "x.bias": numbers(3)})
    tensors = {**factors("x", 3, 4), "x.base_layer.bias": numbers(3, seed=9), "emb.weight": numbers(5, 4, seed=8)}
    opened = open_checkpoint(f"{model}+{adapter(tmp_path / 'e', tensors)}")
    np.testing.assert_array_equal(values(opened.tensors["x.bias"]), tensors["x.base_layer.bias"])
    np.testing.assert_array_equal(values(opened.tensors["emb.weight"]), tensors["emb.weight"])
    assert list(opened.tensors) == ["emb.weight", "x.weight", "x.bias"], "file order"
    message = refusal(model, adapter(tmp_path / "r", {**factors("x", 3, 4), "emb.weight": numbers(7, 4)}))
    assert "'emb.weight' is stored with 7 rows, the model has 5: the vocabulary was resized" in message
    assert "has shape (4,), the model's has (3,)" in refusal(model, adapter(tmp_path / "s", {"x.bias": numbers(4)}))


@pytest.mark.parametrize(("model_prefix", "adapter_prefix"), [("", ""), ("bert.", ""), ("", "bert."), ("0_T/", "")])
def test_one_prefix_may_differ(tmp_path: Path, model_prefix: str, adapter_prefix: str) -> None:
    folder, inner = tmp_path / "b", model_prefix
    if model_prefix.endswith("/"):
        write_json(folder / "modules.json", [{"path": "0_T"}])
        folder, inner = folder / "0_T", ""
    base(folder, {f"{inner}l.0.q.weight": numbers(3, 4), f"{inner}l.1.q.weight": numbers(3, 4)})
    tensors = {**factors(f"{adapter_prefix}l.0.q", 3, 4), **factors(f"{adapter_prefix}l.1.q", 3, 4)}
    opened = open_checkpoint(f"{tmp_path / 'b'}+{adapter(tmp_path / 'e', tensors)}")
    expected = numbers(3, 4) + 2 * product(tensors, f"{adapter_prefix}l.1.q")
    np.testing.assert_allclose(values(opened.tensors[f"{model_prefix}l.1.q.weight"]), expected, atol=1e-12)


def test_module_names_that_fit_two_parts(tmp_path: Path) -> None:
    model = base(tmp_path / "b", {"query.q.weight": numbers(3, 4), "document.q.weight": numbers(3, 4)})
    message = refusal(model, adapter(tmp_path / "e", factors("q", 3, 4)))
    assert "its module names fit several parts of the model: document., query.; name one part" in message


def test_transposed_layers_of_gpt2(tmp_path: Path) -> None:
    shapes = {"c_attn": (4, 12), "c_proj": (4, 4)}
    model = base(tmp_path / "b", {f"{name}.weight": numbers(*shape) for name, shape in shapes.items()})
    tensors = {**factors("c_attn", 12, 4), **factors("c_proj", 4, 4)}
    expert = adapter(tmp_path / "e", tensors, fan_in_fan_out=True)
    opened = open_checkpoint(f"{model}+{expert}")
    for name, shape in shapes.items():
        expected = numbers(*shape) + 2 * product(tensors, name).T
        np.testing.assert_allclose(values(opened.tensors[f"{name}.weight"]), expected, atol=1e-12)


def test_square_layers_follow_the_config_when_nothing_else_tells(tmp_path: Path) -> None:
    tensors = factors("c_proj", 4, 4)
    expert = adapter(tmp_path / "e", tensors)
    for model_type, flipped in (("gpt2", True), ("llama", False)):
        model = base(tmp_path / model_type, {"c_proj.weight": numbers(4, 4)}, model_type=model_type)
        source = open_checkpoint(f"{model}+{expert}").tensors["c_proj.weight"]
        assert isinstance(source, LowRank)
        assert source.fan_in_fan_out is flipped


def test_integer_weights_cannot_take_a_change(tmp_path: Path) -> None:
    model = base(tmp_path / "b", {"x.weight": ("U8", (3, 4), bytes(12))})
    assert "stores its weight as U8" in refusal(model, adapter(tmp_path / "e", factors("x", 3, 4)))


TIED: dict[str, Any] = {"tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}


def test_a_changed_embedding_comes_apart_from_its_tied_head(tmp_path: Path) -> None:
    model = base(tmp_path / "b", {"model.embed_tokens.weight": numbers(5, 4)}, **TIED)
    assert open_checkpoint(model).tied == {"lm_head.weight": "model.embed_tokens.weight"}
    tensors = {
        "model.embed_tokens.lora_embedding_A": numbers(2, 5, seed=1),
        "model.embed_tokens.lora_embedding_B": numbers(4, 2, seed=2),
    }
    opened = open_checkpoint(f"{model}+{adapter(tmp_path / 'e', tensors)}")
    change = 2 * (tensors["model.embed_tokens.lora_embedding_B"].astype(float) @ next(iter(tensors.values()))).T
    np.testing.assert_allclose(values(opened.tensors["model.embed_tokens.weight"]), numbers(5, 4) + change, atol=1e-12)
    np.testing.assert_array_equal(values(opened.tensors["lm_head.weight"]), numbers(5, 4))
    assert opened.tied == {}
    assert opened.config["tie_word_embeddings"] is False
    kept = open_checkpoint(f"{model}+{adapter(tmp_path / 'k', tensors, ensure_weight_tying=True)}")
    assert kept.tied == {"lm_head.weight": "model.embed_tokens.weight"}


def test_a_changed_tied_head_leaves_the_embedding_alone(tmp_path: Path) -> None:
    model = base(tmp_path / "b", {"model.embed_tokens.weight": numbers(5, 4)}, **TIED)
    tensors = factors("lm_head", 5, 4)
    opened = open_checkpoint(f"{model}+{adapter(tmp_path / 'e', tensors)}")
    np.testing.assert_array_equal(values(opened.tensors["model.embed_tokens.weight"]), numbers(5, 4))
    expected = numbers(5, 4) + 2 * product(tensors, "lm_head")
    np.testing.assert_allclose(values(opened.tensors["lm_head.weight"]), expected, atol=1e-12)
