"""When two query texts count as the same."""

from __future__ import annotations

__all__ = ["fold", "query_key"]

_FINAL = ".?!,;:…。？！"


def fold(text: str) -> str:
    r"""Return `text` lower-cased, with every run of white space as one space and none at the ends.

    >>> fold("  What is\n NumPy? ")
    'what is numpy?'
    """
    return " ".join(text.lower().split())


def query_key(text: str) -> str:
    """Return what identical queries share: case, white space and final punctuation are ignored.

    >>> query_key("What is  NumPy ?") == query_key("what is numpy")
    True

    A text of nothing but punctuation keeps it, so that it is not the same as the empty text.
    """
    folded = fold(text)
    return folded.rstrip(_FINAL + " ") or folded
