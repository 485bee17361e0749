"""A script run by two real processes, or by one and by two, so that what they do can be compared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run_alone_and_together(module: str, out: Path) -> None:
    """``python -m MODULE OUT``, then the same by two processes."""
    _run(module, str(out))
    run_together(module, str(out))


def run_together(module: str, *arguments: str) -> None:
    """``python -m MODULE ARGUMENTS`` by two processes."""
    _run("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", module, *arguments)


def _run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
