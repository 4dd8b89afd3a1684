"""The native recipe language: what a file that says `method:` asks for, with every problem reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consilience.checkpoints.dtypes import DTYPES, dtype_from_name
from consilience.errors import Problems, RecipeError, did_you_mean
from consilience.merging.chat_templates import template_problem
from consilience.merging.coefficients import parse_coefficients
from consilience.merging.method import find_method, method_names
from consilience.merging.opening import open_models
from consilience.merging.parameters import Filters, Form, Gradient, Level, ParameterTable
from consilience.merging.request import AdapterOutput, MergeRequest, TokenizerRule, TokenRule

__all__ = ["KEYS", "RECIPE_VERSION", "parse_native"]

RECIPE_VERSION = 1
KEYS = (
    "version",
    "name",
    "description",
    "method",
    "base",
    "experts",
    "parameters",
    "coefficients",
    "tensors",
    "aux",
    "seed",
    "dtype",
    "tokenizer",
    "chat_template",
    "output",
)


def parse_native(content: Mapping[str, Any], *, origin: str, folder: Path, text: str = "") -> MergeRequest:
    """Return the request of a native recipe given as plain data.

    >>> content = {"version": 1, "method": "linear", "experts": {"a": "x", "b": "y"}}
    >>> parse_native(content, origin="r", folder=Path()).experts
    ('a', 'b')

    Raises RecipeError naming `origin` and listing all problems: unknown keys (with a suggestion), wrong types, an
    unknown method, parameters out of range, experts that are not there.
    """
    problems = Problems()
    for key in content:
        if key not in KEYS:
            problems.add(f"{key}: unknown key{did_you_mean(str(key), KEYS)}")
    version = content.get("version")
    if version != RECIPE_VERSION:
        found = "missing" if version is None else repr(version)
        problems.add(f"version: {found}; this program reads version {RECIPE_VERSION} (write `version: 1`)")
    method = content.get("method")
    if method not in method_names():
        problems.add(f"method: {method!r} is unknown{did_you_mean(str(method), method_names())}")
        method = ""
    renames: dict[str, dict[str, str]] = {}
    experts = _experts(content.get("experts"), renames, problems)
    base = _model(content.get("base"), "base", renames, problems) if content.get("base") is not None else None
    levels = _levels(content.get("parameters") or {}, tuple(experts), method or "", problems)
    tensors = _mapping(content, "tensors", ("merge", "copy"), problems)
    output = _mapping(content, "output", ("adapter",), problems)
    seed = content.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        problems.add(f"seed: {seed!r} is not a whole number")
        seed = 0
    models = {**({"base": base} if base else {}), **experts}
    if base and "base" in experts:
        problems.add("experts.base: the name 'base' is taken by the base model; choose another name")
    request = MergeRequest(
        method=method or "",
        models=models,
        experts=tuple(experts),
        base="base" if base else None,
        parameters=ParameterTable(tuple(levels)),
        coefficients=parse_coefficients(content.get("coefficients"), tuple(experts), problems),
        merge=_patterns(tensors, "merge", problems),
        copy=_patterns(tensors, "copy", problems),
        out_dtype=_dtype(content.get("dtype"), problems),
        tokenizer=_tokenizer(content.get("tokenizer"), models, problems),
        chat_template=_chat_template(content, problems),
        adapter=_adapter(output, problems),
        renames=renames,
        aux=_aux(content.get("aux"), problems),
        seed=seed,
        origin=origin,
        folder=folder,
        text=text,
    )
    if problems:
        open_models(request, {}, problems)  # so that models that are not there are reported in the same breath
    problems.raise_if_any(RecipeError, origin)
    return request


def _text(content: Mapping[str, Any], key: str, problems: Problems) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        problems.add(f"{key}: {value!r} is not a text")
        return None
    return value


def _mapping(content: Mapping[str, Any], key: str, known: Sequence[str], problems: Problems) -> Mapping[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, Mapping):
        problems.add(f"{key}: expected a mapping with the keys {', '.join(known)}, found {value!r}")
        return {}
    for name in value:
        if name not in known:
            problems.add(f"{key}.{name}: unknown key{did_you_mean(str(name), known)}")
    return value


def _model(value: Any, name: str, renames: dict[str, dict[str, str]], problems: Problems) -> str | None:
    """Return the reference of a model written as text or as {model: ..., rename: {beginning: beginning}}."""
    if not isinstance(value, Mapping):
        if isinstance(value, str):
            return value
        where = name if name == "base" else f"experts.{name}"
        problems.add(f"{where}: {value!r} is not a model (a path, package:..., or org/name)")
        return None
    where = name if name == "base" else f"experts.{name}"
    written = _mapping({where: value}, where, ("model", "rename"), problems)
    rename = written.get("rename") or {}
    if not isinstance(rename, Mapping) or not all(isinstance(v, str) for pair in rename.items() for v in pair):
        problems.add(f"{where}.rename: expected {{beginning of a name: other beginning}}, found {rename!r}")
    else:
        renames[name] = {str(old): str(new) for old, new in rename.items()}
    return _model(written.get("model"), name, renames, problems)


def _experts(value: Any, renames: dict[str, dict[str, str]], problems: Problems) -> dict[str, str]:
    if isinstance(value, Mapping):
        pairs = [(str(name), reference) for name, reference in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        named = [(reference.get("model") if isinstance(reference, Mapping) else reference) for reference in value]
        pairs = [(str(name).rstrip("/").split("/")[-1], entry) for name, entry in zip(named, value, strict=True)]
    else:
        found = "none are given" if value is None else f"found {value!r}"
        problems.add(f"experts: expected {{name: model}} or a list of models, {found}")
        return {}
    if not pairs:
        problems.add("experts: the list is empty; name at least one expert")
    experts: dict[str, str] = {}
    for name, reference in pairs:
        if name in experts:
            problems.add(f"experts: the name {name!r} stands twice; write {{name: model}} with distinct names")
        elif (model := _model(reference, name, renames, problems)) is not None:
            experts[name] = model
    return experts


def _levels(value: Any, experts: tuple[str, ...], method: str, problems: Problems) -> list[Level]:
    """Return one level per expert for {expert: value} parameters, and a last one for what holds for all."""
    if not isinstance(value, Mapping):
        problems.add(f"parameters: expected a mapping, found {value!r}")
        return []
    declared = find_method(method).parameters if method else None
    shared: dict[str, Form] = {}
    own: dict[str, dict[str, Form]] = {}
    for name, written in value.items():
        if declared is not None and name not in declared:
            problems.add(
                f"parameters.{name}: method {method!r} has no such parameter{did_you_mean(str(name), declared)}"
            )
            continue
        if isinstance(written, Mapping):
            if declared is not None and not declared[name].per_expert:
                problems.add(f"parameters.{name}: one value for the whole merge is expected, found one per expert")
                continue
            for expert, form in written.items():
                if expert not in experts:
                    problems.add(f"parameters.{name}: unknown expert {expert!r}{did_you_mean(str(expert), experts)}")
                own.setdefault(str(expert), {})[name] = _form(form, f"parameters.{name}.{expert}", problems)
            absent = [e for e in experts if e not in written]
            if absent:
                problems.add(f"parameters.{name}: no value for expert(s) {', '.join(absent)}")
        else:
            shared[name] = _form(written, f"parameters.{name}", problems)
    return [*(Level(values, expert=expert) for expert, values in own.items()), Level(shared)]


def _form(value: Any, where: str, problems: Problems) -> Form:
    if not isinstance(value, list):
        return value
    if not value:
        problems.add(f"{where}: the list is empty; write one value, a gradient over layers, or filters")
        return None
    if all(isinstance(entry, Mapping) for entry in value):
        entries = []
        for entry in value:
            if unknown := set(entry) - {"filter", "value"}:
                problems.add(f"{where}: unknown key(s) {sorted(unknown)} in a filter; use `filter` and `value`")
            if "value" not in entry:
                problems.add(f"{where}: the filter {entry.get('filter')!r} has no `value`")
            entries.append((entry.get("filter"), _form(entry.get("value"), where, problems)))
        return Filters(tuple(entries))
    return Gradient(tuple(value))


def _patterns(tensors: Mapping[str, Any], key: str, problems: Problems) -> tuple[str, ...]:
    value = tensors.get(key)
    if value is None:
        return ()
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
        problems.add(f"tensors.{key}: expected a pattern or a list of patterns, found {value!r}")
        return ()
    return tuple(patterns)


def _aux(value: Any, problems: Problems) -> dict[str, dict[str, str]]:
    if value is not None and not isinstance(value, Mapping):
        problems.add(f"aux: expected {{kind: FOLDER}} or {{kind: {{expert: FOLDER}}}}, found {value!r}")
        return {}
    found: dict[str, dict[str, str]] = {}
    for kind, places in (value or {}).items():
        named = places if isinstance(places, Mapping) else {"": places}
        for expert, place in named.items():
            if not isinstance(place, str):
                problems.add(f"aux.{kind}{f'.{expert}' if expert else ''}: {place!r} is not a path")
        found[str(kind)] = {str(expert): str(place) for expert, place in named.items()}
    return found


def _dtype(value: Any, problems: Problems) -> str | None:
    if value is None:
        return None
    name = dtype_from_name(str(value))
    if name is None or DTYPES[name].kind != "float":
        problems.add(f"dtype: {value!r} is not a float type; use float32, float16, bfloat16, ...")
        return None
    return name


def _chat_template(content: Mapping[str, Any], problems: Problems) -> str | None:
    written = _text(content, "chat_template", problems)
    if written is not None and (wrong := template_problem(written)):
        problems.add(f"chat_template: {wrong}")
    return written


def _tokenizer(value: Any, models: Mapping[str, str], problems: Problems) -> TokenizerRule | None:
    if value is None:
        return None
    block = {"source": value} if isinstance(value, str) else value
    checked = _mapping({"tokenizer": block}, "tokenizer", ("source", "pad_to_multiple_of", "tokens"), problems)
    tokens = {}
    for token, rule in (checked.get("tokens") or {}).items():
        tokens[str(token)] = made = _token(str(token), rule, problems)
        if made.model is not None and made.model not in models:
            hint = did_you_mean(str(made.model), models)
            problems.add(f"tokenizer.tokens.{token}: {made.model!r} is no model of this merge{hint}")
    multiple = checked.get("pad_to_multiple_of")
    if multiple is not None and (isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1):
        problems.add(f"tokenizer.pad_to_multiple_of: {multiple!r} is not a whole number above 0")
        multiple = None
    return TokenizerRule(str(checked.get("source", "union")), multiple, tokens)


def _token(token: str, rule: Any, problems: Problems) -> TokenRule:
    where = f"tokenizer.tokens.{token}"
    keys = ("model", "token", "token_id", "zero", "force")
    written = _mapping({where: rule}, where, keys, problems) if rule is not None else {}
    force = bool(written.get("force", False))
    if written.get("zero"):
        return TokenRule("zero", force=force)
    model = written.get("model")
    if "token" in written or "token_id" in written:
        return TokenRule("token", model, written.get("token"), written.get("token_id"), force)
    return TokenRule("model" if model else "default", model, force=force)


def _adapter(output: Mapping[str, Any], problems: Problems) -> AdapterOutput | None:
    if "adapter" not in output:
        return None
    adapter = _mapping(output, "adapter", ("rank", "alpha"), problems)
    rank, alpha = adapter.get("rank", 16), adapter.get("alpha")
    if rank == "sum":
        rank = None
    elif isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        problems.add(f"output.adapter.rank: {rank!r} is not a whole number above 0 (or sum: of the inputs' ranks)")
        rank = 1
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float) or alpha <= 0):
        problems.add(f"output.adapter.alpha: {alpha!r} is not a number above 0")
        alpha = None
    return AdapterOutput(rank, alpha)
