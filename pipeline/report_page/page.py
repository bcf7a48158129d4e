"""The page as text: sections, charts and plotly itself in one file.

`render_report` is a pure function: the same data give the same bytes, with no clock in them. The page loads nothing:
plotly and the style stand inside, and a content security policy forbids the browser to fetch anything else.
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

from pipeline.report_page.blocks import (
    Chart,
    Charts,
    Section,
)
from pipeline.report_page.colours import PALETTES
from pipeline.report_page.data import ReportData
from pipeline.report_page.sections import facts, headline, opening, sections

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
    parts, charts = _with_unique_ids(sections(data))
    figures = {chart.id: {"data": chart.traces, "layout": chart.layout, "height": chart.height} for chart in charts}
    return (
        _environment()
        .get_template("report.html")
        .render(
            data=data,
            headline=headline(data),
            facts=facts(data),
            opening=opening(data),
            sections=parts,
            palettes=PALETTES,
            figures=json_for_script(figures),
            palettes_json=json_for_script(PALETTES),
            plotlyjs=Markup(get_plotlyjs()) if charts else "",  # noqa: S704  plotly's own code, no data in it
        )
    )


def _with_unique_ids(parts: Sequence[Section]) -> tuple[list[Section], list[Chart]]:
    """Sections whose charts have identifiers of their own, and those charts: two names may make one identifier."""
    taken: set[str] = set()
    charts: list[Chart] = []
    kept = []
    for part in parts:
        blocks = []
        for block in part.blocks:
            if isinstance(block, Charts):
                own = []
                for chart in block.charts:
                    name = next(name for name in _names(chart.id) if name not in taken)
                    taken.add(name)
                    own.append(replace(chart, id=name))
                charts += own
                block = replace(block, charts=own)
            blocks.append(block)
        kept.append(replace(part, blocks=blocks))
    return kept, charts


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
    """The same value with null for numbers that JSON does not know."""
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
    )
    environment.filters["tidy"] = tidy
    return environment


def tidy(text: str) -> str:
    """A number and its unit stay on one line.

    >>> tidy("0.13 % of 7 h")
    '0.13\\xa0% of 7\\xa0h'
    """
    return re.sub(r"(?<=\d) (?=%|h\b|s\b|days\b)", "\u00a0", text)
