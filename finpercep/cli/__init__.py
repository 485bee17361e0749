"""The command line: the composition root. Only here are flags read and the three packages wired together."""

from __future__ import annotations

import sys

import typer

from finpercep.cli.commands import register
from finpercep.cli.console import fail
from finpercep.cli.libraries import hush
from finpercep.errors import FinpercepError

app = typer.Typer(
    name="finpercep",
    help="Fine-grained reward models for image super-resolution: see where an image is broken, serve it, fine-tune against it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
register(app)


def main() -> None:
    """Entry point. A failure is one line on standard error and exit code 1; with ``--debug`` the traceback."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    if not debug:
        hush()
    try:
        app()
    except (FinpercepError, OSError) as error:
        if debug:
            raise
        fail(str(error))
    except ModuleNotFoundError as error:
        if debug:
            raise
        fail(f"{error.name} is not installed, and this command needs it: pip install 'finpercep[server,train]'")
    except ImportError as error:
        if debug:
            raise
        fail(f"{error}; where it is libGL: pip install --force-reinstall --no-deps opencv-python-headless")
    except RuntimeError as error:
        if debug or type(error).__name__ != "OutOfMemoryError":  # PyTorch's, without importing it
            raise
        fail("the GPU's memory is full; lower --batch-size or --crop, end other programs, or run on --device cpu")
