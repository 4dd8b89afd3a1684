"""Side files and configuration of a merge whose vocabulary or chat template the recipe sets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from consilience.checkpoints.model import Checkpoint
from consilience.errors import Problems
from consilience.merging.chat_templates import choose_template, model_template, template_tokens
from consilience.merging.request import MergeRequest
from consilience.merging.tokenizer_files import TokenizerContent
from consilience.merging.tokenizer_output import extended_files
from consilience.merging.vocabulary_align import Alignment

__all__ = ["VocabularyFiles", "output_files"]

_TOKEN_ID = re.compile(r".*_token_(id|index)$")


class _Vocabulary(Protocol):
    @property
    def folder(self) -> Path: ...
    @property
    def prefix(self) -> str: ...
    @property
    def files(self) -> tuple[str, ...]: ...
    @property
    def hash(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def content(self) -> TokenizerContent: ...


@dataclass
class VocabularyFiles:
    """Files to write, the donor's files to leave out, and keys of the config."""

    files: dict[str, bytes] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)


def output_files(
    request: MergeRequest,
    models: Mapping[str, Checkpoint],
    vocabularies: Mapping[str, _Vocabulary],
    alignment: Alignment | None,
    donor: str,
    notices: list[str],
    problems: Problems,
) -> VocabularyFiles:
    """Return the tokenizer's files, the config keys that follow the vocabulary, and the chat template."""
    made = VocabularyFiles()
    lead = alignment.lead if alignment is not None else donor
    prefix = vocabularies[donor].prefix + "/" if vocabularies[donor].prefix else ""
    if alignment is not None:
        own = vocabularies[lead]
        if alignment.additions:
            files, left_out = extended_files(own.folder, own.files, own.content, alignment.additions)
            if left_out:
                notices.append(f"{', '.join(left_out)} of {lead!r} cannot hold the new tokens and is left out")
        elif lead != donor:
            files = {name: (own.folder / name).read_bytes() for name in own.files}
        else:
            files, left_out = {}, []
        if files:
            made.files = {prefix + name: data for name, data in files.items()}
            made.dropped = tuple(prefix + name for name in vocabularies[donor].files if name not in files)
        made.config = {"vocab_size": alignment.rows}
        _move_ids(models[donor], vocabularies[donor], alignment, made, notices)
    if request.chat_template is not None:
        _set_template(request.chat_template, vocabularies, lead, prefix, alignment, made, notices)
    return made


def _move_ids(
    donor: Checkpoint, vocabulary: _Vocabulary, alignment: Alignment, made: VocabularyFiles, notices: list[str]
) -> None:
    """Give every *_token_id of the donor's config the id that its token has in the output."""
    if not vocabulary.hash:
        return
    by_id = {number: token for token, number in vocabulary.content.tokens.items()}
    moved: list[str] = []

    def move(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [move(key, number) for number in value]
        if isinstance(value, bool) or not isinstance(value, int) or value not in by_id:
            return value
        token = by_id[value]
        if token not in alignment.tokens:
            notices.append(f"config {key} is {value}, the token {token!r}, which the output vocabulary lacks")
            return value
        if alignment.tokens[token] != value:
            moved.append(f"{key}: {value} to {alignment.tokens[token]}")
        return alignment.tokens[token]

    parts = [donor.config, *(v for k, v in donor.config.items() if k == "text_config" and isinstance(v, Mapping))]
    for part in parts:
        made.config.update({k: move(k, v) for k, v in part.items() if _TOKEN_ID.fullmatch(k) and v is not None})
    path = donor.folder / "generation_config.json"
    if "generation_config.json" in donor.side_files:
        before = json.loads(path.read_bytes())
        after = {k: move(k, v) if _TOKEN_ID.fullmatch(k) else v for k, v in before.items()}
        if after != before:
            made.files["generation_config.json"] = (json.dumps(after, indent=2) + "\n").encode()
    if moved:
        notices.append("ids of special tokens follow the output vocabulary (" + ", ".join(dict.fromkeys(moved)) + ")")


def _set_template(
    wanted: str,
    vocabularies: Mapping[str, _Vocabulary],
    lead: str,
    prefix: str,
    alignment: Alignment | None,
    made: VocabularyFiles,
    notices: list[str],
) -> None:
    """Write the chat template into the tokenizer's config and beside it."""
    found = {name: model_template(vocabulary.folder) for name, vocabulary in vocabularies.items() if vocabulary.hash}
    text = choose_template(wanted, found)
    if text is None:
        notices.append("chat_template: auto, but no input has a chat template; none is written")
        return
    if vocabularies[lead].hash:
        tokens = alignment.tokens if alignment is not None else vocabularies[lead].content.tokens
        if absent := [token for token in template_tokens(text) if token not in tokens]:
            notices.append(
                f"the chat template writes {', '.join(absent)}, which the vocabulary does not have as tokens; "
                "add them under `tokenizer: {tokens: ...}` and train their rows"
            )
    config_name = prefix + "tokenizer_config.json"
    own = vocabularies[lead].folder / "tokenizer_config.json"
    before = made.files.get(config_name) or (own.read_bytes() if own.is_file() else b"{}")
    config = {**json.loads(before), "chat_template": text}
    made.files[config_name] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    made.files[prefix + "chat_template.jinja"] = text.encode()
    made.files.pop(prefix + "chat_template.json", None)
    made.dropped = (*made.dropped, prefix + "chat_template.json")
