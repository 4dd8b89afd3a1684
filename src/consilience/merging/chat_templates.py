"""Chat templates: the built-in ones, those of the inputs, and the one a merge carries."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from consilience.errors import did_you_mean

__all__ = ["built_in_templates", "choose_template", "model_template", "template_problem", "template_tokens"]

_FOLDER = Path(__file__).parent / "templates"
_MARKER = re.compile(r"<\|[\w ]+\|>|\[\|\w+\|\]|\[/?INST\]")


@lru_cache(maxsize=1)
def built_in_templates() -> tuple[str, ...]:
    """Return the names of the built-in templates.

    >>> built_in_templates()
    ('alpaca', 'chatml', 'exaone', 'llama3', 'mistral')
    """
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.jinja")))


def template_problem(value: Any) -> str | None:
    """Return what is wrong with a `chat_template` of a recipe, or None.

    >>> template_problem("chatlm")
    "'chatlm' is neither Jinja text nor a built-in template; did you mean 'chatml'?"
    """
    known = ("auto", *built_in_templates())
    if isinstance(value, str) and (value in known or "{" in value):
        return None
    return f"{value!r} is neither Jinja text nor a built-in template{did_you_mean(str(value), known)}"


def model_template(folder: Path) -> str | None:
    """Return the chat template in a folder of tokenizer files, or None."""
    separate = folder / "chat_template.jinja"
    if separate.is_file():
        return separate.read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        path = folder / name
        if path.is_file():
            found = _default(json.loads(path.read_bytes()).get("chat_template"))
            if found is not None:
                return found
    return None


def _default(value: Any) -> str | None:
    """Return the template, or the one named "default" where there are several."""
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, Mapping)}
    if isinstance(value, Mapping):
        value = value.get("default")
    return value if isinstance(value, str) and value.strip() else None


def choose_template(wanted: str, found: Mapping[str, str | None]) -> str | None:
    """Return the text of the template that a recipe asks for; `found` are the inputs' own, by model.

    >>> choose_template("auto", {"a": "{{1}}", "b": "{{2}}", "c": "{{2}}"})
    '{{2}}'

    "auto" is the most frequent one, the first of them where several are; None where no input has any.
    """
    if wanted in built_in_templates():
        return (_FOLDER / f"{wanted}.jinja").read_text(encoding="utf-8")
    if wanted != "auto":
        return wanted
    texts = [text for text in found.values() if text is not None]
    counts = Counter(text.strip() for text in texts)
    return max(texts, key=lambda text: counts[text.strip()], default=None)


def template_tokens(template: str) -> list[str]:
    """Return the markers a template writes that should be tokens of the vocabulary.

    >>> template_tokens("<|im_start|>{{ role }} ... <|im_end|>")
    ['<|im_start|>', '<|im_end|>']
    """
    return list(dict.fromkeys(_MARKER.findall(template)))
