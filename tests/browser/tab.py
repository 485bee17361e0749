"""A tab with the server's page, and what people do in it."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request, expect

expect.set_options(timeout=30_000)  # a score takes a while on two busy cores

TRANSFER = """files => {
  const transfer = new DataTransfer();
  for (const [name, text] of files) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
  }
  return transfer;
}"""
PASTE = 'transfer => document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }))'


class Tab:
    """One tab.

    Attributes:
        page: Playwright's.
        foreign: addresses that were asked for and are not the server's.
        faults: errors of scripts and of the policy; an answer with an error status is none.
    """

    def __init__(self, context: BrowserContext, url: str, path: str) -> None:
        self.url, self.foreign, self.faults = url, [], []
        self.page: Page = context.new_page()
        self.page.on("request", self._request)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.response = self.page.goto(url + path)

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self.url + "/", "blob:", "data:")):
            self.foreign.append(request.url)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith("Failed to load resource"):
            self.faults.append(message.text)

    def _transfer(self, files: Sequence[tuple[str, bytes]]) -> object:
        return self.page.evaluate_handle(TRANSFER, [(name, base64.b64encode(body).decode()) for name, body in files])

    def drop(self, *files: tuple[str, bytes]) -> None:
        """Drop files on the page."""
        self.page.dispatch_event("body", "drop", {"dataTransfer": self._transfer(files)})

    def paste(self, *files: tuple[str, bytes]) -> None:
        """Paste files."""
        self._transfer(files).evaluate(PASTE)

    def expect_scores(self, *scores: float) -> None:
        """Wait until these scores are shown."""
        expect(self.page.locator("#scores .number")).to_have_text([f"{score:.3f}" for score in scores])

    def module(self, name: str, expression: str, argument: object = None) -> object:
        """What an expression gives of one of the page's modules, called ``m``, and an ``argument``."""
        return self.page.evaluate(
            f'async (argument) => {{ const m = await import("/web/{name}"); return {expression}; }}', argument
        )

    def point_at(self, x: float, y: float, *, click: bool = False, picture: int = 0) -> None:
        """Move the mouse to a place of a picture, given as shares of its sides."""
        layers = self.page.locator(".layers").nth(picture)
        layers.scroll_into_view_if_needed()
        box = layers.bounding_box()
        place = (box["x"] + x * box["width"], box["y"] + y * box["height"])
        (self.page.mouse.click if click else self.page.mouse.move)(*place)

    @property
    def overflow(self) -> int:
        """By how many px the page is wider than the screen."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
