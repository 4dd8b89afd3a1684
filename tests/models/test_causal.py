from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig

from consilience.errors import CheckpointError, NonFiniteError, OutputError, RequestError
from consilience.models import CausalModel, create_causal, load_causal
from consilience.models.creation import character_tokenizer, piece_tokenizer

LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 32}
LETTERS = "0123456789+=;"
TEXTS = ["1+2=3", "10+20=30;7", "9"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("causal") / "llama"
    create_causal(place, {**LLAMA, "initializer_range": 0.3}, LETTERS, seed=3)
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> CausalModel:
    return load_causal(folder, device="cpu")


@pytest.mark.parametrize(
    "config",
    [
        {**LLAMA, "tie_word_embeddings": True},
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
        {**LLAMA, "model_type": "qwen2", "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24},
    ],
    ids=lambda config: config["model_type"],
)
def test_logits_are_those_of_transformers(tmp_path: Path, config: dict[str, object]) -> None:
    model = create_causal(tmp_path / "m", {**config, "initializer_range": 0.3}, LETTERS)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    (batch,) = model.batches(TEXTS, 3)
    with torch.no_grad():
        found = model.logits(batch)
        wanted = theirs(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
    assert torch.allclose(found[batch.mask], wanted[batch.mask], atol=1e-5)
    assert set(model.state()) == set(load_file(tmp_path / "m" / "model.safetensors"))


def test_a_file_without_the_prefix_of_the_inner_model_opens(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model = create_causal(tmp_path / "m", config, LETTERS)
    loss = model.mean_loss(TEXTS)
    file = tmp_path / "m" / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(bare | {"h.0.attn.bias": torch.ones(1, 1, 4, 4)}, file)
    again = load_causal(tmp_path / "m")
    assert again.mean_loss(TEXTS) == loss
    assert "h.0.attn.c_attn.weight" in again.state()


def test_mixtures_of_experts_open_through_transformers_conversion(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(LETTERS)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=24,
        num_local_experts=2,
        max_position_embeddings=32,
    )
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_causal(tmp_path, device="cpu")
    (batch,) = model.batches(TEXTS, 3)
    with torch.no_grad():
        assert torch.allclose(model.logits(batch)[batch.mask], theirs(batch.ids).logits[batch.mask], atol=1e-5)
    assert "model.layers.0.self_attn.q_proj.weight" in model.state()
    assert not any("experts" in name for name in model.state())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing keys: model\.norm\.weight \(1 in all\)"):
        load_causal(tmp_path)


def test_the_loss_counts_completions_and_ignores_padding(model: CausalModel) -> None:
    (batch,) = model.batches(["1+2=3", ("1+2=", "3")], 2)
    text, completion = model.loss(batch, reduction="none")
    logs = model.logits(batch).log_softmax(dim=-1)
    ids = batch.ids[0]
    assert text.item() == pytest.approx(-sum(logs[0, p, ids[p + 1]].item() for p in range(5)), rel=1e-5)
    end = model.tokenizer.eos_token_id
    assert completion.item() == pytest.approx(-(logs[1, 4, ids[5]] + logs[1, 5, end]).item(), rel=1e-5)
    assert model.loss(batch).item() == pytest.approx((text + completion).item() / 7, rel=1e-5)
    (longer,) = model.batches(["1+2=3", "1+2=3;4+5=9"], 2)
    assert model.loss(longer, reduction="none")[0].item() == pytest.approx(text.item(), rel=1e-5)
    sums, counts = model.losses(["1+2=3", ("1+2=", "3")], size=1)
    np.testing.assert_allclose(sums, [text.item(), completion.item()], rtol=1e-5)
    assert counts.tolist() == [5, 2]
    assert model.mean_loss(["1+2=3", ("1+2=", "3")], size=1) == pytest.approx(model.loss(batch).item(), rel=1e-5)


def test_parameters_are_substituted_by_tensor_name_and_carry_gradients(model: CausalModel) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    (batch,) = model.batches(TEXTS, 3)
    before = model.loss(batch).item()
    value = (2 * model.parameters()[name].detach()).requires_grad_()
    loss = model.loss(batch, {name: value})
    loss.backward()
    assert value.grad is not None and value.grad.abs().sum() > 0
    assert model.loss(batch).item() == before != loss.item()
    kept = model.state()
    model.load({name: value})
    assert model.loss(batch).item() == pytest.approx(loss.item(), rel=1e-6)
    model.load(kept)
    assert model.loss(batch).item() == before
    with pytest.raises(RequestError, match=r"down_proj.weight'; did you mean|no parameter is named"):
        model.loss(batch, {"model.layers.1.mlp.down_proj.weigh": value})
    with pytest.raises(RequestError, match=r"has shape \[16, 48\], the substitute \[2\]"):
        model.load({name: torch.ones(2)})


def test_greedy_answers_are_those_of_single_prompts(model: CausalModel) -> None:
    prompts = ["1+2=", "9", "30+21=", "5+"]
    together = model.generate(prompts, new_tokens=8)
    for prompt, answer in zip(prompts, together, strict=True):
        ids = model.tokenizer(prompt, return_tensors="pt")["input_ids"]
        length = 0
        for _ in range(8):
            with torch.no_grad():
                token = model.module(ids).logits[0, -1].argmax().item()
            if token == model.tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
            length += 1
        text = model.tokenizer.decode(ids[0], skip_special_tokens=True)
        assert (prompt + answer.text, answer.tokens, answer.cut) == (text, length, length == 8)
    assert model.generate(prompts, new_tokens=8, batch_tokens=1) == together
    with pytest.raises(RequestError, match="30 new tokens after a prompt of 5; it takes 32 in all"):
        model.generate(["1+2="], new_tokens=30)


def test_hidden_states_at_the_last_token_and_in_the_mean(model: CausalModel) -> None:
    last, mean = model.hidden_states(TEXTS, size=2), model.hidden_states(TEXTS, position="mean")
    assert last.shape == mean.shape == (3, 3, 16)
    for index, text in enumerate(TEXTS):
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = torch.stack(model.module(ids, output_hidden_states=True).hidden_states)[:, 0]
        np.testing.assert_allclose(last[:, index], states[:, -1], atol=1e-5)
        np.testing.assert_allclose(mean[:, index], states.mean(dim=1), atol=1e-5)


def test_what_is_saved_is_what_ran(tmp_path: Path, folder: Path) -> None:
    model = load_causal(folder)
    model.load({name: value * 1.5 for name, value in model.state().items()})
    saved = model.save(tmp_path / "copy", dtype="bfloat16")
    assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
    theirs = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    own = dict(theirs.named_parameters())
    for name, value in model.state().items():
        assert torch.equal(own[name], value.to(torch.bfloat16).float())
    assert AutoTokenizer.from_pretrained(saved)("1+2")["input_ids"] == model.tokenizer("1+2")["input_ids"]
    with pytest.raises(OutputError, match="not an empty folder"):
        model.save(saved)
    model.load({"model.norm.weight": torch.full((16,), float("nan"))})
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight"):
        model.save(tmp_path / "broken")


def test_weights_can_be_held_in_half_precision(folder: Path, model: CausalModel) -> None:
    half = load_causal(folder, dtype="bfloat16")
    assert half.parameters()["model.norm.weight"].dtype == torch.bfloat16
    assert half.mean_loss(TEXTS) == pytest.approx(model.mean_loss(TEXTS), rel=0.02)
    with pytest.raises(RequestError, match="dtype 'int8'"):
        load_causal(folder, dtype="int8")


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    states = [create_causal(tmp_path / str(i), LLAMA, LETTERS, seed=seed).state() for i, seed in enumerate((1, 1, 2))]
    name = "model.embed_tokens.weight"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_refusals_say_what_is_wrong(tmp_path: Path, folder: Path, model: CausalModel) -> None:
    with pytest.raises(RequestError, match="names no model_type"):
        create_causal(tmp_path / "a", {}, LETTERS)
    with pytest.raises(RequestError, match="cannot build a causal language model"):
        create_causal(tmp_path / "a", {"model_type": "vit"}, LETTERS)
    with pytest.raises(OutputError, match="not an empty folder"):
        create_causal(folder, LLAMA, LETTERS)
    with pytest.raises(RequestError, match="example 1 has 41 tokens, the model takes 32"):
        list(model.batches(["1", "1" * 40], 2))
    with pytest.raises(RequestError, match="one string"):
        list(model.batches("1+1", 1))
    with pytest.raises(RequestError, match="max_tokens is 40"):
        load_causal(folder, max_tokens=40)
    config = json.loads((folder / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_causal(other)
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"missing tensors \(9\): model\.layers\.2"):
        load_causal(other)
    (other / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(CheckpointError, match="no causal language model of type 'vit'"):
        load_causal(other)


def test_long_texts_are_cut_into_windows_where_that_is_asked(model: CausalModel) -> None:
    text = "0123456789" * 7
    tokens, first = model.tokenise([text, ("1+1=", "2")], cut=True)
    assert tokens.lengths.tolist() == [32, 32, 7, 7] and first.tolist() == [1, 1, 1, 5]
    assert model.tokenizer.decode(tokens.ids[:71].tolist(), skip_special_tokens=True) == text
    assert model.mean_loss([text]) > 0
    with pytest.raises(RequestError, match="example 0 has 71 tokens, the model takes 32"):
        model.tokenise([text])


def test_tokenizers_give_back_the_text(tmp_path: Path) -> None:
    pieces = piece_tokenizer(["a small dog", "a small cat"] * 5, size=280)
    pieces.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a small dog", "Ein Fluß\n  and é"):
        assert again.decode(again(text)["input_ids"], skip_special_tokens=True) == text
    assert len(again("a small cat")["input_ids"]) < 8
    letters = character_tokenizer("ab\n ")
    assert letters.decode(letters("a b\n")["input_ids"], skip_special_tokens=True) == "a b\n"
    assert letters("z")["input_ids"] == [letters.bos_token_id, letters.unk_token_id]
    with pytest.raises(RequestError, match="at least 260"):
        piece_tokenizer(["a"], size=100)
