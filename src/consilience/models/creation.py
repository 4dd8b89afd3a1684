"""Make small models from nothing: a tokenizer, an architecture from its config, seeded weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilience.errors import OutputError, RequestError
from consilience.models.causal_loading import load_causal

if TYPE_CHECKING:
    from consilience.models.causal import CausalModel
    from consilience.models.encoder import DenseEncoder

__all__ = ["character_tokenizer", "create_causal", "create_encoder", "piece_tokenizer"]

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def character_tokenizer(characters: Iterable[str], *, max_tokens: int = 512) -> Any:
    """Return a transformers tokenizer with one token per character; others become <unk>.

    >>> tokenizer = character_tokenizer("abc")
    >>> tokenizer("cab")["input_ids"], tokenizer.decode([6, 4, 5])
    ([1, 6, 4, 5], 'cab')
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    kept = sorted(set(characters))
    words = {token: index for index, token in enumerate((*_SPECIAL, *kept))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrapped(tokenizer, max_tokens)


def piece_tokenizer(texts: Iterable[str], *, size: int, max_tokens: int = 512) -> Any:
    """Return a byte-level BPE tokenizer of `size` tokens, learned from texts; it can write any text.

    >>> tokenizer = piece_tokenizer(["the cat", "the hat", "the bat"] * 9, size=264)
    >>> len(tokenizer), tokenizer.decode(tokenizer("the dog")["input_ids"], skip_special_tokens=True)
    (264, 'the dog')
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if size < len(_SPECIAL) + 256:
        raise RequestError(f"a byte-level tokenizer of {size} tokens; it needs at least {len(_SPECIAL) + 256}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(tokenizer, max_tokens)


def _wrapped(tokenizer: Any, max_tokens: int) -> Any:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", _SPECIAL.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_tokens,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def create_causal(
    folder: str | Path, config: Mapping[str, Any], tokenizer: Any, *, seed: int = 0, device: str | None = None
) -> CausalModel:
    """Write a new causal language model with random weights to `folder`, and open it.

    >>> import tempfile
    >>> config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "tie_word_embeddings": True}
    >>> model = create_causal(Path(tempfile.mkdtemp()) / "m", config, "0123456789")
    >>> model.parameters()["model.embed_tokens.weight"].shape
    torch.Size([14, 16])

    config: the content of a config.json of transformers, with its `model_type`; sizes of the vocabulary and special
    tokens are the tokenizer's. Of what a small Llama needs, unset are: 4 heads, an inner width 3 times the hidden one,
    128 positions. tokenizer: one of transformers, or a string of the characters that are to be tokens. The weights are
    transformers' initial values, a function of `seed`. Raises OutputError when the folder holds something.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from consilience.models.saving import write_tensors

    folder = _empty(folder)
    content = dict(config)
    kind = content.pop("model_type", None)
    if kind is None:
        raise RequestError("the config names no model_type, such as 'llama' or 'gpt2'")
    if kind == "llama":
        width = content.get("hidden_size", 64)
        small = {"num_attention_heads": 4, "intermediate_size": 3 * width, "max_position_embeddings": 128}
        content = {"hidden_size": width, "num_hidden_layers": 2, **small, **content}
    if isinstance(tokenizer, str):
        tokenizer = character_tokenizer(tokenizer, max_tokens=content.get("max_position_embeddings", 512))
    content |= {"vocab_size": len(tokenizer)}
    content |= {f"{one}_token_id": getattr(tokenizer, f"{one}_token_id") for one in ("pad", "bos", "eos")}
    try:
        built = AutoConfig.for_model(kind, **content)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = AutoModelForCausalLM.from_config(built)
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"transformers cannot build a causal language model from this config: {error}") from error
    built.architectures = [type(module).__name__]
    tensors = {name: parameter.detach() for name, parameter in module.named_parameters()}
    write_tensors(folder, tensors, dtype="float32", file="model.safetensors")
    built.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_causal(folder, device=device)


def create_encoder(
    folder: str | Path,
    texts: Iterable[str],
    *,
    words: int = 4000,
    width: int = 128,
    layers: int = 2,
    heads: int = 2,
    max_tokens: int = 256,
    seed: int = 0,
    device: str | None = None,
) -> DenseEncoder:
    """Write a new text encoder (BERT, mean of the token vectors) with random weights to `folder`, and open it.

    >>> import tempfile
    >>> encoder = create_encoder(tempfile.mkdtemp() + "/small", ["the cat", "the hat"] * 3, words=60, width=16)
    >>> encoder.encode(["the cat"]).shape
    (1, 16)

    texts: what the WordPiece vocabulary of at most `words` is learned from, in lower case. The weights are
    transformers' initial values, a function of `seed`. Raises OutputError when the folder holds something, RequestError
    for sizes that do not fit.
    """
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from consilience.models.loading import load_encoder
    from consilience.models.saving import write_tensors

    place = _empty(folder)
    learned = BertWordPieceTokenizer(lowercase=True)
    learned.train_from_iterator(texts, vocab_size=words, min_frequency=1, show_progress=False)
    tokenizer = BertTokenizerFast(tokenizer_object=learned._tokenizer, model_max_length=max_tokens)
    try:
        built = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            max_position_embeddings=max_tokens,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = BertModel(built, add_pooling_layer=False)
    except (ValueError, TypeError) as error:
        raise RequestError(f"transformers cannot build an encoder of these sizes: {error}") from error
    built.architectures = ["BertModel"]
    tensors = {name: parameter.detach() for name, parameter in module.named_parameters()}
    write_tensors(place, tensors, dtype="float32", file="model.safetensors")
    built.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return load_encoder(place, device=device)


def _empty(folder: str | Path) -> Path:
    place = Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise OutputError(f"output {place}: exists and is not an empty folder; choose another place")
    return place
