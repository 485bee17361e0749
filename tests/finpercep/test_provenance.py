"""Where a run came from: what was typed, without secrets, and with what it ran."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import torch

from finpercep.training.provenance import Session, add_session, read_sessions


def test_a_session_is_what_was_typed():
    arguments = ["finetune", "--out", "my runs/ft", "--reward", "https://me:secret@host:8000/x,http://other"]
    session = Session.now(arguments, "cuda:1", 2)
    assert "secret" not in session.command and "me" not in shlex.split(session.command)[5]
    assert shlex.split(session.command) == ["finpercep", *arguments[:4], "https://host:8000/x,http://other"]
    assert session.versions["torch"] == torch.__version__.partition("+")[0] or session.versions["torch"] == torch.__version__
    assert session.python == ".".join(map(str, sys.version_info[:3]))
    assert (session.folder, session.device, session.processes) == (str(Path.cwd()), "cuda:1", 2)


def test_sessions_are_kept_in_order(tmp_path):
    assert read_sessions(tmp_path) == []
    sessions = [Session.now(["finetune", str(index)], "cpu") for index in range(3)]
    for session in sessions:
        add_session(tmp_path, session)
    assert read_sessions(tmp_path) == sessions
