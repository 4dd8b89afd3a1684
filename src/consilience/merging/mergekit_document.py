"""One document of a recipe in mergekit's language: its models, slices, parameters and types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from consilience.checkpoints.dtypes import DTYPES, dtype_from_name
from consilience.errors import Problems, did_you_mean
from consilience.merging.binding import check_method
from consilience.merging.located import Located
from consilience.merging.mergekit_methods import METHODS, known_methods
from consilience.merging.mergekit_parameters import ParameterReader
from consilience.merging.mergekit_references import Reference, ReferenceFault, model_names, parse_reference
from consilience.merging.mergekit_tokenizer import TokenizerReader
from consilience.merging.method import Method, find_method, method_names
from consilience.merging.parameters import Filters, Form, Gradient, Level, ParameterTable
from consilience.merging.request import MergeRequest, Slice, SliceSource

__all__ = ["Document"]

_KEYS = (
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "dtype",
    "out_dtype",
    "parameters",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
)
_MODEL_KEYS = ("model", "parameters")
_SOURCE_KEYS = ("model", "layer_range", "parameters")
_SLICE_KEYS = ("sources", "base_model", "parameters", "residual_weight")

Place = tuple[str | int, ...]


class Document:
    """Reads one document; what is wrong is in `problems`, what deserves a word in `warnings`."""

    def __init__(self, located: Located, *, label: str, origin: str, folder: Path, text: str) -> None:
        self.located = located
        self.content: Mapping[str, Any] = located.value
        self.label = label
        self.origin, self.folder, self.text = origin, folder, text
        self.problems = Problems()
        self.warnings: list[str] = []
        self.references: dict[str, Reference] = {}
        self.listed: list[str] = []
        self.base: str | None = None
        self.slices: list[tuple[str | None, list[tuple[str, int, int]]]] | None = None
        self.levels: list[tuple[dict[str, Form], str | None, int | None]] = []
        self.unknown_keys(self.content, _KEYS, ())
        self.name = self._name()
        self.method = self._method()
        self.reader = ParameterReader(self.method, located, self.problems, self.warn) if self.method else None
        if self.content.get("base_model") is not None:
            self.base = self.reference(self.content["base_model"], ("base_model",))
        self._inputs()
        self._level(self.content.get("parameters"), ("parameters",))
        self.tokenizer = TokenizerReader(self)
        self.cast = self._dtype("dtype")
        self.out_dtype = self._dtype("out_dtype") or self.cast
        self._check()

    def warn(self, message: str) -> None:
        """Record something the user should know."""
        if message not in self.warnings:
            self.warnings.append(message)

    def where(self, *place: str | int) -> str:
        """Return a key with its line."""
        return self.located.where(*place)

    def unknown_keys(self, value: Mapping[str, Any], known: Iterable[str], place: Place) -> None:
        """Warn of keys that mergekit does not know and ignores."""
        names = tuple(known)
        for key in value:
            if key not in names:
                self.warn(f"{self.where(*place, str(key))}: unknown key; ignored{did_you_mean(str(key), names)}")

    def reference(self, value: Any, place: Place) -> str | None:
        """Register a model that is referred to and return its identity; None where the reference is wrong."""
        try:
            found = parse_reference(value)
        except ReferenceFault as fault:
            self.problems.add(f"{self.where(*place)}: {fault}")
            return None
        for key in found.ignored:
            self.warn(f"{self.where(*place, key)}: has no effect here; architectures are read from the models")
        self.references.setdefault(found.identity, found)
        return found.identity

    def uses(self, names: Iterable[str]) -> list[str]:
        """Return the names of other merges that this one has as models."""
        found = []
        for reference in self.references.values():
            if reference.model in names and reference.model not in found:
                found.append(reference.model)
                if reference.adapter:
                    self.problems.add(f"{reference.text!r}: an adapter cannot be applied to another merge of the file")
        return found

    def changes_tokenizer(self) -> bool:
        """Whether the merge has tokenizer settings or a chat template."""
        return self.tokenizer.rule is not None or self.tokenizer.chat_template is not None

    def request(self) -> MergeRequest:
        """Return what the document asks for; only when there are no problems."""
        assert self.method is not None and self.reader is not None
        names = model_names(self.references.values())
        levels = [Level(values, names[expert] if expert else None, index) for values, expert, index in self.levels]
        slices = None
        if self.slices is not None:
            slices = tuple(
                Slice(tuple(SliceSource(names[m], start, stop) for m, start, stop in sources), base and names[base])
                for base, sources in self.slices
            )
        return MergeRequest(
            method=self.method.name,
            models={names[identity]: reference.text for identity, reference in self._ordered()},
            experts=tuple(names[expert] for expert in self.experts()),
            base=names[self.base] if self.base else None,
            parameters=ParameterTable((*levels, Level(self.reader.defaults()))),
            required=self.reader.required(),
            slices=slices,
            cast=self.cast,
            out_dtype=self.out_dtype,
            tokenizer=self.tokenizer.rule_by_name(names),
            chat_template=self.tokenizer.chat_template,
            warnings=tuple(self.warnings),
            origin=self.origin,
            folder=self.folder,
            text=self.text,
        )

    def experts(self) -> list[str]:
        """Return the models that give weights, the base apart where the method treats it so."""
        if self.reader is None or self.reader.row.base == "listed":
            return list(self.listed)
        if self.slices is None:
            return [model for model in self.listed if model != self.base]
        own = [m for base, sources in self.slices for m, *_ in sources if m != (base or self.base)]
        return list(dict.fromkeys(own))

    def _ordered(self) -> list[tuple[str, Reference]]:
        """Return the references with the base before the others where it is not among the models."""
        first = [self.base] if self.base and self.base not in self.listed else []
        order = dict.fromkeys([*first, *self.listed, *self.references])
        return [(identity, self.references[identity]) for identity in order]

    def _name(self) -> str | None:
        name = self.content.get("name")
        if name is not None and (not isinstance(name, str) or not name):
            self.problems.add(f"{self.where('name')}: {name!r} is not a name")
            return None
        return name

    def _method(self) -> Method | None:
        name = self.content.get("merge_method")
        if name is None:
            self.problems.add(f"merge_method: missing; write one of {', '.join(method_names())}")
        elif name in METHODS and name not in method_names():
            self.problems.add(
                f"{self.where('merge_method')}: method {name!r} is one of mergekit's that is not available here; "
                f"available: {', '.join(method_names())}"
            )
        elif name not in method_names():
            hint = did_you_mean(str(name), known_methods())
            self.problems.add(f"{self.where('merge_method')}: method {name!r} is unknown{hint}")
        else:
            return find_method(str(name))
        return None

    def _dtype(self, key: str) -> str | None:
        value = self.content.get(key)
        if value is None:
            return None
        name = dtype_from_name(value) if isinstance(value, str) else None
        if name is None or DTYPES[name].kind != "float":
            self.problems.add(f"{self.where(key)}: {value!r} is not a float type; use float32, float16 or bfloat16")
            return None
        return name

    def _level(self, value: Any, place: Place, model: str | None = None, part: int | None = None) -> None:
        """Read one `parameters` block; those of the models come first in precedence, then slices, then the top."""
        if self.reader is None or value is None:
            return
        forms = self.reader.block(value, place, of_model=model is not None)
        if forms and not (model is not None and model == self._base_of(part) and self.reader.row.base == "apart"):
            self.levels.append((forms, model, part))
            self.levels.sort(key=lambda level: (level[1] is None, level[2] is None))

    def _base_of(self, part: int | None) -> str | None:
        if part is not None and self.slices is not None:
            return self.slices[part][0] or self.base
        return self.base

    def _inputs(self) -> None:
        given = [key for key in ("models", "slices", "modules") if self.content.get(key) is not None]
        if "modules" in given:
            self.problems.add(
                f"{self.where('modules')}: merging parts by recipes of their own is not available; "
                "write one recipe for all tensors, with filters for what differs between the parts"
            )
        if not given:
            self.problems.add("models: missing; write `models:` (whole models) or `slices:` (layer ranges)")
        elif len(given) > 1:
            lines = " and ".join(self.where(key) for key in given)
            self.problems.add(f"{lines} exclude each other; keep one")
        for key in given[:1]:
            value = self.content[key]
            if key != "modules" and (not isinstance(value, list) or not value):
                found = "the list is empty" if value == [] else f"expected a list, found {value!r}"
                self.problems.add(f"{self.where(key)}: {found}")
            elif key == "models":
                self._models(value)
            elif key == "slices":
                self._slices(value)

    def _entry(self, entry: Any, place: Place, keys: tuple[str, ...]) -> str | None:
        """Check one model of a list and return its identity."""
        if not isinstance(entry, Mapping) or "model" not in entry:
            self.problems.add(f"{self.where(*place)}: expected a mapping with `model`, found {entry!r}")
            return None
        self.unknown_keys(entry, keys, place)
        return self.reference(entry["model"], (*place, "model"))

    def _models(self, entries: list[Any]) -> None:
        for index, entry in enumerate(entries):
            place = ("models", index)
            model = self._entry(entry, place, _MODEL_KEYS)
            if model is None:
                continue
            if model in self.listed:
                self.problems.add(f"{self.where(*place)}: {model!r} is listed twice; remove one")
                continue
            self.listed.append(model)
            self._level(entry.get("parameters"), (*place, "parameters"), model)

    def _slices(self, entries: list[Any]) -> None:
        self.slices = []
        for index, entry in enumerate(entries):
            place = ("slices", index)
            self.slices.append((None, []))
            if not isinstance(entry, Mapping) or not isinstance(entry.get("sources"), list) or not entry["sources"]:
                self.problems.add(f"{self.where(*place)}: expected a mapping with a list `sources`, found {entry!r}")
                continue
            self.unknown_keys(entry, _SLICE_KEYS, place)
            base = entry.get("base_model")
            own = self.reference(base, (*place, "base_model")) if base is not None else None
            self.base = self.base or own
            self.slices[index] = (own, self._sources(entry["sources"], own, index, place))
            self._level(entry.get("parameters"), (*place, "parameters"), None, index)

    def _sources(
        self, entries: list[Any], own: str | None, part: int, slice_place: Place
    ) -> list[tuple[str, int, int]]:
        assert self.slices is not None
        self.slices[part] = (own, [])
        sources: list[tuple[str, int, int]] = []
        for index, entry in enumerate(entries):
            place = (*slice_place, "sources", index)
            model = self._entry(entry, place, _SOURCE_KEYS)
            if model is None:
                continue
            if model in [m for m, *_ in sources]:
                self.problems.add(f"{self.where(*place)}: {model!r} is listed twice in one slice; remove one")
                continue
            bounds = self._range(entry, place)
            sources.append((model, *bounds))
            if model not in self.listed:
                self.listed.append(model)
            self._level(entry.get("parameters"), (*place, "parameters"), model, part)
        lengths = {stop - start for _, start, stop in sources if stop > start}
        if len(lengths) > 1:
            found = ", ".join(f"{model} [{start}, {stop}]" for model, start, stop in sources)
            self.problems.add(f"{self.where(*slice_place)}: sources have layer ranges of unequal length: {found}")
        return sources

    def _range(self, entry: Mapping[str, Any], place: Place) -> tuple[int, int]:
        value = entry.get("layer_range")
        whole = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        if not isinstance(value, list) or not whole or len(value) != 2:
            self.problems.add(
                f"{self.where(*place, 'layer_range')}: expected [first, end] in whole numbers, found {value!r}"
            )
        elif value[0] < 0 or value[1] <= value[0]:
            self.problems.add(
                f"{self.where(*place, 'layer_range')}: {value} is negative, empty or reversed; "
                "layers count from 0 and the end is not included"
            )
        else:
            return value[0], value[1]
        return 0, 0

    def _check(self) -> None:
        """Check what only the whole document shows: number of models, the base, required parameters."""
        if self.method is None or self.reader is None or not self.listed:
            return
        needs = self._check_base(self.method)
        shared = [name for name in self.reader.required() if name not in self.reader.row.each]
        for name in shared:
            if not any(name in values for values, *_ in self.levels):
                self.problems.add(f"parameters.{name}: missing; method {self.method.name!r} requires it")
        for part in range(len(self.slices)) if self.slices is not None else [None]:
            experts = self._experts_of(part)
            place = self.where("models") if part is None else self.where("slices", part)
            if not needs:
                self.problems.extend(f"{place}: {p}" for p in check_method(self.method, len(experts), has_base=True))
            for name in self.reader.required():
                for expert in experts if name not in shared else []:
                    if not self._is_given(name, expert, part):
                        self.problems.add(
                            f"{place}: parameter {name!r} is missing for {expert!r}; "
                            f"method {self.method.name!r} requires it"
                        )
        if not self.problems and self.slices is None:
            self._try(self.method)

    def _experts_of(self, part: int | None) -> list[str]:
        if part is None or self.slices is None:
            return self.experts()
        models = [model for model, *_ in self.slices[part][1]]
        return [m for m in models if m in self.experts() and (m != self._base_of(part) or m in self._always())]

    def _always(self) -> list[str]:
        return self.listed if self.reader is not None and self.reader.row.base == "listed" else []

    def _is_given(self, name: str, expert: str, part: int | None) -> bool:
        return any(
            name in values and owner in (None, expert) and index in (None, part) for values, owner, index in self.levels
        )

    def _check_base(self, method: Method) -> bool:
        """Return whether a base is needed and missing."""
        if method.base != "required":
            if self.base and self.base not in self.listed and method.base == "none":
                self.warn(
                    f"{self.where('base_model')}: method {method.name!r} does not use a base; only its "
                    "configuration and tokenizer are carried over (list it among the models to give it weight)"
                )
            return False
        if self.slices is None:
            if self.base is None:
                self.problems.add(f"base_model: missing; method {method.name!r} works on changes from a base model")
            return self.base is None
        missing = False
        for part, (own, sources) in enumerate(self.slices):
            base = own or (self.base if self.content.get("base_model") is not None else None)
            place = self.where("slices", part)
            if base is None:
                missing = True
                self.problems.add(f"{place}: method {method.name!r} needs a base model; write base_model")
            elif base not in [m for m, *_ in sources] and len({(start, stop) for _, start, stop in sources}) > 1:
                self.problems.add(
                    f"{place}: the base model is not among the sources and their layer ranges differ; "
                    "list it with its layer_range"
                )
        return missing

    def _try(self, method: Method) -> None:
        """Bind the method once where no value depends on a tensor, so that values that do not fit show up here."""
        request = self.request()
        table, experts = request.parameters, tuple(sorted(request.experts))
        bound: dict[str, Any] = {}
        for name, parameter in method.parameters.items():
            if any(isinstance(form, Gradient | Filters) for _, form in table.forms(name)):
                return
            default = parameter.default[0] if parameter.per_expert and not parameter.required else parameter.default
            values = []
            for expert in experts if parameter.per_expert else [None]:
                value = table.value(name, expert=expert, slice=0, source_name="", output_name="", position=0.0)
                values.append(parameter.check(value)[0] if isinstance(value, bool | int | float | str) else default)
            bound[name] = tuple(values) if parameter.per_expert else values[0]
        try:
            method.build(bound)
        except ValueError as error:
            self.problems.add(f"parameters.{error}")
