"""Data Docs without internet: nothing is loaded, nothing runs, the same result gives the same bytes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.data_docs import self_contained, write_data_docs
from pipeline.expectations import Suite, context, load_rules
from pipeline.params import ValidateParams

PAGES = ["days-suite.html", "days.html", "index.html", "rows-suite.html", "rows.html"]
LOADS = {"script", "img", "iframe", "object", "embed", "video", "audio", "source", "form", "base", "svg"}


def written(folder: Path) -> Path:
    """Docs of a frame with 3 of 50 rows flat, seen in two pieces, and of two machine-days."""
    gx, rules, limits = context(), load_rules(), ValidateParams().model_dump()
    suites = [Suite(name, rules[name], "spectrum", limits, gx) for name in ("rows", "days")]
    columns = (
        "nonfinite negative energy relative_range repeats seconds_since_previous hours_ahead top_share clipped peak"
    )
    frame = pd.DataFrame({name: np.full(50, 0.5) for name in columns.split()})
    frame[["nonfinite", "negative"]] = 0
    frame["machine_id"], frame["timestamp"] = "<script>alert(1)</script>", 0
    frame.loc[[3, 4, 40], "relative_range"] = 0.0
    for piece in (frame[:30], frame[30:]):
        suites[0].failures(piece)
    days = {"missing_share": [0.0, 0.9], "unit_factor": 1.0, "usual_share": 1.0, "gain_step": 1.0}
    suites[1].failures(pd.DataFrame(days | {"band_shift": 0.0, "band_stretch": 1.0}))
    write_data_docs(gx, suites, ["a note on <b>machines</b>"], folder / "docs")
    return folder / "docs"


@pytest.fixture(scope="module")
def docs(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("docs"))


class Loads(HTMLParser):
    """What a page would load or run, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in LOADS or (tag == "link" and values.get("href") != "data:,"):
            self.loads.append(tag)
        self.loads += [name for name in values if name == "src" or name.startswith("on")]
        if tag == "a":
            self.links.append(values.get("href") or "")


def test_nothing_is_loaded_and_every_link_leads_to_a_page(docs):
    assert sorted(path.name for path in docs.iterdir()) == PAGES
    for path in docs.iterdir():
        text = path.read_text()
        page = Loads()
        page.feed(text)
        assert page.loads == [], path.name
        assert "http" not in text
        assert "url(" not in text
        assert all((docs / link).is_file() for link in page.links)
        assert page.links or path.name == "index.html"


def test_the_pages_say_what_was_found(docs):
    rows = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (docs / "rows.html").read_text()))
    assert "3 unexpected values found. 6% of 50 total rows." in rows
    assert "relative_range" in rows
    index = (docs / "index.html").read_text()
    assert "a note on &lt;b&gt;machines&lt;/b&gt;" in index
    cells = re.findall(r"<td[^>]*>(.*?)</td>", index)
    at = cells.index("flat")
    assert cells[at : at + 5] == ["flat", "relative_range: min_value 1e-06, strict_min True", "suspect", "3", "50"]


def test_the_same_result_gives_the_same_bytes(docs, tmp_path):
    again = written(tmp_path)
    for name in PAGES:
        assert (docs / name).read_bytes() == (again / name).read_bytes(), name


def test_what_folds_by_script_folds_without():
    html = '<div><a data-toggle="collapse" href="#x">Show</a><div id="x" class="collapse"><p>body</p></div></div><p>z'
    page = self_contained(html, "<t>", {})
    assert "<details><summary>More</summary><p>body</p></details></div><p>z" in page
    assert "Show" not in page
    assert "<title>&lt;t&gt;</title>" in page


def asked_by(page: Path, folder: Path) -> set[str]:
    """What a real browser asks for when it shows a page, the browser's own traffic left out."""
    log = folder / f"{page.name}.json"
    command = [os.environ["HEARKEN_CHROMIUM"], "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--disable-background-networking", "--disable-extensions", "--no-first-run", "--disable-sync"]
    command += ["--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "<h1>" in done.stdout
    assert "CONSOLE" not in done.stderr
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # the origin of a file is opaque: "null"
    return {values["url"] for values in events if "url" in values and values.get("initiator") == "null"}


@pytest.mark.skipif(not os.environ.get("HEARKEN_CHROMIUM"), reason="HEARKEN_CHROMIUM names no browser")
def test_a_browser_shows_them_and_asks_for_nothing_else(docs, tmp_path):
    control = tmp_path / "control.html"
    control.write_text('<h1>a page that loads</h1><img src="http://127.0.0.1:9/a.png">')
    assert asked_by(control, tmp_path) == {"http://127.0.0.1:9/a.png"}
    for name in PAGES:
        assert not {url for url in asked_by(docs / name, tmp_path) if not url.startswith("data:")}, name
