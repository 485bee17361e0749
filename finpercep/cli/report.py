"""`finpercep report`: HTML report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Run directory of train-rm or finetune.")],
    out: Annotated[Path | None, typer.Option(help="HTML file; default RUN/report.html.")] = None,
) -> None:
    """Write a self-contained HTML report of a training or fine-tuning run and print its path.

    Example: finpercep report runs/ft
    """
    from finpercep.report.page import write_report
    from finpercep.report.runs import report_of_run

    path = out or run / "report.html"
    write_report(report_of_run(run), path)
    print(path)
