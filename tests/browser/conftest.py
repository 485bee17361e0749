"""Headless Chromium against a real server with the packaged ladder. Without a Chromium on the machine these tests are skipped."""

from __future__ import annotations

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

from finpercep.cli.server_process import ServerProcess
from tests.browser.tab import Tab

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="package")
def server():
    with ServerProcess() as process:
        yield process


@pytest.fixture(scope="module")
def chromium():
    """A browser; ended with its module, because its event loop is in the way of other tests' own."""
    executable = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


@pytest.fixture
def open_tab(chromium, server):
    """Opens tabs on the server, or on another one; afterwards none may have failed or asked anyone else for anything."""
    tabs: list[Tab] = []

    def opened(path: str = "/", url: str | None = None, **context: object) -> Tab:
        tab = Tab(chromium.new_context(**context), url or server.url, path)
        tabs.append(tab)
        return tab

    yield opened
    for tab in tabs:
        tab.page.context.close()
    for tab in tabs:
        assert tab.foreign == [] and tab.faults == []


@pytest.fixture
def tab(open_tab):
    return open_tab()
