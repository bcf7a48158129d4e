"""Great Expectations' Data Docs made to work without internet: plain pages that load nothing and run nothing.

As they come the pages load scripts, styles and pictures from public hosts, and are blank in a plant without internet.
What they say is kept tag by tag from a short list of harmless ones, with a style of our own; what folds by script folds
by `<details>`. Paths, random ids and times are left out, so that the same result gives the same bytes.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pipeline.expectations import Suite, write_site
from pipeline.store import atomic_folder, write_text

KEPT = {"div", "p", "span", "strong", "code", "br", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td"}
KEPT |= {"h1", "h2", "h3", "h4", "h5", "h6", "details", "summary", "a"}
VOID = {"br", "img", "input", "link", "meta", "hr"}
SKIPPED = {"script", "style", "nav", "footer", "button", "label", "svg", "form", "head"}
SIDEBAR = "col-lg-2"
MARKS = {
    "fa-check-circle": ("✓", "good"),
    "fa-times": ("✗", "bad"),
    "fa-exclamation": ("!", "warn"),
    "fa-info": ("i", "note"),
}
# what only the run that made the page has
RUN_ROWS = re.compile(r"<tr>\s*<td[^>]*>\s*<div>\s*(?:Run Time|Great Expectations Version)\s*</div>.*?</tr>", re.S)
NO_ASSET = re.compile(r"Data asset: None\s*<br>")
STYLE = """
:root { color-scheme: light dark; --line: #8885; --quiet: #8888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h5 { font-size: 1.1rem; margin: 1.6rem 0 .3rem; } h6 { font-size: 1rem; margin: .6rem 0 0; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; } .good { color: #1a7f37; } .bad { color: #cf222e; } .warn { color: #9a6700; }
.badge { background: var(--line); border-radius: .3rem; padding: 0 .3rem; } .quiet { color: var(--quiet); }
"""


class _Cleaner(HTMLParser):
    """Copies what is harmless of a page."""

    def __init__(self, links: Mapping[str, str]) -> None:
        super().__init__(convert_charrefs=True)
        self.links = links
        self.out: list[str] = []
        self._open: list[tuple[str, str]] = []  # tag as it came, and what closes it
        self._skip = 0  # depth of what is skipped

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        classes = values.get("class", "").split()
        if tag == "i" and not self._skip:
            mark = next((MARKS[key] for name in classes for key in MARKS if name.startswith(key)), None)
            self.out.append(f'<span class="{mark[1]}">{mark[0]}</span>' if mark else "")
        if tag in VOID:
            self.out.append("<br>" if tag == "br" and not self._skip else "")
            return
        empty_head = tag == "thead" and "hidden" in values
        folder = values.get("data-toggle") == "collapse"
        if self._skip or tag in SKIPPED or SIDEBAR in classes or empty_head or folder:
            self._skip += 1
            self._open.append((tag, ""))
        elif "collapse" in classes:
            self.out.append("<details><summary>More</summary>")
            self._open.append((tag, "</details>"))
        elif tag not in KEPT or (tag == "a" and values.get("href") not in self.links):
            self._open.append((tag, ""))
        else:
            link = f' href="{escape(self.links[values["href"]])}"' if tag == "a" else ""
            kind = ' class="badge"' if "badge" in classes else ""
            self.out.append(f"<{tag}{link}{kind}>")
            self._open.append((tag, f"</{tag}>"))

    def handle_endtag(self, tag: str) -> None:
        if not any(name == tag for name, _ in self._open):
            return
        while self._open:
            name, closing = self._open.pop()
            self._skip = max(0, self._skip - 1)
            self.out.append(closing)
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.out.append(escape(data))


def self_contained(html: str, title: str, links: Mapping[str, str]) -> str:
    """A page of Data Docs that needs no other file but those it links to.

    Args:
        html: as Great Expectations wrote it.
        title: of the page.
        links: which targets of links stay, and where they lead now; any other link becomes its text.

    >>> page = self_contained('<p onclick="x()">a<script src="https://x/y.js"></script> &lt;b&gt;</p>', "t", {})
    >>> "<p>a &lt;b&gt;</p>" in page, "http" in page
    (True, False)
    """
    cleaner = _Cleaner(links)
    cleaner.feed(html)
    cleaner.close()
    body = NO_ASSET.sub("", RUN_ROWS.sub("", "".join(cleaner.out)))
    body = re.sub(r"[ \t]*\n\s*", "\n", body)
    return page(title, '<p><a href="index.html">All results</a></p>\n' + body)


def page(title: str, body: str) -> str:
    """A whole page around a body that is HTML already."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def index_page(suites: Sequence[Suite], notes: Sequence[str]) -> str:
    """The first page: every rule with what it found and what that does, and links to the pages of each suite."""
    parts = [f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>"] if notes else []
    words = {"rows": "Rows", "days": "Days of one machine"}
    for suite in suites:
        parts.append(f"<h5>{escape(words.get(suite.name, suite.name))}</h5>")
        parts.append(
            f'<p><a href="{suite.name}.html">Validation result</a> · '
            f'<a href="{suite.name}-suite.html">Expectation suite</a></p>'
        )
        head = "<tr><th></th><th>reason</th><th>rule</th><th>where it fails</th><th>fail</th><th>of</th></tr>"
        rows = [head]
        for found in suite.findings():
            mark = ("✓", "good") if found.success else (("!", "warn") if found.rule.action == "warn" else ("✗", "bad"))
            limits = ", ".join(f"{key} {value}" for key, value in found.kwargs.items() if key != "column")
            rule = f"{found.kwargs.get('column', found.rule.type)}: {limits}"
            cells = f'<td class="{mark[1]}">{mark[0]}</td><td>{escape(found.rule.reason)}</td><td>{escape(rule)}</td>'
            counts = "".join(f'<td class="number">{count:,}</td>' for count in (found.unexpected, found.evaluated))
            rows.append(f"<tr>{cells}<td>{escape(found.rule.action)}</td>{counts}</tr>")
        parts.append(f"<table>{''.join(rows)}</table>")
    return page("Validation", "\n".join(parts))


def write_data_docs(gx: Any, suites: Sequence[Suite], notes: Sequence[str], folder: Path) -> None:
    """Data Docs as static pages: `index.html`, and a page for the result and the rules of each suite."""
    with tempfile.TemporaryDirectory(prefix="hearken-") as name, atomic_folder(folder) as out:
        site = Path(name)
        write_site(gx, suites, site)
        write_text(out / "index.html", index_page(suites, notes))
        for suite in suites:
            links = {f"../../../../expectations/{suite.name}.html": f"{suite.name}-suite.html"}
            (result,) = sorted((site / "validations" / suite.name).rglob("*.html"))
            for source, target, title in (
                (result, f"{suite.name}.html", f"Result of suite {suite.name}"),
                (site / "expectations" / f"{suite.name}.html", f"{suite.name}-suite.html", f"Suite {suite.name}"),
            ):
                write_text(out / target, self_contained(source.read_text(encoding="utf-8"), title, links))
