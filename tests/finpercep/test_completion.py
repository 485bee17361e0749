"""Shell completion: what `finpercep --install-completion` sets up completes commands and options in a real shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
needs_program = pytest.mark.skipif(not (BIN / "finpercep").exists(), reason="finpercep is not installed as a program")


def in_shell(shell: str, script: str, home: Path) -> str:
    environment = {"HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}", "LANG": "C.UTF-8"}
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_program
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_after_one_command(tmp_path):
    # not the last command: bash would make room for it, and the shell could no longer be recognised
    assert "completion installed" in in_shell("bash", "finpercep --install-completion; true", tmp_path)
    assert "finpercep" in (tmp_path / ".bashrc").read_text()
    ask = 'COMP_WORDS=({}); COMP_CWORD={}; _finpercep_completion finpercep; echo "${{COMPREPLY[@]}}";'.format
    script = "source ~/.bashrc; complete -p finpercep;" + ask("finpercep do", 1) + ask("finpercep score --ma", 2)
    registered, commands, options = in_shell("bash", script, tmp_path).splitlines()
    assert "_finpercep_completion" in registered
    assert commands.split() == ["doctor"] and options.split() == ["--map"]


@needs_program
@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_registers_the_program(tmp_path):
    in_shell("zsh", "finpercep --install-completion; true", tmp_path)
    script = "autoload -Uz compinit; compinit -u; source ~/.zfunc/_finpercep; print $_comps[finpercep]"
    assert in_shell("zsh", f"fpath+=~/.zfunc; {script}", tmp_path).strip() == "_finpercep_completion"


@needs_program
def test_the_program_answers_zsh(tmp_path):
    """What the script for zsh asks, word for word."""
    variables = "_TYPER_COMPLETE_ARGS='finpercep do' _FINPERCEP_COMPLETE=complete_zsh"
    answer = in_shell("sh", f"{variables} finpercep", tmp_path)
    assert "doctor" in answer and "serve" not in answer
