"""The report as text: every page, its charts and plotly itself in one file.

`render_report` is a pure function: the same data give the same bytes, with no clock in them. The file loads nothing:
plotly and the style stand inside, and a content security policy forbids the browser to fetch anything else. Charts are
held packed and are drawn when their page is looked at.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pipeline.report_page.blocks import Block, Chart, Charts, Columns, Group, Section
from pipeline.report_page.colours import PALETTES
from pipeline.report_page.data import ReportData
from pipeline.report_page.names import LONG, visible
from pipeline.report_page.sections import facts, sections
from pipeline.report_page.summaries import series_summary

TEMPLATES = Path(__file__).parent / "templates"


def render_report(data: ReportData) -> str:
    """The whole page as text.

    Args:
        data: figures; every part but the evaluation is optional, and an empty section says why.

    Returns:
        HTML of about 5 MB, nearly all of it plotly's own code. All text of the data is escaped.

    >>> page = render_report(ReportData(evaluation={"dataset": {"name": "<script>alert(1)</script>"}}))
    >>> "<script>alert(1)" in page, "&lt;script&gt;alert(1)" in page
    (False, True)
    """
    return rendered("report.html", sections(data), title=f"{data.title} report", data=data, facts=facts(data))


def rendered(template: str, parts: Sequence[Section], **context: Any) -> str:
    """A page as text: a template around sections, with plotly where they have charts.

    Args:
        template: one of `templates/`.
        parts: sections of the page.
        context: what the template shows besides; `title` is that of the window.
    """
    charts = list[Chart]()
    taken = set[str]()
    parts = [replace(part, blocks=_distinct(part.blocks, taken, charts)) for part in parts]
    figures, shared = _figures(charts)
    return (
        _environment()
        .get_template(template)
        .render(
            **context,
            sections=parts,
            palettes=PALETTES,
            long=LONG,
            figures=json_for_script({"figures": figures, "shared": shared}),
            palettes_json=json_for_script(PALETTES),
            plotlyjs=Markup(get_plotlyjs()) if charts else "",  # noqa: S704  plotly's own code, no data in it
        )
    )


def _figures(charts: Sequence[Chart]) -> tuple[dict[str, Any], list[Any]]:
    """Charts as JSON values; equal tuples, such as the names of bands, are held once and referred to."""
    shared: dict[tuple[Any, ...], int] = {}

    def referred(value: Any) -> Any:
        if isinstance(value, tuple):
            return {"packed": "shared", "at": shared.setdefault(value, len(shared))}
        if isinstance(value, Mapping):
            return {key: referred(entry) for key, entry in value.items()}
        return [referred(entry) for entry in value] if isinstance(value, list) else value

    figures = {
        chart.id: {"data": referred(list(chart.traces)), "layout": chart.layout, "height": chart.height}
        for chart in charts
    }
    return figures, [list(names) for names in shared]


def _distinct(blocks: Sequence[Block], taken: set[str], charts: list[Chart]) -> list[Block]:
    """The blocks with an identifier of its own for every chart, and those charts: two names may make one identifier."""
    kept = list[Block]()
    for block in blocks:
        if isinstance(block, Charts):
            own = []
            for chart in block.charts:
                name = next(name for name in _names(chart.id) if name not in taken)
                taken.add(name)
                own.append(replace(chart, id=name))
            charts += own
            kept.append(replace(block, charts=own))
        elif isinstance(block, Columns | Group):
            kept.append(replace(block, blocks=_distinct(block.blocks, taken, charts)))
        else:
            kept.append(block)
    return kept


def _names(name: str) -> Any:
    yield name
    yield from (f"{name}-{again}" for again in range(2, 10_000))


def json_for_script(value: Any) -> Markup:
    """JSON that stands safely inside a script element: no `<`, `>`, `&` or line separator as such; NaN becomes null.

    >>> json_for_script({"a": "</script>"})
    Markup('{"a":"\\\\u003c/script\\\\u003e"}')
    """
    text = json.dumps(_finite(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  escaped just above


def _finite(value: Any) -> Any:
    """The same value with null for numbers that JSON does not know, and text without hidden characters."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # before it is escaped
    )
    environment.filters["tidy"] = tidy
    environment.filters["summary"] = series_summary
    return environment


def tidy(text: str) -> str:
    """A number and its unit stay on one line.

    >>> tidy("0.13 % of 7 h")
    '0.13\\xa0% of 7\\xa0h'
    """
    return re.sub(r"(?<=\d) (?=%|h\b|s\b|min\b|days\b)", "\u00a0", text)
