"""Tiny causal language models of real architectures, saved as transformers saves them."""

import torch


def config_of(kind, **options):
    from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    made = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[kind]
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    if kind == "qwen2":
        sizes.pop("head_dim")
    return made(**{**sizes, **options})


def write_lm(folder, kind="llama", seed=0, near=None, spread=0.02, **options):
    """Save a random model, or one near another's weights, with a tokenizer of bytes; return the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(kind, **options)).float()
    if near is not None:
        weights = AutoModelForCausalLM.from_pretrained(near).float().state_dict()
        noise = {name: torch.randn_like(tensor) * spread for name, tensor in weights.items()}
        if model.config.tie_word_embeddings:
            noise["lm_head.weight"] = noise["model.embed_tokens.weight"]
        model.load_state_dict({name: tensor + noise[name] for name, tensor in weights.items()})
    model.save_pretrained(folder)
    marks = ["<unk>", "</s>", "w", "\u0120", *"0123456789", *"abcdefghijklmnopqrstuvxyz"]
    tokenizer = Tokenizer(models.BPE({mark: index for index, mark in enumerate(marks)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    return folder
