from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from consilience.checkpoints import open_checkpoint
from consilience.errors import CheckpointError, NonFiniteError, OutputError, RequestError
from consilience.merging import load_recipe, merge_state_dicts
from consilience.models.creation import piece_tokenizer
from consilience.models.seq2seq import Seq2SeqModel
from consilience.models.seq2seq_loading import create_seq2seq, load_seq2seq, word_tokenizer

WORDS = "input: output: one two three four five <NUMBER> , ?"
BART = {"model_type": "bart", "d_model": 16, "init_std": 0.4, "dropout": 0.0, "max_position_embeddings": 24}
T5 = {"model_type": "t5", "d_model": 16, "initializer_factor": 2.0, "dropout_rate": 0.0}
PAIRS = [("one two three", "three two"), ("four", "four five one"), ("five <NUMBER> ?", "one")]
CONFIGS = [BART, T5, {**BART, "tie_word_embeddings": False}, {**T5, "feed_forward_proj": "gated-gelu"}]
NAMES = ["bart", "t5", "bart untied", "gated t5"]


@pytest.fixture(scope="module", params=[BART, T5], ids=["bart", "t5"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("seq2seq") / "model"
    create_seq2seq(place, request.param, word_tokenizer([WORDS], max_tokens=24), seed=3)
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> Seq2SeqModel:
    return load_seq2seq(folder, device="cpu")


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_loss_and_logits_are_those_of_transformers(tmp_path: Path, config: dict[str, object]) -> None:
    model = create_seq2seq(tmp_path / "m", config, word_tokenizer([WORDS]))
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "m").eval()
    (batch,) = model.batches(PAIRS, 3)
    labels = batch.targets.masked_fill(~batch.counted, -100)
    with torch.no_grad():
        wanted = theirs(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=labels)
        assert model.loss(batch).item() == pytest.approx(wanted.loss.item(), rel=1e-5)
        assert torch.allclose(model.logits(batch)[batch.counted], wanted.logits[batch.counted], atol=1e-4)
    assert set(model.state()) == set(load_file(tmp_path / "m" / "model.safetensors"))
    tied = config.get("tie_word_embeddings", True)
    assert ("lm_head.weight" in model.state()) is not tied


def test_padding_and_order_change_no_loss(model: Seq2SeqModel) -> None:
    sums, counts = model.losses(PAIRS, size=2)
    assert counts.tolist() == [3, 4, 2]
    alone = [model.loss(next(model.batches([pair], 1)), reduction="none").item() for pair in PAIRS]
    np.testing.assert_allclose(sums, alone, rtol=1e-4)
    assert model.mean_loss(PAIRS) == pytest.approx(sum(alone) / 9, rel=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_in_batches_are_those_of_single_inputs(model: Seq2SeqModel, folder: Path, beams: int) -> None:
    inputs = [source for source, _ in PAIRS] + ["two two two five one"]
    together = model.generate(inputs, new_tokens=6, beams=beams)
    assert together == model.generate(inputs, new_tokens=6, beams=beams, batch_tokens=1)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    for source, answer in zip(inputs, together, strict=True):
        ids = model.tokenizer(source, return_tensors="pt")["input_ids"]
        found = theirs.generate(ids, max_new_tokens=6, num_beams=beams, do_sample=False)[0, 1:].tolist()
        end = model.tokenizer.eos_token_id
        length = found.index(end) if end in found else len(found)
        assert answer.text == model.tokenizer.decode(found[:length], skip_special_tokens=True)
        assert (answer.tokens, answer.cut) == (length, length == 6)


def test_parameters_are_substituted_by_tensor_name_and_carry_gradients(model: Seq2SeqModel) -> None:
    name = next(
        tensor for tensor in model.state() if "decoder" in tensor and tensor.endswith(("fc1.weight", "wi.weight"))
    )
    (batch,) = model.batches(PAIRS, 3)
    before = model.loss(batch).item()
    value = (2 * model.parameters()[name].detach()).requires_grad_()
    loss = model.loss(batch, {name: value})
    loss.backward()  # type: ignore[no-untyped-call]
    assert value.grad is not None and value.grad.abs().sum() > 0
    assert model.loss(batch).item() == before != loss.item()
    kept = model.state()
    model.load({name: value})
    assert model.loss(batch).item() == pytest.approx(loss.item(), rel=1e-6)
    model.load(kept)
    assert model.loss(batch).item() == before
    with pytest.raises(RequestError, match="no parameter is named"):
        model.loss(batch, {name + "x": value})
    with pytest.raises(RequestError, match=r"the substitute \[2\]"):
        model.load({name: torch.ones(2)})


def test_a_substitute_for_tied_embeddings_counts_everywhere(model: Seq2SeqModel) -> None:
    (shared,) = [tensor for tensor in model.state() if tensor.endswith("shared.weight")]
    (batch,) = model.batches(PAIRS, 3)
    value = model.state()[shared] * 1.5
    with torch.no_grad():
        substituted = model.logits(batch, {shared: value})
        kept = model.state()
        model.load({shared: value})
        loaded = model.logits(batch)
        model.load(kept)
    assert torch.allclose(substituted, loaded, atol=1e-5)


def test_an_output_layer_of_its_own_opens_though_the_architecture_ties_it(tmp_path: Path) -> None:
    place = tmp_path / "flan"
    create_seq2seq(place, {**T5, "feed_forward_proj": "gated-gelu"}, word_tokenizer([WORDS]))
    tensors = load_file(place / "model.safetensors")
    tensors["lm_head.weight"] = tensors["shared.weight"].flip(0).contiguous()
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    model = load_seq2seq(place, device="cpu")
    theirs = AutoModelForSeq2SeqLM.from_pretrained(place).eval()
    (batch,) = model.batches(PAIRS, 3)
    labels = batch.targets.masked_fill(~batch.counted, -100)
    with torch.no_grad():
        wanted = theirs(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=labels).loss
    assert model.loss(batch).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert "lm_head.weight" in model.state()
    saved = load_seq2seq(model.save(tmp_path / "saved"), device="cpu")
    assert saved.mean_loss(PAIRS) == model.mean_loss(PAIRS)


def repeated(folder: Path, place: Path, *, without: bool = False) -> tuple[Path, str]:
    """Copy a model with its embeddings stored under every name, and the name of the first one."""
    place.mkdir()
    for file in folder.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    tensors = load_file(place / "model.safetensors")
    shared = next(name for name in tensors if name.endswith("shared.weight"))
    inside = shared.removesuffix("shared.weight")
    for name in (f"{inside}encoder.embed_tokens.weight", f"{inside}decoder.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[shared].clone()
    if without:
        del tensors[shared]
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    return place, shared


@pytest.mark.parametrize("without", [False, True])
def test_files_that_repeat_tied_embeddings_open_and_are_written_alike(
    tmp_path: Path, folder: Path, model: Seq2SeqModel, without: bool
) -> None:
    place, shared = repeated(folder, tmp_path / "repeated", without=without)
    again = load_seq2seq(place, device="cpu")
    assert again.mean_loss(PAIRS) == model.mean_loss(PAIRS)
    (name,) = set(again.state()) & {shared, "lm_head.weight", shared.replace("shared", "encoder.embed_tokens")}
    again.load({name: again.state()[name] * 1.5})
    saved = again.save(tmp_path / "saved")
    written = load_file(saved / "model.safetensors")
    assert all(torch.equal(written[copy], written[name]) for copy in again.copies) and len(again.copies) >= 2
    assert load_seq2seq(saved, device="cpu").mean_loss(PAIRS) == pytest.approx(again.mean_loss(PAIRS), rel=1e-6)
    if not without:
        written["lm_head.weight"] += 1
        save_file(written, saved / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"lm_head\.weight and .*shared\.weight differ, but the config ties"):
            load_seq2seq(saved)


def test_what_is_saved_is_what_ran_also_for_transformers(tmp_path: Path, folder: Path) -> None:
    model = load_seq2seq(folder, device="cpu")
    model.load({name: value * 1.5 for name, value in model.state().items()})
    saved = model.save(tmp_path / "copy", dtype="bfloat16")
    assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
    own = dict(AutoModelForSeq2SeqLM.from_pretrained(saved, dtype=torch.float32).named_parameters())
    for name, value in model.state().items():
        assert torch.equal(own[name], value.to(torch.bfloat16).float())
    assert AutoTokenizer.from_pretrained(saved)("one two")["input_ids"] == model.tokenizer("one two")["input_ids"]
    with pytest.raises(OutputError, match="not an empty folder"):
        model.save(saved)
    name = next(iter(model.state()))
    model.load({name: torch.full_like(model.state()[name], float("nan"))})
    with pytest.raises(NonFiniteError, match=name):
        model.save(tmp_path / "broken")


def test_models_of_transformers_open_with_their_buffers(tmp_path: Path, folder: Path) -> None:
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    if hasattr(theirs, "final_logits_bias"):
        theirs.final_logits_bias += torch.arange(theirs.final_logits_bias.shape[1])
    theirs.save_pretrained(tmp_path / "theirs")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    model = load_seq2seq(tmp_path / "theirs", device="cpu")
    (batch,) = model.batches(PAIRS, 3)
    labels = batch.targets.masked_fill(~batch.counted, -100)
    with torch.no_grad():
        wanted = theirs(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=labels).loss
    assert model.loss(batch).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_experts_merge_on_disk_as_in_memory(tmp_path: Path, folder: Path) -> None:
    base = load_seq2seq(folder, device="cpu")
    experts = {}
    for scale, name in ((1.1, "first"), (0.8, "second")):
        experts[name] = {tensor: value * scale for tensor, value in base.state().items()}
        expert = load_seq2seq(folder, device="cpu")
        expert.load(experts[name])
        expert.save(tmp_path / name)
    recipe = {
        "version": 1,
        "method": "task_arithmetic",
        "base": str(folder),
        "experts": {name: str(tmp_path / name) for name in experts},
        "parameters": {"lambda": 0.5},
    }
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe))
    load_recipe(tmp_path / "recipe.yml").run(tmp_path / "merged", progress=False)
    merged = load_seq2seq(tmp_path / "merged", device="cpu")
    wanted = merge_state_dicts("task_arithmetic", base.state(), experts, lambda_=0.5)
    assert all(torch.equal(value, wanted[name]) for name, value in merged.state().items())
    assert merged.mean_loss(PAIRS) != base.mean_loss(PAIRS)
    assert open_checkpoint(tmp_path / "merged").parameters == sum(value.numel() for value in wanted.values())


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    words = word_tokenizer([WORDS])
    states = [create_seq2seq(tmp_path / str(i), BART, words, seed=seed).state() for i, seed in enumerate((1, 1, 2))]
    assert torch.equal(states[0]["model.shared.weight"], states[1]["model.shared.weight"])
    assert not torch.equal(states[0]["model.shared.weight"], states[2]["model.shared.weight"])


def test_any_tokenizer_of_transformers_will_do(tmp_path: Path) -> None:
    pieces = piece_tokenizer(["one two", "two three"] * 5, size=264)
    model = create_seq2seq(tmp_path / "m", BART, pieces)
    (batch,) = model.batches([("one two", "three")], 1)
    assert batch.targets[0, -1].item() == pieces.eos_token_id
    words = word_tokenizer(["Instruction: tag it; input: a cat, <PET>"])
    assert words.decode(words("tag a cat <PET>,")["input_ids"], skip_special_tokens=True) == "tag a cat <PET> ,"
    assert words("dog")["input_ids"] == [words.unk_token_id, words.eos_token_id]


def test_refusals_say_what_is_wrong(tmp_path: Path, folder: Path, model: Seq2SeqModel) -> None:
    words = word_tokenizer([WORDS])
    with pytest.raises(RequestError, match="names no model_type"):
        create_seq2seq(tmp_path / "a", {}, words)
    with pytest.raises(RequestError, match="cannot build a sequence-to-sequence model"):
        create_seq2seq(tmp_path / "a", {"model_type": "llama"}, words)
    with pytest.raises(OutputError, match="not an empty folder"):
        create_seq2seq(folder, BART, words)
    with pytest.raises(RequestError, match="the input of example 1 has 31 tokens, it takes 24"):
        list(model.batches([("one", "two"), ("one " * 30, "two")], 2))
    with pytest.raises(RequestError, match="the target of example 0 has 31 tokens"):
        model.tokenise([("one", "one " * 30)])
    with pytest.raises(RequestError, match="one string"):
        list(model.batches("one", 1))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="batches of 0"):
        list(model.batches(PAIRS, 0))
    with pytest.raises(RequestError, match="5 new tokens by 0 beams for an input of 2"):
        model.generate(["one"], new_tokens=5, beams=0)
    with pytest.raises(RequestError, match="max_tokens is 1"):
        load_seq2seq(folder, max_tokens=1)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_seq2seq(other)
    config = json.loads((folder / "config.json").read_text())
    layers = {"decoder_layers": 2, "num_decoder_layers": 2}
    (other / "config.json").write_text(
        json.dumps(config | {key: value for key, value in layers.items() if key in config})
    )
    with pytest.raises(CheckpointError, match=r"missing tensors \(\d+\): .*decoder"):
        load_seq2seq(other)
    (other / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="no sequence-to-sequence model of type 'llama'"):
        load_seq2seq(other)
