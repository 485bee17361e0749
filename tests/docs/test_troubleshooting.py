"""docs/troubleshooting.md: the messages it explains are messages of this code."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.pages import DOCS, ROOT

HEADINGS = re.findall(r"^### (.+?)(?: \{.*\})?$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
MESSAGES = [heading.strip("`") for heading in HEADINGS if heading.startswith("`")]
HOLE = "…"


@pytest.fixture(scope="module")
def texts():
    """Every string in the packages' code, with a hole where a value goes in; one literal written in parts is one string."""
    found = []
    for package in ("data_synth", "finpercep", "rm_server"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return [text.replace("`", "") for text in found]


def says(text: str, message: str) -> bool:
    """Whether ``text`` is ``message``, or more; a hole of the message takes anything, one of the text fills a hole alone."""
    return re.search(".*".join(map(re.escape, message.strip(f"{HOLE} ").split(HOLE))), text, re.DOTALL) is not None


@pytest.mark.parametrize("message", MESSAGES)
def test_every_explained_message_is_one_of_ours(message, texts):
    assert any(says(text, message) for text in texts)


def test_a_message_of_nobody_is_noticed(texts):
    assert len(MESSAGES) > 20
    assert not any(says(text, "the server has … out of ink") for text in texts)
    assert says("device …: this machine has … CUDA devices", "…: this machine has … CUDA") and not says("a b", "b … a")
    assert not says("a; b", "a: …")


def test_messages_are_found_by_their_words_alone():
    assert all(len(message.replace(HOLE, "").strip(" '():[];`")) > 20 for message in MESSAGES)
