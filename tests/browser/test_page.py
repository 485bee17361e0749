"""The page as people use it: pictures in, numbers and maps out, compared with what the API says of the same bytes."""

from __future__ import annotations

import base64
import io
import re

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from data_synth.schema.pixels import encode_png
from finpercep.heatmap import from_samples
from tests.fakes import photo

PIXELS = photo(96, 128)
PNG = encode_png(PIXELS)
OTHER = encode_png(photo(96, 128, seed=1))
TALL = encode_png(photo(160, 80, seed=2))


@pytest.fixture
def ask(server):
    """One item of ``POST /score``."""

    def asked(body: bytes, **query: object) -> dict:
        answer = httpx.post(f"{server.url}/score", files={"image": body}, params=query, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        return answer.json()["items"][0]

    return asked


def map_of(item: dict) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(item["map"]))) as picture:
        return from_samples(np.array(picture, dtype=np.uint16))


# --- it loads, from this server alone ---


def test_it_loads_quietly_and_under_its_policy(tab):
    messages = []
    tab.page.on("console", lambda message: messages.append(message.text))
    tab.page.reload()
    expect(tab.page.locator("#rungs input")).to_have_count(3)
    assert messages == []
    assert "default-src 'none'" in tab.response.headers["content-security-policy"]
    assert tab.page.title().startswith("finpercep")


# --- pictures come in ---


def test_a_dropped_picture_has_the_score_of_the_api(tab, ask):
    tab.drop(("a.png", PNG))
    item = ask(PNG)
    tab.expect_scores(item["score"])
    expect(tab.page.locator("dd")).to_have_text([f"{item[name]:.3f}" for name in ("max_degradation", "mean_degradation")])
    expect(tab.page.locator(".size")).to_have_text("128 × 96 px")


def test_a_pasted_and_a_chosen_picture(tab, ask):
    tab.paste(("", PNG))
    tab.expect_scores(ask(PNG)["score"])
    expect(tab.page.locator(".name")).to_have_text("pasted picture")
    tab.page.click("#start-over")
    tab.page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png", "buffer": OTHER})
    tab.expect_scores(ask(OTHER)["score"])


def test_two_are_compared(tab, ask):
    tab.drop(("a.png", PNG), ("b.png", TALL))
    first, second = ask(PNG)["score"], ask(TALL)["score"]
    tab.expect_scores(first, second)
    difference = tab.page.inner_text("#difference")
    assert (
        difference
        == f"{'+' if second > first else '−'}{abs(second - first):.3f} B is {'better' if second > first else 'worse'} than A"
    )
    tab.drop(("c.png", OTHER))  # another takes the second's place
    tab.expect_scores(first, ask(OTHER)["score"])
    tab.page.get_by_role("button", name="Remove a.png").click()
    tab.expect_scores(ask(OTHER)["score"])


def test_a_picture_the_browser_cannot_show_is_scored_all_the_same(tab, ask):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "TIFF")
    tab.drop(("a.tif", buffer.getvalue()))
    item = ask(PNG, map="png")
    tab.expect_scores(item["score"])
    tab.point_at(0.5, 0.5)
    expect(tab.page.locator(".readout")).to_contain_text(f"degradation {map_of(item)[48, 64]:.3f}")
    plant = tab.page.locator("#plant")  # what is not on the screen cannot be changed there
    expect(plant).to_be_disabled()
    expect(plant).to_have_accessible_description("This browser cannot show a.tif, so no defect can be planted in it.")
    tab.page.click("#start-over")
    tab.drop(("a.png", PNG))
    expect(plant).to_be_enabled()
    expect(tab.page.locator("#plant-note")).to_be_hidden()


def test_the_map_of_a_large_picture_comes_smaller(tab, ask):
    wide = encode_png(np.ascontiguousarray(np.tile(PIXELS[:64], (1, 20, 1))[:, :2500]))
    tab.drop(("wide.png", wide))
    degradation = map_of(ask(wide, map="png", map_size=2048))
    tab.page.focus(".layers")
    tab.page.keyboard.press("Shift+ArrowRight")
    value = degradation[32 * degradation.shape[0] // 64, 1251 * 2048 // 2500]
    expect(tab.page.locator(".readout")).to_have_text(f"x 1251, y 32 · degradation {value:.3f}")


# --- what goes wrong is said ---


def test_a_broken_file_is_told_and_the_page_goes_on(tab, ask):
    tab.drop(("broken.png", b"not a picture"))
    problem = tab.page.get_by_role("alert").filter(has_text="broken.png was not scored")
    expect(problem).to_contain_text("13 bytes: not a picture")
    expect(tab.page.locator("#welcome")).to_be_visible()
    tab.drop(("a.png", PNG))
    tab.expect_scores(ask(PNG)["score"])
    expect(problem).to_be_hidden()
    tab.drop(("broken.png", b"not a picture"))  # what was there stays
    expect(problem).to_be_visible()
    tab.expect_scores(ask(PNG)["score"])


def test_of_two_the_broken_one_fails_alone(tab, ask):
    tab.drop(("a.png", PNG), ("small.png", encode_png(photo(20, 64))))
    expect(tab.page.locator("#scores .number")).to_have_text([f"{ask(PNG)['score']:.3f}", "–"])
    expect(tab.page.locator("#scores .fault")).to_contain_text("at least 32 px on each side, got 64x20")
    expect(tab.page.locator("#difference")).to_be_hidden()


def test_a_busy_server_is_asked_again(tab, ask):
    answers = iter([503])

    def busy_once(route):
        if next(answers, None) is None:
            route.continue_()
        else:
            problem = '{"title": "The server has no room now", "detail": "try again in 1 s", "status": 503}'
            route.fulfill(status=503, headers={"Retry-After": "1"}, content_type="application/problem+json", body=problem)

    tab.page.route("**/score?*", busy_once)
    tab.drop(("a.png", PNG))
    expect(tab.page.locator("#busy")).to_contain_text("busy; asking again in 1 s")
    tab.expect_scores(ask(PNG)["score"])


def test_a_server_that_is_away_is_told_and_tried_again(tab, ask):
    tab.page.route("**/score?*", lambda route: route.abort())
    tab.drop(("a.png", PNG))
    expect(tab.page.locator("#problem-title")).to_have_text("The server cannot be reached")
    tab.page.unroute("**/score?*")
    tab.page.get_by_role("button", name="Try again").click()
    tab.expect_scores(ask(PNG)["score"])
    expect(tab.page.locator("#problem")).to_be_hidden()


@pytest.mark.parametrize("button", ["#sample", "#sample-plant"])
def test_a_sample_that_does_not_come_is_told_and_tried_again(tab, button):
    expect(tab.page.locator("#rungs input")).to_have_count(3)
    tab.page.route("**/sample.jpg", lambda route: route.abort())
    tab.page.click(button)
    expect(tab.page.locator("#problem-title")).to_have_text("The server cannot be reached")
    tab.page.unroute("**/sample.jpg")
    tab.page.get_by_role("button", name="Try again").click()
    expect(tab.page.locator(".name")).to_have_text("sample.jpg")
    expect(tab.page.locator("#problem")).to_be_hidden()
    expect(tab.page.locator("#planting")).to_be_visible(visible=button == "#sample-plant")


def test_a_server_that_was_away_when_the_page_began_is_asked_with_the_first_picture(tab, ask):
    tab.page.route("**/model", lambda route: route.abort())
    tab.page.reload()
    expect(tab.page.locator("#problem-title")).to_have_text("The server cannot be reached")
    tab.page.unroute("**/model")
    tab.drop(("a.png", PNG))
    tab.expect_scores(ask(PNG)["score"])
    expect(tab.page.locator("#rungs input")).to_have_count(3)
    expect(tab.page.locator("#problem")).to_be_hidden()


# --- rungs, the overlay, the map ---


def test_another_rung_gives_its_own_score(tab, ask):
    tab.drop(("a.png", PNG))
    tab.expect_scores(ask(PNG)["score"])
    for rung in ("RM_1", "RM_0"):
        tab.page.get_by_text(rung, exact=True).click()
        tab.expect_scores(ask(PNG, rung=rung)["score"])
        expect(tab.page.locator("#model-name")).to_contain_text(rung)
    expect(tab.page.locator("#rung-note")).to_contain_text("no map")
    expect(tab.page.locator(".heat")).to_be_hidden()


def test_the_slider_changes_the_overlay(tab):
    tab.drop(("a.png", PNG))
    heat, picture = tab.page.locator(".heat"), tab.page.locator(".layers .picture")
    expect(tab.page.locator("#busy")).to_be_hidden()
    for percent, grey in ((75, "1"), (30, "0.4"), (0, "0")):
        tab.page.locator("#opacity").fill(str(percent))
        expect(heat).to_have_css("opacity", re.compile(rf"^{percent / 100:g}$"))
        expect(picture).to_have_css("filter", f"grayscale({grey})")
        expect(tab.page.locator("#opacity-value")).to_have_text(f"{percent} %")


def test_pointing_reads_the_map_of_the_api_in_both_pictures(tab, ask):
    tab.drop(("a.png", PNG), ("b.png", OTHER))
    maps = [map_of(ask(body, map="png")) for body in (PNG, OTHER)]
    for x, y in ((0.3, 0.6), (0.999, 0.5)):
        tab.point_at(x, y)
        column, row = int(x * 128), int(y * 96)
        expected = [f"x {column}, y {row} · degradation {one[row, column]:.3f}" for one in maps]
        expect(tab.page.locator(".readout")).to_have_text(expected)


def test_regions_are_those_of_the_api_at_any_threshold(tab, ask):
    tab.page.click("#sample")
    sample = httpx.get(f"{tab.url}/web/sample.jpg", trust_env=False).content
    for threshold in (0.2, 0.1, 0.3):
        tab.page.locator("#threshold").fill(str(threshold))
        expected = []
        for region in ask(sample, region_threshold=threshold)["regions"][:8]:
            x0, y0, x1, y1 = region["box"]
            expected.append(
                f"{len(expected) + 1} {x1 - x0} × {y1 - y0} px at {x0}, {y0}"
                f"area {region['area']:,} pxmean {region['mean']:.2f} · peak {region['peak']:.2f}"
            )
        assert expected
        expect(tab.page.locator(".region-text")).to_have_text(expected)
        expect(tab.page.locator(".region")).to_have_count(len(expected))
    tab.page.locator(".region-button").first.hover()
    expect(tab.page.locator(".region.chosen")).to_have_count(1)


# --- the LR picture ---

LOW = encode_png(photo(24, 32))


def beside(server, body: bytes, lr: bytes) -> float:
    """The score that ``POST /score`` gives a picture with its LR picture."""
    answer = httpx.post(f"{server.url}/score", files=[("image", body), ("lr", lr)], timeout=60, trust_env=False)
    return answer.json()["items"][0]["score"]


def choose_lr(tab, name: str, body: bytes) -> None:
    tab.page.set_input_files("#lr-file", {"name": name, "mimeType": "image/png", "buffer": body})


def test_pictures_are_scored_beside_their_lr_picture(tab, ask, server):
    tab.drop(("a.png", PNG))
    alone = ask(PNG)["score"]
    tab.expect_scores(alone)
    choose_lr(tab, "low.png", LOW)
    with_lr = beside(server, PNG, LOW)
    assert f"{with_lr:.3f}" != f"{alone:.3f}"
    tab.expect_scores(with_lr)
    expect(tab.page.locator("#lr-name")).to_have_text("low.png")
    tab.drop(("b.png", OTHER))  # the two were made from one
    tab.expect_scores(with_lr, beside(server, OTHER, LOW))
    assert tab.page.text_content("#curl").count("""-F 'lr=@"low.png"'""") == 2
    tab.page.get_by_role("button", name="Remove LR").click()
    tab.expect_scores(alone, ask(OTHER)["score"])
    expect(tab.page.locator("#lr")).to_be_hidden()
    assert "lr=" not in tab.page.text_content("#curl")


@pytest.mark.parametrize(("lr", "words"), [(TALL, "must not be larger"), (b"nonsense", "not a picture")])
def test_an_lr_picture_that_is_refused_leaves_the_scores_that_were_there(tab, ask, server, lr, words):
    tab.drop(("a.png", PNG))
    tab.expect_scores(ask(PNG)["score"])
    choose_lr(tab, "low.png", LOW)
    tab.expect_scores(beside(server, PNG, LOW))
    choose_lr(tab, "wrong.png", lr)
    expect(tab.page.locator("#problem-title")).to_have_text("wrong.png was not taken as LR picture")
    expect(tab.page.locator("#problem-detail")).to_contain_text(words)
    expect(tab.page.locator("#lr-name")).to_have_text("low.png")
    tab.expect_scores(beside(server, PNG, LOW))


def test_a_rung_that_takes_no_lr_picture_is_not_sent_one(open_tab, ask, server):
    tab = open_tab()

    def blind(route):
        model = httpx.get(f"{server.url}/model", trust_env=False).json()
        for rung in model["rungs"]:
            rung["takes_lr"] = rung["name"] != "RM_0"
        route.fulfill(json=model)

    tab.page.route("**/model", blind)
    tab.page.reload()
    tab.drop(("a.png", PNG))
    choose_lr(tab, "low.png", LOW)
    tab.expect_scores(beside(server, PNG, LOW))
    tab.page.get_by_text("RM_0", exact=True).click()
    tab.expect_scores(ask(PNG, rung="RM_0")["score"])
    expect(tab.page.locator("#choose-lr")).to_be_hidden()
    tab.page.get_by_text("RM_2", exact=True).click()
    tab.expect_scores(beside(server, PNG, LOW))


# --- what is taken away ---


def test_downloads_are_the_servers_map_and_an_overlay(tab, ask):
    tab.drop(("a.png", PNG))
    with tab.page.expect_download() as map_file:
        tab.page.get_by_role("button", name="Map, 16-bit PNG").click()
    assert map_file.value.suggested_filename == "a.map.png"
    assert map_file.value.path().read_bytes() == base64.b64decode(ask(PNG, map="png")["map"])
    with tab.page.expect_download() as overlay_file:
        tab.page.get_by_role("button", name="Overlay, PNG").click()
    with Image.open(overlay_file.value.path()) as picture:
        assert picture.size == (128, 96)


def test_curl_and_digest_can_be_copied(open_tab, server):
    tab = open_tab(permissions=["clipboard-read", "clipboard-write"])
    tab.drop(("it's.png", PNG))
    expect(tab.page.locator("#model")).to_be_visible()
    tab.page.click("summary")
    tab.page.click("#copy-curl")
    expect(tab.page.locator("#copy-curl")).to_have_text("Copied", use_inner_text=True)
    command = tab.page.evaluate("navigator.clipboard.readText()")
    assert command.split(" \\\n  ") == [
        "curl",
        """-F 'image=@"it'\\''s.png"'""",
        f"'{server.url}/score?rung=RM_2&map=png&region_threshold=0.2'",
    ]
    tab.page.click("#copy-digest")
    expect(tab.page.locator("#copy-digest")).to_have_text("Copied", use_inner_text=True)
    digest = httpx.get(f"{server.url}/model", trust_env=False).json()["digest"]
    assert tab.page.evaluate("navigator.clipboard.readText()") == digest


MODEL = {
    "model": {"name": "another", "rung": "RM_2", "digest": "sha256:0123456789abcdef"},
    "timing": {"compute_ms": 1, "queue_ms": 1, "batch_ms": 1},
    "elapsed": 3,
}


def test_the_digest_stays_however_often_it_is_copied(open_tab, ask):
    tab = open_tab(permissions=["clipboard-read", "clipboard-write"])
    button = tab.page.locator("#copy-digest")
    tab.drop(("a.png", PNG))
    tab.expect_scores(ask(PNG)["score"])
    digest = button.inner_text()
    button.dblclick()
    expect(button).to_have_text("Copied", use_inner_text=True)
    tab.module("numbers.js", "m.showModel(argument)", MODEL)  # a result that comes meanwhile
    expect(button).to_have_text("0123456789", use_inner_text=True)
    tab.page.get_by_text("RM_1", exact=True).click()
    tab.expect_scores(ask(PNG, rung="RM_1")["score"])
    expect(button).to_have_text(re.compile("^(?!0123456789)[0-9a-f]{10}$"), use_inner_text=True)
    assert button.inner_text() != digest
