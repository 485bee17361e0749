"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Seed = Annotated[int, typer.Option(help="Decides everything that is drawn at random.")]
Device = Annotated[str, typer.Option(help="auto | cpu | cuda[:i]")]
