"""Takes docs/page.jpg in Chromium, and tries the page's defects in three places of its sample photo.

    python docs/figures/page.py          # starts `finpercep serve` itself; needs a Chromium (Debian: apt-get install chromium)

What the page says of each defect goes to standard output; docs/server.md counts the words.
"""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from finpercep.cli.server_process import ServerProcess

HERE = Path(__file__).parent
KINDS = ("ringing", "painterly", "checkerboard", "blocks", "noise")
PLACES = {"pagoda": (0.33, 0.5), "trees": (0.8, 0.8), "water": (0.66, 0.55)}
"""As shares of the sample photo's sides."""
SHOWN = ("ringing", "pagoda")
"""What docs/page.jpg shows."""


def plant(page: Page, kind: str, place: str) -> str:
    """Plant a defect in the untouched sample photo; what the page says of it."""
    page.select_option("#defect-kind", kind)
    box = page.locator(".layers").nth(0).bounding_box()
    assert box is not None
    x, y = PLACES[place]
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
    expect(page.locator("#verdict")).to_contain_text("In the planted place", timeout=60_000)
    return page.inner_text("#verdict")


def main() -> None:
    """Every kind in every place; a picture of one."""
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with ServerProcess() as server, sync_playwright() as running:
        browser = running.chromium.launch(executable_path=executable)
        for place in PLACES:
            for kind in KINDS:
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                page.goto(server.url)
                page.click("#sample-plant")
                expect(page.locator("#scores .number")).to_have_count(1, timeout=60_000)
                print(f"{place}, {kind}: {plant(page, kind, place)}", flush=True)
                if (kind, place) == SHOWN:
                    with Image.open(io.BytesIO(page.screenshot())) as shot:
                        shot.convert("RGB").save(HERE.parent / "page.jpg", quality=90)
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
