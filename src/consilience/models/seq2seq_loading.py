"""Open a sequence-to-sequence model, or make a small one from nothing: tokenizer, architecture, seeded weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consilience.checkpoints import Checkpoint, open_checkpoint
from consilience.errors import CheckpointError, MissingExtraError, OutputError, Problems, RequestError
from consilience.models.loading import choose_device, open_tokenizer, read_config, without_initial_values
from consilience.models.weights import match_names

if TYPE_CHECKING:
    from consilience.models.seq2seq import Seq2SeqModel

__all__ = ["create_seq2seq", "load_seq2seq", "word_tokenizer"]

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
# T5's first files hold a bias that the architecture never had
_OLD = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


def load_seq2seq(
    reference: str | Path | Checkpoint, *, device: str | None = None, max_tokens: int | None = None
) -> Seq2SeqModel:
    """Open a sequence-to-sequence model (BART, T5, ...) with the weights of any checkpoint reference.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "tiny"
    >>> model = create_seq2seq(folder, {"model_type": "t5", "d_model": 16}, word_tokenizer(["one two"]))
    >>> load_seq2seq(folder).mean_loss([("one", "two")]) == model.mean_loss([("one", "two")])
    True

    reference: a folder, `package:module/folder`, a hub id, `MODEL+ADAPTER`, or an opened Checkpoint; the architecture
    is the one that its config.json names in transformers. device: None is the GPU where there is one. max_tokens:
    longest input and longest target; by default the config's positions, else the tokenizer's limit. Weights are held
    and computed with in float32.

    Raises CheckpointError where the folder is no such model, its tensors do not fit its config, or tensors that the
    config says are tied differ; RequestError for an impossible device or length.
    """
    for module in ("torch", "transformers"):
        if find_spec(module) is None:
            raise MissingExtraError(module, "text")
    import transformers

    from consilience.models.seq2seq import Seq2SeqModel

    checkpoint = reference if isinstance(reference, Checkpoint) else open_checkpoint(reference)
    if not (checkpoint.folder / "config.json").is_file():
        raise CheckpointError(
            f"{checkpoint.reference}: no config.json in {checkpoint.folder}; a model needs a model folder"
        )
    config = read_config(checkpoint.folder, checkpoint.reference)
    kind = transformers.AutoModelForSeq2SeqLM._model_mapping.get(type(config), None)
    if kind is None:
        raise CheckpointError(
            f"{checkpoint.reference}: transformers has no sequence-to-sequence model of type {config.model_type!r}"
        )
    tokenizer = open_tokenizer(checkpoint.folder)
    positions = getattr(config, "max_position_embeddings", None)
    limit = max_tokens if max_tokens is not None else positions or tokenizer.model_max_length
    if limit < 2 or (isinstance(positions, int) and limit > positions):
        raise RequestError(f"max_tokens is {limit}; this model takes 2 to {positions or 'any number of'} tokens")
    module, names, copies = _filled(kind[0] if isinstance(kind, tuple | list) else kind, config, checkpoint)
    module = module.to(choose_device(device)).eval()
    return Seq2SeqModel(checkpoint, module, tokenizer, names, max_tokens=int(limit), copies=copies)


def _filled(kind: Any, config: Any, checkpoint: Checkpoint) -> tuple[Any, dict[str, str], dict[str, str]]:
    """Return the network with its weights, the tensor name of each parameter, and the tensors that repeat one."""
    with without_initial_values():
        module = kind._from_config(config).float()
    module.tie_weights()
    problems = Problems()
    _untie_different(module, checkpoint, problems)
    problems.raise_if_any(CheckpointError, checkpoint.reference)
    parameters, aliases = dict(module.named_parameters()), _aliases(module)
    shapes = {name: source.shape for name, source in checkpoint.tensors.items()}
    buffers = dict(module.named_buffers())
    # A tied weight may be in the files under any of its names, or under several.
    stored = {first: first for first in parameters}
    for alias, first in aliases.items():
        if stored[first] not in shapes and alias in shapes:
            stored[first] = alias
    copies = {alias: stored[first] for alias, first in aliases.items() if alias in shapes and alias != stored[first]}
    matched = match_names(
        {stored[name]: tuple(parameter.shape) for name, parameter in parameters.items()},
        shapes,
        prefix="-",
        buffers=[*buffers, *copies, *_OLD],
        subject=f"{checkpoint.reference}: its tensors do not fit its config",
    )
    names = {name: matched[stored[name]] for name in parameters}
    for name, buffer in buffers.items():
        if name in shapes and tuple(shapes[name]) != tuple(buffer.shape):
            problems.add(f"tensor {name} has shape {list(shapes[name])}, the config asks for {list(buffer.shape)}")
    problems.raise_if_any(CheckpointError, checkpoint.reference)
    for name, tensor in [*names.items(), *((name, name) for name in buffers if name in shapes)]:
        source = checkpoint.tensors[tensor]
        target = parameters[name].detach() if name in parameters else buffers[name]
        source.read(0, source.numel, target.view(-1).numpy())
    if (checkpoint.folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        module.generation_config = GenerationConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    return module, names, copies


def _aliases(module: Any) -> dict[str, str]:
    """Return further name -> first name of every parameter that has several."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def _untie_different(module: Any, checkpoint: Checkpoint, problems: Problems) -> None:
    """Give names that are tied by default, but hold other values in the files, a parameter of their own.

    T5 1.1 and its kin are such. Files that differ where the config says outright that they are tied are a problem.
    """
    import torch

    for alias, first in _aliases(module).items():
        if alias not in checkpoint.tensors or first not in checkpoint.tensors:
            continue
        if np.array_equal(_values(checkpoint, alias), _values(checkpoint, first)):
            continue
        if checkpoint.config.get("tie_word_embeddings") is True:
            problems.add(
                f"{alias} and {first} differ, but the config ties them; set tie_word_embeddings to false in "
                "config.json, or make them equal"
            )
        parent, _, leaf = alias.rpartition(".")
        held = module.get_parameter(alias)
        setattr(module.get_submodule(parent), leaf, torch.nn.Parameter(torch.empty_like(held)))


def _values(checkpoint: Checkpoint, tensor: str) -> Any:
    source = checkpoint.tensors[tensor]
    values = np.empty(source.numel, np.float32)
    source.read(0, source.numel, values)
    return values


def word_tokenizer(texts: Iterable[str], *, max_tokens: int = 512) -> Any:
    """Return a transformers tokenizer with one token per word of the texts (with a colon after it), mark or <TYPE>.

    >>> tokenizer = word_tokenizer(["input: a cat, <PET>"])
    >>> tokenizer("a cat <PET>, a dog")["input_ids"], tokenizer.decode([6, 7, 5])
    ([6, 7, 5, 4, 6, 3, 2], 'a cat <PET>')

    Other words become <unk>; a decoded text has spaces between all tokens.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"<\w+>|\w+:?|[^\w\s]"), "isolated")]
    )
    found = sorted({word for text in texts for word, _ in pieces.pre_tokenize_str(text)} - set(_SPECIAL))
    words = {token: index for index, token in enumerate((*_SPECIAL, *found))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pieces
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", _SPECIAL.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    )


def create_seq2seq(
    folder: str | Path, config: Mapping[str, Any], tokenizer: Any, *, seed: int = 0, device: str | None = None
) -> Seq2SeqModel:
    """Write a new sequence-to-sequence model with random weights to `folder`, and open it.

    >>> import tempfile
    >>> config = {"model_type": "bart", "d_model": 16}
    >>> model = create_seq2seq(Path(tempfile.mkdtemp()) / "m", config, word_tokenizer(["one two"]))
    >>> model.parameters()["model.shared.weight"].shape
    torch.Size([6, 16])

    config: the content of a config.json of transformers, with its `model_type`; sizes of the vocabulary and special
    tokens are the tokenizer's. Of what a small BART or T5 needs, unset are: width 64, one layer each in encoder and
    decoder, 4 heads, an inner width 3 times that of the model, 256 positions (BART). tokenizer: one of transformers,
    such as `word_tokenizer` makes. The weights are transformers' initial values, a function of `seed`. Raises
    OutputError when the folder holds something.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    from consilience.models.saving import write_tensors

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"output {folder}: exists and is not an empty folder; choose another place")
    content = dict(config)
    kind = content.pop("model_type", None)
    if kind is None:
        raise RequestError("the config names no model_type, such as 'bart' or 't5'")
    content = {**_small(kind, int(content.get("d_model", 64))), **content, "vocab_size": len(tokenizer)}
    content |= {f"{one}_token_id": getattr(tokenizer, f"{one}_token_id") for one in ("pad", "bos", "eos")}
    content.setdefault("decoder_start_token_id", content["pad_token_id"])
    content.setdefault("forced_eos_token_id", None)
    try:
        built = AutoConfig.for_model(kind, **content)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = AutoModelForSeq2SeqLM.from_config(built)
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"transformers cannot build a sequence-to-sequence model from this config: {error}"
        ) from error
    built.architectures = [type(module).__name__]
    tensors = {name: parameter.detach() for name, parameter in module.named_parameters()}
    write_tensors(folder, tensors, dtype="float32", file="model.safetensors")
    built.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_seq2seq(folder, device=device)


def _small(kind: str, width: int) -> dict[str, Any]:
    if kind == "t5":
        sizes = {"num_layers": 1, "num_decoder_layers": 1, "num_heads": 4, "d_kv": width // 4, "d_ff": 3 * width}
        return {"d_model": width, **sizes}
    if kind not in ("bart", "mbart"):
        return {}
    sizes = {"layers": 1, "attention_heads": 4, "ffn_dim": 3 * width}
    both = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in sizes.items()}
    return {"d_model": width, "max_position_embeddings": 256, **both}
