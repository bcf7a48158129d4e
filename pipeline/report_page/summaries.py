"""A chart as a small table, for those who do not see it: each series with its span and its extremes."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from pipeline.report_page.blocks import Cell, Chart, Column, Table, as_number, number
from pipeline.report_page.packing import unpacked

MOST_ROWS = 12


def series_summary(chart: Chart) -> Table | None:
    """A row per named series: points, first, last, lowest and highest value; None where no series has numbers.

    >>> traces = [{"name": "loss", "x": [1, 2, 3], "y": [5.0, 2.0, 3.0]}]
    >>> table = series_summary(Chart("a", "Loss", "It falls.", traces, {}))
    >>> [cell.text for cell in table.rows[0]]
    ['loss', '3', '5.00', '3.00', '2.00', '5.00']
    """
    rows = []
    for trace in chart.traces:
        values = _values(trace)
        if not values or trace.get("hoverinfo") == "skip":
            continue
        shown = [number(value) for value in (values[0], values[-1], min(values), max(values))]
        rows.append([Cell(_name(trace, chart)), Cell(f"{len(values):,}"), *map(Cell, shown)])
    if not rows:
        return None
    heads = [Column(head) for head in ("Points", "First", "Last", "Lowest", "Highest")]
    return Table(f"{chart.title}: the series in numbers", [Column("Series", numeric=False), *heads], rows[:MOST_ROWS])


def _name(trace: Mapping[str, Any], chart: Chart) -> str:
    """The series' name; traces that share one are told apart by their place."""
    name = html.unescape(str(trace.get("name") or chart.title))
    ticks = chart.layout.get("yaxis", {}).get("ticktext")
    place = unpacked(trace.get("y"))
    if ticks and isinstance(place, list) and len(set(place)) == 1 and isinstance(place[0], int):
        return f"{ticks[place[0]]}: {name}"
    return name


def _values(trace: Mapping[str, Any]) -> list[float]:
    """The numbers of a series, in order: heights, or the places along x of a dot chart; `meta` has its own."""
    if isinstance(trace.get("meta"), dict):  # drawn elsewhere than it stands
        return [found for value in trace["meta"].get("values") or [] if (found := as_number(value)) is not None]
    if trace.get("type") == "heatmap":
        z = trace.get("z")
        flat = [value for row in unpacked(z) for value in row] if isinstance(z, dict) else []  # else a code of colours
    else:
        flat = unpacked(trace.get("y")) or []
        if len(flat) == 1:
            flat = (
                unpacked(trace.get("x")) if as_number(flat[0]) is not None and trace.get("mode") == "markers" else flat
            )
    return [found for value in flat if (found := as_number(value)) is not None]
