"""mergekit's recipe language: files that say `merge_method:` give the same merge here.

Unknown keys, which mergekit ignores, are warnings with their line (errors when strict). What mergekit finds only in
the middle of the work, or silently gets wrong, is reported before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from consilience.errors import Problems, RecipeError
from consilience.merging.located import load_located
from consilience.merging.mergekit_document import Document
from consilience.merging.request import MergeRequest

__all__ = ["parse_mergekit"]


def parse_mergekit(text: str, *, origin: str, folder: Path, strict: bool = False) -> MergeRequest:
    r"""Return the request of a recipe in mergekit's language.

    >>> text = "merge_method: linear\nmodels:\n- model: a\n- model: b\nparameters: {weight: 0.5}"
    >>> parse_mergekit(text, origin="recipe.yml", folder=Path()).experts
    ('a', 'b')

    Several documents are several merges: those with a `name` can be models of the others, the one without a name is
    the result. `strict` makes warnings errors. Raises RecipeError naming `origin` and listing all problems, each with
    its key and line.
    """
    problems = Problems()
    located = load_located(text, origin)
    documents: list[Document] = []
    for index, content in enumerate(located):
        label = f"document {index + 1}: " if len(located) > 1 else ""
        if not isinstance(content.value, Mapping):
            problems.add(f"{label}expected a mapping with `merge_method:`, found {content.value!r}")
            continue
        documents.append(Document(content, label=label, origin=origin, folder=folder, text=text))
    if not documents:
        problems.add("the file is empty; expected a mapping with `merge_method:`")
    order = _in_order(documents, problems)
    for document in documents:
        problems.extend(document.label + problem for problem in document.problems.found)
        if strict:
            problems.extend(f"{document.label}{warning}" for warning in document.warnings)
    problems.raise_if_any(RecipeError, origin)
    final = order.pop()
    stages = tuple((stage.name or "", stage.request()) for stage in order)
    warnings = [f"{stage.label}{warning}" for stage in (*order, final) for warning in stage.warnings]
    idle = [d.name for d in documents if d is not final and d not in order]
    warnings.extend(f"the merge named {name!r} is used by no other and is not run" for name in idle)
    return replace(final.request(), stages=stages, warnings=tuple(warnings))


def _in_order(documents: Sequence[Document], problems: Problems) -> list[Document]:
    """Return the final merge, last, and before it those that it needs, each after those it uses itself."""
    named: dict[str, Document] = {}
    for document in documents:
        if document.name is not None and document.name in named:
            problems.add(f"{document.label}name: {document.name!r} is the name of an earlier document too")
        elif document.name is not None:
            named[document.name] = document
    uses = {id(d): [named[n] for n in d.uses(named)] for d in documents}
    used = {id(other) for others in uses.values() for other in others}
    finals = [d for d in documents if d.name is None] or [d for d in documents if id(d) not in used]
    order: list[Document] = []
    trail: list[Document] = []

    def visit(document: Document) -> None:
        if document in trail:
            circle = " -> ".join(repr(d.name) for d in [*trail[trail.index(document) :], document])
            problems.add(f"the merges depend on each other in a circle: {circle}")
        elif document not in order:
            trail.append(document)
            for other in uses[id(document)]:
                visit(other)
            trail.pop()
            order.append(document)

    for document in finals or documents:
        visit(document)
    if len(finals) > 1:
        which = ", ".join(repr(d.name) if d.name else d.label.rstrip(": ") for d in finals)
        problems.add(f"one document must be the result: the one without `name`; found {which}")
    for stage in order[:-1]:
        if stage.changes_tokenizer():
            problems.add(f"{stage.label}only the final merge can have tokenizer settings and a chat template")
    return order
