"""The page's files over HTTP: a fixed list, strict headers, and no way around either."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from rm_server.app import create_app
from rm_server.settings import Settings
from rm_server.web_page import FILES, POLICY
from tests.fakes import AppTransport, fake_ladder, registry_of

WEB = Path(str(files("rm_server").joinpath("web")))
PAGES = {"/": "index.html", "/docs": "docs.html"}
TOKEN = "a token of this test"


@pytest.fixture(scope="module")
def http():
    app = create_app(registry_of(fake_ladder()), Settings(token=TOKEN))  # the page must load where a token is asked for
    with httpx.Client(transport=AppTransport(app), base_url="http://server") as client:
        yield client


def test_the_list_is_the_folder():
    assert set(FILES) == {path.name for path in WEB.iterdir()}


@pytest.mark.parametrize("path", [*PAGES, *(f"/web/{name}" for name in FILES)])
def test_every_file_is_served_with_its_headers(http, path):
    name = PAGES.get(path, path.removeprefix("/web/"))
    answer = http.get(path)
    assert answer.status_code == 200
    assert answer.content == (WEB / name).read_bytes()
    assert answer.headers["content-type"] == FILES[name]
    assert answer.headers["content-security-policy"] == POLICY
    for header, value in {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-cache",
    }.items():
        assert answer.headers[header] == value
    assert "access-control-allow-origin" not in answer.headers and "set-cookie" not in answer.headers
    head = http.head(path)
    assert head.status_code == 200 and head.headers["etag"] == answer.headers["etag"]


def test_the_policy_lets_nothing_in_line_and_nothing_from_elsewhere():
    assert "default-src 'none'" in POLICY and "unsafe" not in POLICY and "http" not in POLICY and "*" not in POLICY
    for directive in ("base-uri", "form-action", "frame-ancestors"):
        assert f"{directive} 'none'" in POLICY


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
def test_a_browser_that_has_a_file_is_not_sent_it_again(http, form):
    etag = http.get("/web/page.js").headers["etag"]
    answer = http.get("/web/page.js", headers={"if-none-match": form.format(etag)})
    assert answer.status_code == 304 and answer.content == b"" and answer.headers["etag"] == etag
    assert http.get("/web/page.js", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/web/",
        "/web/settings.py",
        "/web/../settings.py",
        "/web/%2e%2e/settings.py",
        "/web/..%2fsettings.py",
        "/web/%2e%2e%2fsettings.py",
        "/web/..%5csettings.py",
        "/web//etc/passwd",
        "/web/%2fetc%2fpasswd",
        "/web/page.js%00",
        "/web/PAGE.JS",
        "/index.html",
        "/redoc",
        "/docs/oauth2-redirect",
    ],
)
def test_nothing_else_is_served(http, path):
    raw = httpx.URL("http://server").copy_with(raw_path=path.encode())  # httpx would tidy the dots away
    answer = http.get(raw)
    assert answer.status_code == 404 and answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".html", ".css", ".js", ".svg"))])
def test_files_name_only_files_that_are_served(name):
    text = (WEB / name).read_text()
    assert not re.search(r"<[^>]*\s(on\w+|style)=|<style|<script>|javascript:|innerHTML|\beval\(", text)
    referred = re.findall(r'(?:href|src)="([^"#]+)"', text) if name.endswith((".html", ".svg")) else []
    for target in referred:
        assert (
            target in {"./", "docs", "openapi.json"}
            or target.removeprefix("web/") in FILES
            or target.startswith("https://www.flickr")
        )
    for target in re.findall(r'from "\./([^"]+)"', text):
        assert target in FILES
    assert not name.endswith(".css") or ("@import" not in text and "url(" not in text)


def test_every_module_is_used():
    texts = "".join((WEB / name).read_text() for name in FILES if name.endswith((".html", ".js")))
    for name in FILES:
        assert name in PAGES.values() or f'/{name}"' in texts, name


def test_files_stay_small_and_readable():
    for name in FILES:
        if not name.endswith(".jpg"):
            assert (WEB / name).read_text().count("\n") <= 300, name
