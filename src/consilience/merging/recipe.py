"""Recipes as the user holds them: read from a file or written in Python; planned, then run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from consilience.errors import RecipeError
from consilience.merging.located import load_located
from consilience.merging.native import RECIPE_VERSION, parse_native
from consilience.merging.request import MergeRequest

if TYPE_CHECKING:
    from consilience.core.jobs import Budget
    from consilience.merging.engine import MergeResult
    from consilience.merging.plan import Plan

__all__ = ["Recipe", "load_recipe"]


class Recipe:
    """A merge to be made.

    >>> recipe = Recipe(method="linear", experts={"a": "models/a", "b": "models/b"}, parameters={"weight": 0.5})
    >>> print(recipe.to_yaml())
    version: 1
    method: linear
    experts:
      a: models/a
      b: models/b
    parameters:
      weight: 0.5
    <BLANKLINE>

    The keys are those of a recipe file: method, base, experts, parameters, tensors, aux, seed, dtype, tokenizer,
    chat_template, output. Raises RecipeError listing all problems.
    """

    def __init__(self, *, method: str, experts: Mapping[str, str] | list[str], **keys: Any) -> None:
        folder = Path(keys.pop("folder", "."))
        ordered = {k: keys[k] for k in keys if keys[k] is not None}
        base = {"base": ordered.pop("base")} if "base" in ordered else {}
        listed = [str(e) for e in experts] if not isinstance(experts, Mapping) else dict(experts)
        content = {"version": RECIPE_VERSION, "method": method, **base, "experts": listed, **ordered}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        self.request: MergeRequest = parse_native(content, origin="recipe", folder=folder, text=text)

    @classmethod
    def from_request(cls, request: MergeRequest) -> Recipe:
        """Wrap a request that was read from a file."""
        recipe = cls.__new__(cls)
        recipe.request = request
        return recipe

    def to_yaml(self) -> str:
        """Return the recipe as it was written."""
        return self.request.text

    def plan(self, out: str | Path | None = None, *, workers: int | None = None) -> Plan:
        """Read headers, configs and tokenizers, and return what would be done; raises with all problems at once."""
        from consilience.merging.plan import make_plan

        return make_plan(self.request, out=Path(out) if out is not None else None, workers=workers)

    def run(
        self,
        out: str | Path,
        *,
        workers: int | None = None,
        budget: Budget | None = None,
        progress: bool | None = None,
        device: str = "cpu",
    ) -> MergeResult:
        """Plan and merge into the folder `out`; the same call resumes after an interruption.

        device: where methods that see whole matrices compute, "cpu" or "cuda".
        """
        from consilience.merging.engine import run_plan

        return run_plan(self.plan(out, workers=workers), budget=budget, progress=progress, device=device)


def load_recipe(path: str | Path, *, strict: bool = False, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe file: native (`method:`) or mergekit's language (`merge_method:`).

    `strict` makes unknown keys of mergekit files errors. `settings` replace parameters of a native recipe:
    "lambda=0.4", or "weight.EXPERT=0.7" for one expert. Raises RecipeError with the file's name and all problems.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"recipe {file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {file}: cannot be read as text ({error})") from error
    return parse_recipe(text, origin=str(file), folder=file.parent, strict=strict, settings=settings)


def parse_recipe(
    text: str,
    *,
    origin: str = "recipe",
    folder: Path = Path(),
    strict: bool = False,
    settings: Sequence[str] = (),
) -> Recipe:
    """Parse the text of a recipe; see load_recipe."""
    documents = [document.value for document in load_located(text, origin)]
    if not documents or not all(isinstance(d, dict) for d in documents):
        raise RecipeError(f"{origin}: expected a mapping with `method:` (native) or `merge_method:` (mergekit)")
    if any("merge_method" in d for d in documents):
        if settings:
            raise RecipeError(f"{origin}: parameters can be set from outside in native recipes only (`method:`)")
        from consilience.merging.mergekit import parse_mergekit

        return Recipe.from_request(parse_mergekit(text, origin=origin, folder=folder, strict=strict))
    if len(documents) > 1:
        raise RecipeError(f"{origin}: {len(documents)} documents; a native recipe is one document")
    if settings:
        documents[0]["parameters"] = _set(documents[0].get("parameters"), settings, origin)
        text = yaml.safe_dump(documents[0], sort_keys=False, allow_unicode=True)
    return Recipe.from_request(parse_native(documents[0], origin=origin, folder=folder, text=text))


def _set(written: Any, settings: Sequence[str], origin: str) -> dict[str, Any]:
    """Return the parameters of a recipe with some replaced, of the whole merge or of one expert."""
    parameters: dict[str, Any] = dict(written or {})
    for setting in settings:
        place, equals, text = setting.partition("=")
        name, dot, expert = place.partition(".")
        if not equals or not name or (dot and not expert):
            raise RecipeError(f"{origin}: {setting!r} sets nothing; write NAME=VALUE or NAME.EXPERT=VALUE")
        value = yaml.safe_load(text)
        if expert:
            own = parameters.get(name)
            parameters[name] = {**(own if isinstance(own, dict) else {}), expert: value}
        else:
            parameters[name] = value
    return parameters
