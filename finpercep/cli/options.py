"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finpercep.errors import ConfigError

Seed = Annotated[int, typer.Option(help="Decides everything that is drawn at random.", min=0)]
Device = Annotated[str, typer.Option(help="auto | cpu | cuda[:i]")]
Policy = Annotated[
    str,
    typer.Option(
        help="tiny, tiny@STEP (early in its training), a folder of finetune or train-sr, or KIND:SOURCE (docs/policies.md)."
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="File with the server's token, if it asks for one; never on the command line, where others see it."),
]


def read_token(file: Path | None) -> str | None:
    """The token in a file, without the line's end. Raises `ConfigError` where it cannot be read."""
    try:
        return None if file is None else file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token file {file}: cannot be read: {error}") from error
