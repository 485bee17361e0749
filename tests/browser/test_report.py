"""The report of a real, tiny run as people use it: hover a plot, move a slider, switch maps on, by mouse, keys and finger."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

from finpercep.curriculum.loop import FinetuneConfig, finetune
from finpercep.curriculum.run_directory import RunDirectory
from finpercep.curriculum.watch import MonitorConfig
from finpercep.local_reward import LocalSource
from finpercep.predictor import load_predictors
from finpercep.report.page import write_report
from finpercep.report.runs import report_of_run
from finpercep.rl.refl import ReflConfig
from finpercep.sr.tiny import TinyConfig, TinyDiffusionSR, build_scheduler, build_unet
from finpercep.training.metrics_log import read_metrics
from finpercep.training.provenance import Session
from tests.browser.tab import Tab

PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def run_folder(small_ladder, tmp_path_factory):
    """Six steps along three rungs, looked at every second step, and its report."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    policy = TinyDiffusionSR(build_unet((16, 16, 16)), build_scheduler(), TinyConfig(num_steps=3))

    def draw_pair(rng: np.random.Generator):
        hr = torch.from_numpy(rng.random((3, 32, 32), dtype=np.float32))
        return hr, torch.nn.functional.avg_pool2d(hr[None], 4)[0]

    held_out = tuple(map(torch.stack, zip(*(draw_pair(np.random.default_rng((1, k))) for k in range(3)), strict=True)))
    monitor = MonitorConfig(every=2, images=3, on_alarm="warn")
    config = FinetuneConfig(steps=6, batch_size=2, crop=32, lr=1e-3, algorithm=ReflConfig(), monitor=monitor)
    run = RunDirectory(folder, session=Session.now(["finetune", "--out", "runs/ft"], "cpu"))
    source = LocalSource(load_predictors(small_ladder))
    for _ in finetune(policy, source, draw_pair, lambda images: [images], config, run, held_out=held_out):
        pass
    write_report(report_of_run(folder), folder / "report.html")
    return folder


@pytest.fixture
def open_report(chromium, run_folder):
    """Opens the report; afterwards no tab may have failed or asked for anything."""
    tabs: list[Tab] = []

    def opened(**context: object) -> Tab:
        tab = Tab(chromium.new_context(**context), run_folder.as_uri(), "/report.html")
        tabs.append(tab)
        return tab

    yield opened
    for tab in tabs:
        tab.page.context.close()
    for tab in tabs:
        assert tab.foreign == [] and tab.faults == []


def chart(tab: Tab, title: str):
    return tab.page.locator(".chart").filter(has=tab.page.get_by_role("heading", name=title, exact=True))


def shown(plot) -> str:
    return plot.locator(".tip").inner_text()


def point_at(tab: Tab, plot, share: float) -> None:
    """Move the mouse to a share of the x axis."""
    plot.scroll_into_view_if_needed()
    box = plot.locator("svg").bounding_box()
    left, top, right, bottom = json.loads(plot.locator("..").locator("script").text_content())["plot"]
    width = float(plot.locator("svg").get_attribute("viewBox").split()[2])
    scale = box["width"] / width
    tab.page.mouse.move(box["x"] + scale * (left + share * (right - left)), box["y"] + scale * (top + bottom) / 2)


def test_nothing_but_the_file_is_asked_for(open_report):
    """Pictures are data, the script and the style are in the page."""
    requests = []
    tab = open_report()
    tab.page.on("request", lambda request: requests.append(request.url))
    tab.page.reload()
    tab.page.wait_for_load_state("networkidle")
    assert [url for url in requests if not url.startswith("data:")] == [tab.page.url]


def test_a_plot_tells_its_values_under_the_mouse(open_report, run_folder):
    tab, records = open_report(), read_metrics(run_folder / "metrics.jsonl")
    plot = chart(tab, "reward").locator(".plot")
    point_at(tab, plot, 0.0)
    assert "step 1 · RM_0" in shown(plot) and f"{records[0]['reward']:.6g}" in shown(plot)
    point_at(tab, plot, 1.0)
    assert "step 6 · RM_2" in shown(plot) and f"{records[5]['reward']:.6g}" in shown(plot)
    tab.page.mouse.move(0, 0)
    expect(plot.locator(".tip")).to_be_hidden()


def test_a_plot_tells_its_values_by_the_keys(open_report, run_folder):
    tab, records = open_report(), read_metrics(run_folder / "metrics.jsonl")
    plot = chart(tab, "gradient norm").locator(".plot")
    plot.focus()
    for key, step in {"ArrowRight": 1, "End": 6, "ArrowLeft": 5, "Home": 1}.items():
        plot.press(key)
        assert f"step {step}" in shown(plot) and f"{records[step - 1]['grad_norm']:.6g}" in shown(plot)
    plot.press("Escape")
    expect(plot.locator(".tip")).to_be_hidden()


def test_the_panel_tells_its_interval(open_report, run_folder):
    tab, records = open_report(), read_metrics(run_folder / "metrics.jsonl")
    plot = chart(tab, "panel, change").locator(".plot")
    plot.focus()
    plot.press("Home")
    verdict = records[1]["verdict"]
    for name in ("change", "low", "high"):
        assert f"{verdict[name]:.6g}"[:6] in shown(plot).replace("−", "-")


def test_lines_can_be_switched_off(open_report):
    tab = open_report()
    figure = chart(tab, "losses, weighted")
    name = figure.locator(".legend label").first
    first = figure.locator("polyline.k0").first
    expect(first).to_be_visible()
    expect(name).not_to_have_css("text-decoration-line", "line-through")
    label = name.inner_text()
    name.click()
    expect(first).to_be_hidden()
    expect(name).to_have_css("text-decoration-line", "line-through")
    plot = figure.locator(".plot")
    plot.focus()
    plot.press("End")
    assert label not in shown(plot)
    figure.locator(".legend input").first.press(" ")
    expect(first).to_be_visible()


def edge(case) -> float:
    """Where the left picture ends, as a share of the width."""
    box, line = case.locator(".layers").bounding_box(), case.locator(".cut").bounding_box()
    return (line["x"] + line["width"] / 2 - box["x"]) / box["width"]


def test_the_border_between_before_and_after_moves(open_report):
    tab = open_report()
    case = tab.page.locator(".compare").first
    case.scroll_into_view_if_needed()
    assert edge(case) == pytest.approx(0.5, abs=0.02)
    box = case.locator(".layers").bounding_box()
    tab.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 20)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 60)
    tab.page.mouse.up()
    assert edge(case) == pytest.approx(0.25, abs=0.02)
    assert float(case.locator("input[type=range]").input_value()) == pytest.approx(25, abs=1)
    case.locator("input[type=range]").press("End")
    assert edge(case) == pytest.approx(1.0, abs=0.02)
    assert edge(tab.page.locator(".compare").nth(1)) == pytest.approx(0.5, abs=0.02)


def test_other_pictures_can_be_chosen(open_report):
    tab = open_report()
    case = tab.page.locator(".compare").first
    expect(case.locator(".layer.left")).to_have_attribute("data-name", "before")
    expect(case.locator(".layer.right")).to_have_attribute("data-name", "after")
    case.get_by_label(re.compile("left picture$")).select_option("LR")
    case.get_by_label(re.compile("right picture$")).select_option("ground truth")
    expect(case.locator(".layer.left")).to_have_attribute("data-name", "LR")
    boxes = [case.locator(f".layer.{side} img").first.bounding_box() for side in ("left", "right")]
    assert boxes[0] == boxes[1]  # the LR picture has fewer pixels, and covers the same place


def test_maps_are_laid_over_when_asked_for(open_report):
    tab = open_report()
    heat = tab.page.locator(".compare").first.locator(".layer.right .heat")
    expect(heat).to_be_hidden()
    tab.page.get_by_label("show what the reward thinks is broken").first.check()
    expect(heat).to_be_visible()
    box, below = heat.bounding_box(), tab.page.locator(".compare").first.locator(".layer.right img").first.bounding_box()
    assert box == below


def test_it_fits_a_phone_and_answers_a_finger(open_report):
    tab = open_report(viewport=PHONE, has_touch=True)
    assert tab.overflow == 0
    plot = chart(tab, "reward").locator(".plot")
    plot.tap()
    expect(plot.locator(".tip")).to_be_visible()
    tip, box = plot.locator(".tip").bounding_box(), plot.bounding_box()
    assert box["x"] - 1 <= tip["x"] and tip["x"] + tip["width"] <= box["x"] + box["width"] + 1
    case = tab.page.locator(".compare").first
    case.scroll_into_view_if_needed()
    layers = case.locator(".layers").bounding_box()
    tab.page.touchscreen.tap(layers["x"] + 0.75 * layers["width"], layers["y"] + 20)
    assert edge(case) == pytest.approx(0.75, abs=0.02)


def test_everything_that_answers_can_be_reached_by_the_keys(open_report):
    tab = open_report()
    tags = set()
    for _ in range(200):
        tab.page.keyboard.press("Tab")
        found = tab.page.evaluate(
            """(e => e === document.body ? "" : e.className === "plot" ? "plot" : `${e.localName}[${e.type ?? ""}]`)(
              document.activeElement)"""
        )
        if not found:
            break
        tags.add(found)
    assert {"plot", "input[range]", "input[checkbox]", "select[select-one]", "summary[]"} <= tags


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(open_report, scheme):
    """WCAG AA: 4.5 to 1 for the text on its card, headings, notes, ticks of the plots."""
    tab = open_report(color_scheme=scheme)
    for selector in ("h1", "section h2", ".lead", "figcaption", ".figures dt", "svg text.tick", ".legend label", "summary"):
        ink, paper = tab.page.evaluate(
            """selector => {
              const element = document.querySelector(selector);
              let behind = element;
              const clear = "rgba(0, 0, 0, 0)";
              while (getComputedStyle(behind).backgroundColor === clear && behind.parentElement) behind = behind.parentElement;
              const style = getComputedStyle(element);
              return [element instanceof SVGElement ? style.fill : style.color, getComputedStyle(behind).backgroundColor];
            }""",
            selector,
        )
        assert contrast(ink, paper) >= 4.5, selector


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two CSS colours."""
    lights = []
    for colour in (one, other):
        parts = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_without_scripts_everything_is_there(chromium, run_folder):
    page = chromium.new_context(java_script_enabled=False).new_page()
    page.goto((run_folder / "report.html").as_uri())
    expect(page.locator(".compare").first.locator(".layer")).to_have_count(4)
    for layer in page.locator(".compare").first.locator(".layer").all():
        expect(layer).to_be_visible()
    expect(page.locator(".chart polyline").first).to_be_visible()
    expect(page.locator("pre.command")).to_have_text("finpercep finetune --out runs/ft")
    page.context.close()
