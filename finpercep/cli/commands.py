"""Which commands there are. Their names are fixed."""

from __future__ import annotations

from collections.abc import Callable

import typer

from finpercep.cli.demo import demo
from finpercep.cli.doctor import doctor
from finpercep.cli.eval_rm import eval_rm
from finpercep.cli.export import export
from finpercep.cli.finetune import finetune
from finpercep.cli.report import report
from finpercep.cli.score import score
from finpercep.cli.serve import serve
from finpercep.cli.synth import synth
from finpercep.cli.train_rm import train_rm
from finpercep.cli.train_sr import train_sr
from finpercep.cli.train_zoo import train_zoo
from finpercep.cli.upscale import upscale


def register(app: typer.Typer) -> None:
    """Add every command to ``app``."""
    commands: dict[str, Callable[..., None]] = {
        "demo": demo,
        "synth": synth,
        "train-sr": train_sr,
        "train-zoo": train_zoo,
        "train-rm": train_rm,
        "eval-rm": eval_rm,
        "export": export,
        "score": score,
        "serve": serve,
        "finetune": finetune,
        "upscale": upscale,
        "report": report,
        "doctor": doctor,
    }
    for name, command in commands.items():
        app.command(name, no_args_is_help=name not in {"demo", "serve", "doctor"})(command)
