"""The documentation's site builds without a warning, its links lead somewhere, and no page asks another address for anything."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from tests.docs.pages import DOCS, ROOT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None,
    reason="mkdocs-material and mkdocstrings are not installed (pip install 'finpercep[docs]')",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as `make docs` builds it, but elsewhere, and without a network: proxies lead nowhere."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "NO_MKDOCS_2_WARNING": "1", **nowhere}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


class Requests(HTMLParser):
    """What a browser fetches for a page by itself, and what its links point to."""

    def __init__(self):
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.fetched.append(given["src"])
        if tag == "link" and given.get("href") and given.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(given["href"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])


def requests_of(page):
    parser = Requests()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


def test_no_page_asks_another_address(site):
    found = list(site.rglob("*.html"))
    assert len(found) > 20
    for page in found:
        for address in requests_of(page).fetched:
            assert not re.match(r"(https?:)?//", address), (page.name, address)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_every_link_and_picture_is_there(site):
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue  # its addresses begin at the site's root
        wanted = requests_of(page)
        for address in (*wanted.fetched, *wanted.links):
            path = address.split("#")[0].split("?")[0]
            if path and not re.match(r"[a-z]+:", path):
                assert (page.parent / path).resolve().exists(), (page.relative_to(site), address)


def test_every_page_is_in_the_menu_and_the_api_is_described(site):
    menu = (site / "index.html").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert page.relative_to(DOCS).with_suffix(".html").as_posix() in menu, page
    described = (site / "api" / "reward.html").read_text(encoding="utf-8")
    for name in (
        "finpercep.client.RewardClient.score_files",
        "finpercep.reward.RewardWeights",
        "finpercep.metric.FinPercepMetric",
    ):
        assert f'id="{name}"' in described
    assert "make check" in (site / "contributing.html").read_text(encoding="utf-8")
