"""A report's table on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table as Drawn

if TYPE_CHECKING:
    from finpercep.report.page import Table


def results_table(title: str, table: Table) -> Drawn:
    """A table with heads, as text; its note, which says how to read it, stands below."""
    drawn = Drawn(
        title=escape(title),
        caption=escape(table.note) or None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for column in table.columns:
        drawn.add_column(escape(column), overflow="fold")
    for row in table.rows:
        drawn.add_row(*(escape(cell) for cell in row))
    return drawn
