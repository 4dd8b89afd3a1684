"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["amount", "note", "show_evaluation", "show_json", "show_table"]


def show_json(value: Any) -> None:
    """Print plain data as JSON on standard output."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[int] = ()) -> None:
    """Print a table; plain columns where standard output is not a terminal. `right` are right-aligned columns."""
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left", header_style="bold", show_header=any(columns))
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index in right else "left", overflow="fold")
        for row in cells:
            table.add_row(*row)
        Console().print(table)
        return
    print(title)
    lines = [list(columns), *cells] if any(columns) else cells
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(len(columns))]
    for row in lines:
        padded = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(padded).rstrip())
    print()


def show_evaluation(table: Table) -> None:
    """Print the table of an evaluation; without frames where standard output is not a terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console, table.box = Console(width=160), None
    console.print(table)


def note(message: str) -> None:
    """Print a message for the person at the terminal, apart from the result."""
    print(message, file=sys.stderr)


def amount(size: float) -> str:
    """Return a number of bytes in words.

    >>> amount(1_500_000)
    '1.5 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
