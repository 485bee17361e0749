"""What the terminal shows: messages, progress bars, tables. Only the command line writes to the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(stderr=True, highlight=False)
"""Progress and messages go to standard error; standard output carries results alone, so that it can be piped."""


def say(message: str, *, style: str = "") -> None:
    """One line of progress. Messages hold paths and servers' sentences, so none is read as markup."""
    console.print(message, style=style, markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """One line about something left out or odd that does not stop the work."""
    say(f"warning: {message}", style="yellow")


def fail(message: str) -> NoReturn:
    """One line that says what went wrong and what to do next, and exit code 1."""
    say(f"error: {message}", style="red")
    raise SystemExit(1)


def show(table: Table) -> None:
    """A table that is a result, on standard output."""
    Console(highlight=False).print(table)


def progress_bar() -> Progress:
    """A bar with counts, elapsed and remaining time, and room for a few figures (task field ``figures``)."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )


def figures_table(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    """A two-column table: figure, value."""
    table = Table(title=escape(title), show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    return table
