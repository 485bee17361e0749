"""Keeps libraries' notices out of this program's messages, here and in its worker processes."""

from __future__ import annotations

import logging
import os
import warnings


def hush() -> None:
    """Only errors of the libraries below are shown: they otherwise announce absent GPU kernels and coming deprecations."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore")
    for library in ("bitsandbytes", "diffusers", "torchao"):
        logging.getLogger(library).setLevel(logging.ERROR)


def hush_progress() -> None:
    """No progress bars of diffusers and transformers, which are about to be imported anyway."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()
