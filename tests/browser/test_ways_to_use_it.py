"""The page by keyboard, on a phone, in the dark, with a token; the plant-a-defect demo; and `/docs`."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import expect

from data_synth.schema.pixels import encode_png
from finpercep.cli.server_process import ServerProcess
from tests.fakes import photo

PNG = encode_png(photo(96, 128))
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
TOKEN = "a token of this test"
VERDICT = re.compile(r"In the planted place the map went from (\S+) to (\S+); the score fell from (\S+) to (\S+)\.")


def verdict(tab) -> list[float]:
    """Map before and after, score before and after."""
    expect(tab.page.locator("#verdict")).to_have_text(VERDICT)
    return [float(number) for number in VERDICT.search(tab.page.inner_text("#verdict")).groups()]


# --- plant a defect ---


@pytest.mark.parametrize("kind", ["ringing", "checkerboard", "noise"])
def test_a_planted_defect_is_found_and_costs_score(tab, kind):
    tab.page.click("#sample-plant")
    tab.page.select_option("#defect-kind", kind)
    tab.point_at(0.8, 0.8, click=True)
    was, now, before, after = verdict(tab)
    assert now > was + 0.3 and after < before - 0.02
    tab.expect_scores(before, after)
    tab.point_at(0.8, 0.8, picture=1)
    found, clean = (float(text.split()[-1]) for text in reversed(tab.page.locator(".readout").all_inner_texts()))
    assert found > clean + 0.2


def test_defects_add_up_and_can_be_undone(tab):
    tab.page.click("#sample-plant")
    tab.point_at(0.8, 0.8, click=True)
    *_, once = verdict(tab)
    tab.point_at(0.3, 0.5, click=True, picture=1)
    expect(tab.page.locator(".viewer").nth(1).locator(".place")).to_have_count(2)
    expect(tab.page.locator("#scores .number").nth(1)).not_to_have_text(f"{once:.3f}")
    *_, before, twice = verdict(tab)
    assert twice < once < before
    tab.page.click("#undo-defect")
    tab.expect_scores(before, once)
    tab.page.click("#undo-defect")
    tab.expect_scores(before)


# --- keyboard ---


def test_the_keyboard_alone_is_enough(tab):
    expect(tab.page.locator("#rungs input")).to_have_count(3)
    press = tab.page.keyboard.press

    def tab_to(selector: str) -> None:
        for _ in range(40):
            press("Tab")
            if tab.page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"Tab never came to {selector}")

    tab_to("#sample")
    press("Enter")
    expect(tab.page.locator("#scores .number")).not_to_have_text("–")
    tab_to("#plant")
    press("Enter")
    expect(tab.page.locator(".layers")).to_be_focused()
    for _ in range(8):
        press("ArrowRight")
    press("Shift+ArrowDown")
    expect(tab.page.locator(".readout")).to_contain_text("x 360, y 193 · degradation")
    press("Enter")
    _, _, before, after = verdict(tab)
    assert after < before
    expect(tab.page.locator(".layers").nth(1)).to_be_focused()
    tab_to("#opacity")
    press("ArrowLeft")
    expect(tab.page.locator("#opacity-value")).to_have_text("74 %")
    tab_to("#rungs input")
    tab_to(".region-button")
    expect(tab.page.locator(".region.chosen")).to_have_count(1)
    tab_to("#rungs input")
    press("ArrowLeft")
    expect(tab.page.locator("#model-name")).to_contain_text("RM_1")


# --- phones, and the dark ---


def test_a_phone_has_one_column_and_no_sideways_scrolling(open_tab):
    tab = open_tab(**PHONE)
    assert tab.overflow == 0
    tab.page.tap("#sample-plant")
    box = tab.page.locator(".layers").bounding_box()
    tab.page.touchscreen.tap(box["x"] + 0.8 * box["width"], box["y"] + 0.8 * box["height"])
    verdict(tab)
    tab.page.locator("summary").tap()
    assert tab.overflow == 0
    first, second = (tab.page.locator(".layers").nth(index).bounding_box() for index in range(2))
    assert second["x"] == first["x"] and second["y"] > first["y"] + first["height"]
    tab.page.goto(f"{tab.url}/docs")
    expect(tab.page.locator(".route")).to_have_count(7)
    assert tab.overflow == 0


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2) of ``rgb(r, g, b)``."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_both_schemes_have_contrast(open_tab, scheme, dark):
    tab = open_tab(color_scheme=scheme)
    colour = "([selector, name]) => getComputedStyle(document.querySelector(selector))[name]"

    def of(selector: str, name: str) -> float:
        return luminance(tab.page.evaluate(colour, [selector, name]))

    paper = of("body", "backgroundColor")
    assert (paper < 0.1) == dark
    pairs = [(of(words, "color"), paper) for words in ("h1", ".hint", "nav a")]
    pairs.append((of(".primary", "color"), of(".primary", "backgroundColor")))
    for one, other in pairs:
        assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 4.5


# --- a token ---


@pytest.fixture(scope="module")
def guarded(chromium):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINPERCEP_TOKEN", TOKEN)
        process = ServerProcess().__enter__()
    yield process
    process.stop()


def test_a_server_with_a_token_asks_for_it(open_tab, guarded):
    tab = open_tab(url=guarded.url)
    form = tab.page.locator("#token-form")
    expect(form).to_be_visible()
    tab.drop(("a.png", PNG))  # may come before the token
    tab.page.get_by_label("This server asks for a token").fill("another token")
    tab.page.keyboard.press("Enter")
    expect(form).to_contain_text("That is not this server's token.")
    tab.page.get_by_label("This server asks for a token").fill(TOKEN)
    tab.page.get_by_role("button", name="Use it").click()
    score = httpx.post(
        f"{guarded.url}/score", files={"image": PNG}, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60, trust_env=False
    ).json()["items"][0]["score"]
    tab.expect_scores(score)
    expect(form).to_be_hidden()
    command = tab.page.text_content("#curl")
    assert "$FINPERCEP_TOKEN" in command and TOKEN not in tab.page.content() and TOKEN not in tab.page.url
    assert tab.page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0
    tab.page.reload()
    expect(tab.page.locator("#rungs input")).to_have_count(3)
    expect(form).to_be_hidden()


@pytest.mark.parametrize("text", ["a tokén of this test", "a token\u2026", " "])
def test_what_cannot_be_a_token_is_refused_and_not_kept(open_tab, guarded, text):
    tab = open_tab(url=guarded.url)
    form = tab.page.locator("#token-form")
    tab.page.get_by_label("This server asks for a token").fill(text)
    tab.page.keyboard.press("Enter")
    expect(form).to_contain_text("printable ASCII characters")
    assert tab.page.evaluate("sessionStorage.length") == 0
    tab.page.evaluate("text => sessionStorage.setItem('finpercep-token', text)", text)  # as an older page did
    tab.page.reload()
    tab.page.get_by_label("This server asks for a token").fill(TOKEN)
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("#rungs input")).to_have_count(3)
    expect(form).to_be_hidden()


# --- /docs ---


def test_the_description_is_laid_out(open_tab):
    tab = open_tab("/docs")
    expect(tab.page.locator(".route h2")).to_have_text(
        ["POST /score", "GET /model", "GET /rungs", "PUT /rungs/{name}", "GET /livez", "GET /readyz", "GET /metrics"]
    )
    score = tab.page.locator(".route").first
    expect(score).to_contain_text(f"curl -F image=@a.png -F image=@b.jpg {tab.url}/score")
    expect(score.get_by_role("row").filter(has_text="map_size")).to_contain_text("integer ≥ 8, ≤ 8192 or null")
    score.get_by_role("link", name="ScoreReply").click()
    expect(tab.page.locator("#ScoreReply")).to_be_in_viewport()
    expect(tab.page.locator("#problems")).to_contain_text("urn:finpercep:busy")
    assert "``" not in tab.page.content() and "undefined" not in tab.page.inner_text("main")
