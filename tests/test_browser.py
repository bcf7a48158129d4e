"""The report and dvc's plots in a real headless Chromium: drawn whole, no error, no request, by keyboard, on paper."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from chromium import Page
from report_data import FAILURES, NAMES, full_data

from pipeline.data_docs import page as docs_page
from pipeline.report import render_report
from pipeline.report_page.data import DATA_DOCS
from pipeline.report_page.names import visible
from pipeline.store import write_json

CHROMIUM = os.environ.get("HEARKEN_CHROMIUM", "")
ROOT = Path(__file__).resolve().parent.parent
PAGES = ["summary", "data", "model", "codes", "thresholds", "detectors", "failures", "crew", "next"]
OWN = "main > section:not([hidden])"
# a chart has data drawn when something lies inside its panel: a line, bars, points, or the image of a heat map
BARE = f"""[...document.querySelectorAll('{OWN} .chart')].filter(chart => ![...chart.querySelectorAll(
  '.scatterlayer path, .barlayer path, .heatmaplayer image')].some(mark => {{
    const box = mark.getBoundingClientRect(); return box.width + box.height > 2; }})).map(chart => chart.id)"""
OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="HEARKEN_CHROMIUM names no browser (.ci/run installs Debian's)")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("report") / "index.html"
    file.write_text(render_report(full_data()), encoding="utf-8")
    docs = file.parent / DATA_DOCS
    docs.parent.mkdir()
    docs.write_text(docs_page("Validation", "<p>All rules.</p>"), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with Page(CHROMIUM, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, report: Path) -> Iterator[Page]:
    """The report, freshly opened; whatever a test does, nothing may be logged or asked of a network."""
    browser.errors.clear()
    browser.requests.clear()
    browser.resize(1280, 900)
    browser.prefer(prefers_color_scheme="light", prefers_reduced_motion="reduce")
    browser.send("Page.navigate", url="about:blank")
    browser.open(report)
    yield browser
    assert browser.errors == []
    assert {url.split(":", 1)[0] for url in browser.requests} <= {"file", "data"}


def show(page: Page, name: str) -> None:
    """Turn to a page by its address, and scroll until each of its charts was drawn."""
    page.evaluate(f"location.hash = '#{name}'")
    page.wait_for(f"document.documentElement.dataset.page === '{name}'")
    count = page.evaluate(f"document.querySelectorAll('{OWN} .chart').length")
    for index in range(count):
        page.evaluate(f"document.querySelectorAll('{OWN} .chart')[{index}].scrollIntoView()")
        page.wait_for(f"document.querySelectorAll('{OWN} .chart')[{index}].querySelector('.main-svg') !== null")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_every_chart_of_every_page_has_data_drawn(page: Page, width: int, scheme: str) -> None:
    page.resize(width, 900)
    page.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    assert page.evaluate("[...document.querySelectorAll('main > section')].map(section => section.id)") == PAGES
    drawn = 0
    for name in PAGES:
        show(page, name)
        assert page.evaluate(BARE) == [], name
        assert page.evaluate(OVERFLOW) <= 0, name
        drawn += page.evaluate(f"document.querySelectorAll('{OWN} .js-plotly-plot').length")
    assert drawn == len(page.evaluate("[...document.querySelectorAll('.chart')].map(chart => chart.id)")) > 30


def test_charts_wait_until_their_page_is_looked_at(page: Page) -> None:
    assert page.evaluate("document.querySelectorAll('.js-plotly-plot').length") == 0  # the summary has none
    show(page, "crew")
    assert page.evaluate("document.querySelectorAll('.js-plotly-plot').length") == 2


def test_one_page_is_shown_and_the_keyboard_turns_it(page: Page) -> None:
    visible_pages = f"[...document.querySelectorAll('{OWN}')].map(section => section.id)"
    assert page.evaluate(visible_pages) == ["summary"]
    page.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = []
    for _ in range(3):
        page.press("Tab")
        seen.append(page.evaluate("document.activeElement.hash"))
    assert seen == ["#summary", "#data", "#model"]
    page.press("Enter")
    page.wait_for("document.documentElement.dataset.page === 'model'")
    assert page.evaluate(visible_pages) == ["model"]
    current = "[...document.querySelectorAll('nav [aria-current=page]')].map(link => link.hash)"
    assert page.evaluate(current) == ["#model"]
    assert page.evaluate("document.activeElement.id") == "model-title"  # a screen reader reads on from there
    assert page.evaluate("document.title").startswith("What did the model learn?")
    page.evaluate("history.back()")
    page.wait_for("document.documentElement.dataset.page === 'summary'")


def test_the_keyboard_reaches_the_link_to_the_data_docs(page: Page) -> None:
    page.evaluate("location.hash = '#data'")
    page.wait_for("document.activeElement.id === 'data-title'")
    link = f"a[href='{DATA_DOCS}']"
    for _ in range(60):
        page.press("Tab")
        if page.evaluate(f'document.activeElement.matches("{link}")'):
            break
    assert page.evaluate("document.activeElement.textContent") == "Data Docs"


def test_an_address_leads_to_a_single_failure(page: Page) -> None:
    page.evaluate("location.hash = '#failure-3'")
    page.wait_for("document.documentElement.dataset.page === 'failures'")
    page.wait_for("Math.abs(document.getElementById('failure-3').getBoundingClientRect().top) < 80")
    page.wait_for("document.querySelector('#heat-3 .heatmaplayer image') !== null")


def test_hostile_names_are_text(page: Page) -> None:
    show(page, "failures")
    show(page, "crew")
    assert page.evaluate("document.querySelectorAll('main img, main a[href^=javascript], svg a').length") == 0
    assert "broken" not in page.evaluate("document.title")
    shown = page.evaluate("document.querySelector('#failures tbody').textContent")
    assert all(visible(name, keep="") in shown for name in NAMES)
    assert page.evaluate("[...document.querySelectorAll('#calendar text')].some(t => t.textContent.includes('</scr'))")


def test_dark_and_light_have_contrast(page: Page) -> None:
    """Text against its ground by WCAG 2.1: at least 4.5, in the page's own colours and in the charts'."""
    ratio = """(() => {
      const light = (text) => { const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(Number)
        .map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b; };
      const ground = (e) => { for (let own = e; own; own = own.parentElement) {
        const c = getComputedStyle(own).backgroundColor; if (!/, 0\\)$/.test(c) && c !== 'transparent') return c; }
        return getComputedStyle(document.body).backgroundColor; };
      const low = [];
      for (const e of document.querySelectorAll('body *')) {
        if (!e.offsetParent && !(e instanceof SVGTextElement)) continue;
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
        const style = getComputedStyle(e), colour = e instanceof SVGTextElement ? style.fill : style.color;
        if (!/^rgb\\(/.test(colour)) continue;
        const [a, b] = [light(colour), light(ground(e))].sort((x, y) => y - x);
        if ((a + .05) / (b + .05) < 4.5) low.push(`${e.textContent.trim().slice(0, 30)}: ${colour}`);
      } return low; })()"""
    for scheme in ("light", "dark"):
        page.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        for name in ("summary", "data", "thresholds", "failures", "next"):
            show(page, name)
            assert page.evaluate(ratio) == [], (scheme, name)


def test_charts_change_with_the_scheme(page: Page) -> None:
    show(page, "crew")
    colour = "getComputedStyle(document.querySelector('#load .xtitle')).fill"
    light = page.evaluate(colour)
    page.prefer(prefers_color_scheme="dark", prefers_reduced_motion="reduce")
    page.wait_for(f"{colour} !== {light!r}")


def test_print_holds_every_page_and_every_chart(page: Page, tmp_path: Path) -> None:
    page.prefer(prefers_color_scheme="dark")
    show(page, "crew")
    page.evaluate("window.addEventListener('afterprint', () => { window.printed = true; })")
    page.evaluate(
        "window.addEventListener('beforeprint', () => { window.onPaper = [...document.querySelectorAll('.chart')]"
        ".map(chart => chart.querySelectorAll('.main-svg').length); })"
    )
    file = page.pdf(tmp_path / "report.pdf").read_bytes()
    assert file.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", file)) >= len(PAGES) + FAILURES
    page.wait_for("window.printed === true")
    assert min(page.evaluate("window.onPaper")) > 0
    show(page, "crew")
    assert page.evaluate(BARE) == []  # and the screen is as before


def test_without_scripts_every_page_stands_one_after_the_other(page: Page, report: Path) -> None:
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.send("Page.reload")
        page.until(
            lambda: (
                page.evaluate("document.readyState") == "complete"
                and not page.evaluate("'page' in document.documentElement.dataset")
            ),
            "the page without scripts",
        )
        assert page.evaluate("[...document.querySelectorAll('main > section')].every(s => s.offsetHeight > 0)")
        assert "The charts need JavaScript" in page.evaluate("document.body.innerText")
    finally:
        page.send("Emulation.setScriptExecutionDisabled", value=False)


def test_dvc_plots_are_drawn_without_a_network(browser: Page, tmp_path: Path) -> None:
    """`dvc plots show` with the committed template: lines drawn, nothing asked for."""
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    files = {str(name) for plot in plots for entry in plot.values() for name in (entry["y"])}
    for name in files:
        rows = [
            {"epoch": step, "train_loss": 1 / (step + 1), "validation_loss": 1 / (step + 2), "reconstruction": 0.5}
            | {"kl": step / 9, "false_positive_rate": step / 9, "true_positive_rate": (step / 9) ** 0.5}
            | {"detector": detector}
            for detector in ("pca", "vae")
            for step in range(9)
        ]
        write_json(tmp_path / name, rows)
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}))
    (tmp_path / ".dvc").mkdir()
    for name in ("config", "plots.html"):
        (tmp_path / ".dvc" / name).write_bytes((ROOT / ".dvc" / name).read_bytes())
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["dvc", "plots", "show", "-o", "drawn"], cwd=tmp_path, check=True, capture_output=True)
    browser.errors.clear()
    browser.requests.clear()
    browser.open(tmp_path / "drawn" / "index.html")
    assert browser.evaluate("document.querySelectorAll('figure').length") == len(plots)
    series = "[...document.querySelectorAll('path.series')].map(line => line.getBoundingClientRect())"
    boxes = browser.evaluate(f"{series}.map(box => [box.width, box.height])")
    assert len(boxes) >= 2 * len(plots)
    assert all(width > 100 for width, _ in boxes)
    assert browser.errors == []
    assert {url.split(":", 1)[0] for url in browser.requests} <= {"file", "data"}
    tracked = subprocess.run(["git", "check-ignore", ".dvc/plots.html"], cwd=ROOT, capture_output=True)
    assert tracked.returncode == 1  # a private clone, which is a git clone, has the template too
