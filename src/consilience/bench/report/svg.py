"""Small pieces of SVG with escaped text."""

from __future__ import annotations

from html import escape

__all__ = ["element", "label_lines", "text"]

Attribute = str | int | float


def element(name: str, content: str = "", **attributes: Attribute) -> str:
    """Return one element; underscores in attribute names become hyphens, numbers are rounded, values are escaped.

    >>> element("rect", x=1.0, width=2.345678, class_="a<b")
    '<rect x="1" width="2.35" class="a&lt;b"/>'
    """
    parts = [name]
    for key, value in attributes.items():
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        parts.append(f'{key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    return f"<{' '.join(parts)}>{content}</{name}>" if content else f"<{' '.join(parts)}/>"


def text(content: str, x: float, y: float, **attributes: Attribute) -> str:
    """Return a text element with escaped content.

    >>> text("a & b", 0, 1.0)
    '<text x="0" y="1">a &amp; b</text>'
    """
    return element("text", escape(content), x=x, y=y, **attributes)


def label_lines(label: str, width: int = 12) -> list[str]:
    """Return a name cut at underscores, hyphens and spaces into at most two lines of about `width` characters.

    >>> label_lines("community_newsgroups"), label_lines("law")
    (['community_', 'newsgroups'], ['law'])
    """
    if len(label) <= width:
        return [label]
    breaks = [index + 1 for index, letter in enumerate(label[:-1]) if letter in "_- "]
    if not breaks:
        return [label] if len(label) <= width + 2 else [label[: width - 1] + "…"]
    middle = min(breaks, key=lambda index: abs(index - len(label) / 2))
    lines = [label[:middle].rstrip(), label[middle:]]
    return [line if len(line) <= width + 2 else line[: width + 1] + "…" for line in lines]
