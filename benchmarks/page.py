"""docs/benchmarks.md from results/*.json: no figure on it is typed by hand, and nothing is measured here.

Each section is a record: question and method from its script's docstring, what it was measured on and when, tables, plots.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.shown import VIEWS
from benchmarks.tables import Picture, Record, Table, as_it_is, cell

HERE = Path(__file__).parent
RECORD_KEYS = ("benchmark", "date", "machine", "settings", "command")
ORDER = tuple(VIEWS)
ELSEWHERE = {"evidence": "evidence.md", "evidence_trained": "evidence.md"}
"""Records with a page of their own."""

HEAD = """# Benchmarks

Written by `python -m benchmarks --page-only` from `benchmarks/results/*.json`; `make bench` measures anew. Figures of different
sections come from different days and machines: compare within a section. What a section does not say was not measured.
"""


OTHER_SHAPE = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""What a view raises for a record that is not of the shape it knows."""


def write_page(results: Path, page: Path, figures: Path) -> list[str]:
    """Write ``page`` and its pictures.

    Args:
        results: folder of the records.
        page: the Markdown file.
        figures: folder of the pictures; old ``bench_*.png`` there are deleted.

    Returns:
        A sentence for each record that could not be shown; the page says so too.
    """
    figures.mkdir(parents=True, exist_ok=True)
    for old in figures.glob("bench_*.png"):
        old.unlink()
    text, faults = page_text(results, Path(os.path.relpath(figures, page.parent)))
    for name, record in records(results):
        with suppress(*OTHER_SHAPE):  # the page says so
            pictures = [one for one in _shown(name, record) if isinstance(one, Picture)] if name not in ELSEWHERE else []
            for number, picture in enumerate(pictures):
                draw(picture, figures / f"bench_{name}_{number}.png")
    page.write_text(text, encoding="utf-8")
    return faults


def page_text(results: Path, figures: Path) -> tuple[str, list[str]]:
    """The page, with pictures named as lying in ``figures``, relative to the page; and what could not be shown."""
    parts, faults = [HEAD], list[str]()
    described = set[str]()
    for name, record in records(results):
        try:
            parts.append(_section(name, record, figures, described))
        except OTHER_SHAPE as error:
            fault = f"results/{name}.json is not as benchmarks/shown.py expects it ({type(error).__name__}: {error})"
            faults.append(fault)
            parts.append(f"## `{name}`\n\n{fault}\n")
    return "\n".join(parts), faults


def records(results: Path) -> Iterator[tuple[str, Record]]:
    """Every record by its name, those with a view first and in the views' order."""
    found = {}
    for path in results.glob("*.json"):
        try:
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: expected JSON ({error}); measure it again") from error
    for name in sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        yield name, found[name]


def _shown(name: str, record: Record) -> list[Table | Picture]:
    rest = {key: value for key, value in record.items() if key not in RECORD_KEYS}
    return list(VIEWS[name](record) if name in VIEWS else as_it_is(rest))


def _section(name: str, record: Record, figures: Path, described: set[str]) -> str:
    """A record's section; the method only where its script is not in ``described`` yet."""
    module = module_of(name)
    question, method = description(module)
    parts = [f"## {question}" if name == module else f"## {question} ({name.removeprefix(module + '_')})", ""]
    parts += [measured_on(module, record), ""]
    if name in ELSEWHERE:
        return "\n".join([*parts, f"[The figures have a page of their own.]({ELSEWHERE[name]})", ""])
    number = 0
    for one in _shown(name, record):
        if isinstance(one, Table):
            parts += [*([one.about, ""] if one.about else []), table(one)]
        else:
            parts.append(f"![{one.alt}]({(figures / f'bench_{name}_{number}.png').as_posix()})\n")
            number += 1
    if module not in described:
        described.add(module)
        parts += ['<details markdown="1"><summary>How it was measured</summary>', "", method, "", "</details>", ""]
    return "\n".join(parts)


def module_of(name: str) -> str:
    """The script that writes a record: that of the longest name that it begins with."""
    scripts = {path.stem for path in HERE.glob("*.py")} | {path.parent.name for path in HERE.glob("*/__main__.py")}
    fitting = [script for script in scripts if name == script or name.startswith(f"{script}_")]
    if not fitting:
        raise ValueError("no script in benchmarks/ is called so")
    return max(fitting, key=len)


def description(module: str) -> tuple[str, str]:
    """A script's question (the first line of its docstring), and the rest of it without the command line."""
    path = HERE / f"{module}.py"
    source = (path if path.exists() else HERE / module / "__main__.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or module
    question, _, rest = docstring.partition("\n\n")
    rest = re.sub(r"(?m)^    python -m .*\n?", "", rest).replace("``", "`")
    return " ".join(question.split()), rest.strip() or question


def measured_on(module: str, record: Record) -> str:
    """Date, machine, versions and settings, in a sentence."""
    machine: dict[str, Any] = record["machine"]
    versions = {"Python": machine["python"], **machine.get("versions", {})}
    place = f"{machine['cores']} cores of {machine['cpu']}" + (f", {machine['gpu']}" if machine["gpu"] else ", no GPU")
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    settings = ", ".join(f"{key} {cell(value)}" for key, value in record.get("settings", {}).items())
    command = f"`{record.get('command', f'python -m benchmarks.{module}')}`"
    return f"{record['date']}, {place}, {told}. {command}" + (f" ({settings})" if settings else "")


def table(one: Table) -> str:
    """It as Markdown, with a blank line after it."""
    lines = [one.columns, ["---"] * len(one.columns), *([cell(value) for value in row] for row in one.rows)]
    return "\n".join(f"| {' | '.join(str(value).replace('|', chr(92) + '|') for value in line)} |" for line in lines) + "\n"


def draw(picture: Picture, file: Path) -> None:
    """It as a PNG."""
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=picture.size)
        picture.draw(axes)
        figure.tight_layout()
        figure.savefig(file, dpi=110, metadata={"Software": None})
        plt.close(figure)
