"""The pages' `curl` commands, against a real server."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from PIL import Image

from tests.docs.pages import ADDRESS, name_of, pages, typed_lines
from tests.fakes import photo

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
COMMANDS = [(name_of(page), number, line) for page in pages() for number, line in typed_lines(page) if line.startswith("curl ")]


def test_every_curl_command_gets_scores(server, tmp_path):
    for name, size in {
        "a.png": (64, 80),
        "b.jpg": (50, 60),
        "photo.png": (64, 80),
        "sr.png": (64, 80),
        "lr.png": (16, 20),
    }.items():
        Image.fromarray(photo(*size)).save(tmp_path / name)
    assert len(COMMANDS) >= 4
    for page, number, command in COMMANDS:
        line = command.replace(ADDRESS, server.url).replace(" URL", f" {server.url}")
        done = subprocess.run(
            ["sh", "-c", line.replace("curl ", "curl -sS --noproxy '*' ", 1)], cwd=tmp_path, capture_output=True, text=True
        )
        items = json.loads(done.stdout)["items"]
        assert items and all(0 <= item["score"] <= 1 and item["error"] is None for item in items), (
            page,
            number,
            line,
            done.stderr,
        )
