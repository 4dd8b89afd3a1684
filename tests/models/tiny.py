"""Tiny encoders with random weights, as sentence-transformers and transformers write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"w{number}" for number in range(200)]
TEXTS = ["w1 w2 w3", "w4", "", "W5 w6 w7 w8 w9 w10 w11 w12 w13 w14 w15 w16 w17", "w1 unknown w2 w150 w199", "w20 w21"]


def write_tokenizer(folder: Path, *, lower_case: bool = False, side: str = "right") -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower_case:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=40,
        padding_side=side,
    )
    fast.save_pretrained(folder)
    return fast


def write_bert(folder: Path, *, seed: int = 0, width: int = 32, layers: int = 2, **tokenizer: Any) -> BertModel:
    """Write a plain transformer folder: config, weights, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=40,
        initializer_range=0.2,
    )
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    write_tokenizer(folder, **tokenizer)
    return model


def write_sentence_transformer(
    folder: Path,
    *,
    pooling: Any = "mean",
    dense: tuple[int, str] | None = None,
    normalize: bool = False,
    include_prompt: bool = True,
    seed: int = 0,
    **settings: Any,
) -> Any:
    """Write a sentence-transformers folder with the installed package and return its model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    plain = folder.with_name(folder.name + "-plain")
    write_bert(plain, seed=seed)
    transformer = modules.Transformer(str(plain), max_seq_length=settings.pop("max_seq_length", 12))
    parts = [transformer, modules.Pooling(32, pooling, include_prompt=include_prompt)]
    width = parts[1].get_embedding_dimension()
    if dense is not None:
        torch.manual_seed(seed + 1)
        activation = getattr(torch.nn, dense[1])()
        parts.append(modules.Dense(width, dense[0], activation_function=activation))
    if normalize:
        parts.append(modules.Normalize())
    model = SentenceTransformer(modules=parts, device="cpu", **settings)
    model.save_pretrained(str(folder))
    return model
