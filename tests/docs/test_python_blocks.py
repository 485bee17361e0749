"""Every Python block of README.md and docs/ runs as it stands, page by page, against a real server where it asks one."""

from __future__ import annotations

import json
import tomllib

import pytest
import torch
import yaml

from tests.docs.pages import ADDRESS, Block, blocks_of, name_of, pages, python_blocks

LEFT_OUT = 0
"""Blocks that need a download or a GPU and are not run. Raising it is a decision: give the block its reason."""

PAGES = [page for page in pages() if python_blocks(page)]


def run(block: Block, names: dict[str, object], address: str) -> None:
    code = block.text.replace(ADDRESS, address)
    exec(compile("\n" * block.line + code, block.page, "exec"), names)  # the page's own line numbers in a traceback


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_blocks_of_a_page_run_one_after_the_other(page, place, server):
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page", "images": torch.rand(2, 3, 48, 64)}
    for block in python_blocks(page):
        if block.reason_not_to_run is None:
            run(block, names, server.url)


def test_blocks_that_are_not_run_say_why_and_are_counted():
    left_out = [block for page in PAGES for block in python_blocks(page) if block.reason_not_to_run]
    assert len(left_out) == LEFT_OUT, left_out
    assert all("GPU" in block.reason_not_to_run or "download" in block.reason_not_to_run for block in left_out)
    assert Block("page", 1, "python", "# not run by the tests: needs a GPU\n1 / 0\n").reason_not_to_run == "needs a GPU"
    assert Block("page", 1, "python", "# not run by the tests:\n1 / 0\n").reason_not_to_run is None  # no reason, so it is run


READERS = {"toml": tomllib.loads, "yaml": yaml.safe_load, "json": json.loads}


def test_every_fenced_block_is_of_a_language_that_is_checked():
    """Shell lines are `test_commands`'."""
    for block in (block for page in pages() for block in blocks_of(page) if block.fenced):
        if block.language in READERS:
            READERS[block.language](block.text)
        else:
            assert block.language == "python" or block.is_shell, f"{block.page}:{block.line}: {block.language!r} is not checked"


def test_the_pages_have_blocks_and_a_wrong_one_is_noticed(place, server):
    assert {"README.md", "docs/index.md", "docs/server.md", "docs/cookbook/your-own-trainer.md"} <= {
        name_of(page) for page in PAGES
    }
    assert sum(len(python_blocks(page)) for page in PAGES) > 25
    with pytest.raises(ImportError):
        run(Block("page", 1, "python", "from finpercep.client import NoSuchClient\n"), {}, server.url)
