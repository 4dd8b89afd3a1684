"""Vocabularies of a merge: compared by hash first, aligned by token text where the recipe says how."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from consilience.checkpoints.model import Checkpoint
from consilience.checkpoints.sources import Source
from consilience.core.hashing import file_xxh3
from consilience.errors import CheckpointError, Problems, did_you_mean
from consilience.merging.request import MergeRequest
from consilience.merging.tokenizer_files import TokenizerContent, is_tokenizer_file, read_tokenizer, tokenizer_hash
from consilience.merging.vocabulary_align import Alignment, align
from consilience.merging.vocabulary_output import VocabularyFiles, output_files
from consilience.merging.vocabulary_rows import RowMap, Rows

__all__ = [
    "Vocabulary",
    "VocabularyPlan",
    "is_head_name",
    "is_vocabulary_name",
    "plan_vocabulary",
    "read_vocabulary",
    "vocabulary_problems",
]

_INPUT = (
    "embed_tokens",
    "word_embeddings",
    "word_embedding",
    "wte",
    "shared",
    "tok_embeddings",
    "token_embedding",
    "embed_in",
    "embeddings",
    "embedding",
)
_OUTPUT = re.compile(
    r"(.*\.)?(lm_head|embed_out|vocab_projector|generator_lm_head|decoder|output_layer)(\.decoder)?\.(weight|bias)"
    r"|(.*\.)?(predictions|lm_head)\.bias|output\.weight|(.*\.)?final_logits_bias"
)


def is_vocabulary_name(name: str) -> bool:
    """Whether a tensor of this name has one row per token, if its size agrees: embeddings and output heads.

    >>> [is_vocabulary_name(n) for n in ("model.embed_tokens.weight", "cls.predictions.bias", "h.0.mlp.weight")]
    [True, True, False]
    """
    return _is_input(name) or is_head_name(name)


def is_head_name(name: str) -> bool:
    """Whether a tensor of this name belongs to an output head over the vocabulary."""
    return _OUTPUT.fullmatch(name.rpartition("/")[2]) is not None


def _is_input(name: str) -> bool:
    return name.endswith(".weight") and _module(name) in _INPUT


def _module(name: str) -> str:
    """Return the name of the module that holds a weight."""
    return name.rpartition("/")[2].removesuffix(".weight").rpartition(".")[2]


def _axis_size(shape: tuple[int, ...]) -> int:
    """Return the size along the vocabulary: the first axis that is not 1 (heads' biases can be (1, tokens))."""
    return next((size for size in shape if size != 1), 1) if shape else 0


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of one model, read when asked for, and the rows of its input embedding.

    `folder` holds the tokenizer's `files`; `prefix` is that folder within the model's. `hash` is equal for equal
    files, "" where there are none. `embedding` is the input embedding's name, "" where none is found.
    """

    model: str
    folder: Path
    prefix: str
    files: tuple[str, ...]
    hash: str
    rows: int
    embedding: str

    @cached_property
    def content(self) -> TokenizerContent:
        """Tokens, ids and added tokens. Raises CheckpointError where the files cannot be read."""
        return read_tokenizer(self.folder, self.files)

    @property
    def tokens(self) -> Mapping[str, int]:
        """Every token and its id."""
        return self.content.tokens


@dataclass(frozen=True)
class VocabularyPlan:
    """What alignment changes: sources of tensors by (model, tensor), keys of the config, and side files.

    `files` are written instead of, or beside, the donor's; `dropped` are the donor's that would be stale.
    """

    tensors: Mapping[tuple[str, str], Source] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def read_vocabulary(checkpoint: Checkpoint, *, name: str | None = None) -> Vocabulary:
    """Return the vocabulary of an opened model; nothing but small files is read before its tokens are asked for.

    An adapter that carries a tokenizer of its own, as those that add tokens do, comes before the model's.
    """
    inputs = [tensor for tensor in checkpoint.tensors if _is_input(tensor)]
    heads = (tensor for tensor in checkpoint.tensors if is_vocabulary_name(tensor))
    embedding = min(inputs, key=lambda t: _INPUT.index(_module(t)), default=None) or next(heads, "")
    rows = _axis_size(tuple(checkpoint.tensors[embedding].shape)) if embedding else 0
    label = name or checkpoint.name
    for adapter in reversed(checkpoint.adapters):
        files = tuple(sorted(p.name for p in adapter.folder.iterdir() if is_tokenizer_file(p.name)))
        if found := tokenizer_hash(adapter.folder, files):
            return Vocabulary(label, adapter.folder, "", files, found, rows, embedding)
    component = embedding.rpartition("/")[0]
    for prefix in dict.fromkeys((component, "")):
        files = _files_in(checkpoint, prefix)
        folder = checkpoint.folder / prefix if prefix else checkpoint.folder
        if found := tokenizer_hash(folder, files):
            return Vocabulary(label, folder, prefix, files, found, rows, embedding)
    return Vocabulary(label, checkpoint.folder, "", (), "", rows, embedding)


def _files_in(checkpoint: Checkpoint, prefix: str) -> tuple[str, ...]:
    start = f"{prefix}/" if prefix else ""
    inside = (f.removeprefix(start) for f in checkpoint.side_files if f.startswith(start))
    return tuple(name for name in inside if "/" not in name and is_tokenizer_file(name))


def vocabulary_problems(vocabularies: Sequence[Vocabulary], notices: list[str]) -> list[str]:
    """Return why models cannot be merged row by row where the recipe says nothing about tokenizers.

    Vocabularies that only add tokens where others have none are a notice.
    """
    known = [v for v in vocabularies if v.hash and v.rows]
    problems: list[str] = []
    for other in known[1:]:
        first = known[0]
        if other.hash == first.hash or _same_tokens(first, other, problems):
            if other.rows != first.rows:
                problems.append(
                    f"models {first.model!r} and {other.model!r} share a vocabulary but their embeddings "
                    f"({first.embedding}) have {first.rows} and {other.rows} rows; {_ADVICE}"
                )
            continue
        if (difference := _difference(first, other, notices)) is not None:
            problems.append(difference)
    return problems


_ADVICE = "say how rows are matched: `tokenizer: {source: union}` (or base, or a model) in the recipe"


def _same_tokens(first: Vocabulary, other: Vocabulary, problems: list[str]) -> bool:
    try:
        return first.tokens == other.tokens
    except CheckpointError as error:
        if _same_pieces(first, other):
            return True
        problems.append(f"the tokenizers of {first.model!r} and {other.model!r} differ and cannot be compared: {error}")
        return True


def _same_pieces(first: Vocabulary, other: Vocabulary) -> bool:
    """Whether both hold the same sentencepiece model, whatever else one of them holds."""
    shared = [name for name in first.files if name in other.files and name.endswith(".model")]
    return bool(shared) and all(file_xxh3(first.folder / n) == file_xxh3(other.folder / n) for n in shared)


def _difference(first: Vocabulary, other: Vocabulary, notices: list[str]) -> str | None:
    """Return how two vocabularies contradict each other, or None."""
    mine, theirs = first.tokens, other.tokens
    only = (set(mine) - set(theirs), set(theirs) - set(mine))
    moved = [token for token, number in mine.items() if theirs.get(token, number) != number]
    by_id = {number: token for token, number in mine.items()}
    renamed = [token for token in only[1] if theirs[token] in by_id]
    if not moved and not renamed and first.rows == other.rows:
        count = len(only[0]) + len(only[1])
        notices.append(
            f"tokenizers of {first.model!r} and {other.model!r} differ in {count} token(s) that only one of them has; "
            "rows are merged as they stand"
        )
        return None
    examples = ", ".join(repr(token) for token in sorted(only[0] | only[1], key=len)[:4])
    return (
        f"models {first.model!r} and {other.model!r} have different vocabularies (tokenizers of {len(mine)} and "
        f"{len(theirs)} tokens: {len(only[0])} and {len(only[1])} of them only there, e.g. {examples or 'none'}, "
        f"{len(moved)} at another id; {first.embedding} has {first.rows} and {other.rows} rows); {_ADVICE}"
    )


def plan_vocabulary(
    request: MergeRequest, models: Mapping[str, Checkpoint], problems: Problems, notices: list[str]
) -> VocabularyPlan:
    """Return what the recipe's tokenizer settings and chat template change; record problems and notices.

    Without tokenizer settings different vocabularies are a problem; with them every embedding and head is read
    through a map of rows.
    """
    merged = _merged_models(request)
    donor = request.base or merged[0]
    vocabularies = {name: read_vocabulary(model, name=name) for name, model in models.items()}
    alignment = None
    tensors: dict[tuple[str, str], Source] = {}
    if request.tokenizer is None:
        compared = dict.fromkeys((donor, *merged))
        problems.extend(vocabulary_problems([vocabularies[name] for name in compared], notices))
    else:
        lead = merged[0] if request.tokenizer.source in ("union", "base") else request.tokenizer.source
        if lead not in models:
            problems.add(f"tokenizer.source: {lead!r} is no model of this merge{did_you_mean(lead, models)}")
            return VocabularyPlan()
        vocabularies = _completed(vocabularies, lead, merged, problems, notices)
        alignment = _alignment(request, vocabularies, merged, lead, problems)
    if problems:
        return VocabularyPlan()
    if alignment is not None:
        notices.extend(alignment.notices)
        tensors = _tensors(alignment, models, vocabularies, problems)
    made: VocabularyFiles = output_files(request, models, vocabularies, alignment, donor, notices, problems)
    return VocabularyPlan(tensors, made.config, made.files, made.dropped)


def _merged_models(request: MergeRequest) -> list[str]:
    """Return the models that give weights, the base first (without a share in the merge it gives copied tensors)."""
    bases = [request.base] if request.base is not None else []
    slices = [name for part in request.slices or () for name in (part.base, *(s.model for s in part.sources)) if name]
    return list(dict.fromkeys((*bases, *request.experts, *slices)))


def _completed(
    vocabularies: Mapping[str, Vocabulary], lead: str, merged: Sequence[str], problems: Problems, notices: list[str]
) -> dict[str, Vocabulary]:
    """Give models without tokenizer files the lead's, where their rows allow it."""
    first = vocabularies[lead]
    if not first.hash:
        problems.add(f"tokenizer: model {lead!r} has no tokenizer files; there is nothing to align rows with")
        return dict(vocabularies)
    complete = dict(vocabularies)
    for name in merged:
        own = vocabularies[name]
        if own.hash:
            continue
        if own.rows != first.rows:
            problems.add(
                f"tokenizer: model {name!r} has no tokenizer files and {own.rows} rows, {lead!r} has {first.rows}; "
                "put its tokenizer.json into its folder"
            )
            continue
        notices.append(f"model {name!r} has no tokenizer files; its rows are taken to be those of {lead!r}'s tokens")
        complete[name] = Vocabulary(name, first.folder, first.prefix, first.files, first.hash, own.rows, own.embedding)
    return complete


def _alignment(
    request: MergeRequest, vocabularies: Mapping[str, Vocabulary], merged: list[str], lead: str, problems: Problems
) -> Alignment | None:
    """Return the alignment, or None where all vocabularies are one and the recipe changes nothing."""
    rule = request.tokenizer
    assert rule is not None
    involved = dict.fromkeys((lead, *merged))
    same = len({vocabularies[name].hash for name in involved}) == 1
    if same and len({vocabularies[name].rows for name in involved}) == 1 and not rule.tokens:
        rows = vocabularies[lead].rows
        if not rule.pad_to_multiple_of or rows % rule.pad_to_multiple_of == 0:
            return None
    named = [r.model for r in rule.tokens.values() if r.model is not None and r.model in vocabularies]
    needed = dict.fromkeys((*involved, *named))
    if problems:
        return None
    try:
        return align(rule, {name: vocabularies[name] for name in needed}, request.base, merged, problems)
    except CheckpointError as error:
        problems.add(f"tokenizer: {error}")
        return None


def _tensors(
    alignment: Alignment,
    models: Mapping[str, Checkpoint],
    vocabularies: Mapping[str, Vocabulary],
    problems: Problems,
) -> dict[tuple[str, str], Source]:
    """Return the vocabulary tensors of every merged model, read through its map where that changes anything."""
    found: dict[tuple[str, str], Source] = {}
    for name, rows in alignment.maps.items():
        own = alignment.models.index(name)
        if rows.is_identity(own, vocabularies[name].rows):
            continue
        for tensor, source in models[name].tensors.items():
            if not is_vocabulary_name(tensor):
                continue
            size = _axis_size(tuple(source.shape))
            if size == vocabularies[name].rows:
                made = _gathered(tensor, source, rows, alignment, models, vocabularies, problems)
                if made is not None:
                    found[name, tensor] = made
            elif "lm_head" in tensor or "embed_out" in tensor or "embed_tokens" in tensor:
                problems.add(
                    f"tensor {tensor!r} of {name!r} has {size} rows where {vocabularies[name].embedding!r} "
                    f"has {vocabularies[name].rows}; its rows cannot be matched to tokens"
                )
    return found


def _gathered(
    tensor: str,
    source: Source,
    rows: RowMap,
    alignment: Alignment,
    models: Mapping[str, Checkpoint],
    vocabularies: Mapping[str, Vocabulary],
    problems: Problems,
) -> Rows | None:
    """Return one tensor read through a map; only the tensors that rows come from are kept."""
    used = rows.used()
    sources = []
    width = source.numel // max(_axis_size(tuple(source.shape)), 1)
    for number in used:
        name = alignment.models[number]
        model = models[name]
        stored = model.tensors.get(tensor) or model.tensors.get(model.tied.get(tensor, ""))
        expected = vocabularies[name].rows * width
        if stored is None or stored.numel != expected:
            found = "no such tensor" if stored is None else f"shape {list(stored.shape)}"
            problems.add(f"tensor {tensor!r}: rows are needed from {name!r}, which has {found}")
            return None
        sources.append(stored)
    shape = list(source.shape)
    shape[next((axis for axis, size in enumerate(shape) if size != 1), 0)] = alignment.rows
    return Rows(tuple(sources), rows.renumbered(used), source.dtype, tuple(shape))
