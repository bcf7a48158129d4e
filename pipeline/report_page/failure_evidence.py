"""Behind a failure's timeline: error per bin over time, the spectrum when healthy and at the alert, the loudest bands.

Shape legend: T spans of time, C groups of bins of the heat map, S groups of bins of a spectrum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report_page.blocks import (
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Columns,
    Table,
    number,
    percent,
    sentence_list,
)
from pipeline.report_page.charts import HALF_HEIGHT, Json, axis, band_axis, heat_trace, labels, line, log_ticks, rule
from pipeline.report_page.names import isolated
from pipeline.report_page.packing import packed_numbers

HEAT_HEIGHT = 250
MARGIN = {"l": 110, "r": 84}  # of the timeline and the heat map beneath it, so that their times stand in line
SHOWN = {
    "page": "at the page",
    "comparison": "at the comparison's alert",
    "last": "just before the failure",
}
BASELINE_NOTES = {
    "shrunk": " This machine has too few healthy rows in this epoch and condition: the score is against a wider, "
    "shrunk baseline.",
    "fleet": " This machine is not known: the score is against the fleet's baseline.",
}


def evidence_blocks(row: Mapping[str, Any], index: int, window: Sequence[str], failed: str, unit: str) -> list[Block]:
    """The heat map, and beneath it the spectra beside the bands.

    Args:
        row: of the evidence table.
        index: the page's own number of the failure.
        window: first and last time to show, as in the timeline above.
        failed: when it failed.
        unit: of the magnitudes; empty for features.
    """
    blocks: list[Block] = [Charts([heat_chart(row, index, window, failed)])]
    spectra, bands = spectrum_chart(row, index, unit), band_table(row, unit)
    return [*blocks, Columns([Charts([spectra]), bands])]


def heat_chart(row: Mapping[str, Any], index: int, window: Sequence[str], failed: str) -> Chart:
    """Mean share of the score by band (upwards) and time."""
    names = row["heat_bands"]
    error_TC = np.asarray(row["error_TC"], np.float64).reshape(-1, len(names))
    edges = np.linspace(row["begin_us"], row["end_us"], len(error_TC) + 1)
    middle = ((edges[1:] + edges[:-1]) / 2).astype("datetime64[us]")
    start, step = str(np.datetime_as_string(middle[0], unit="s")), float(edges[1] - edges[0]) / 1000
    trace = heat_trace(error_TC.T, names, "error", time="%{x|%Y-%m-%d %H:%M}", x0=start, dx=step)
    layout = {
        "xaxis": axis("time (UTC)", type="date", range=list(window)),
        "yaxis": axis("", automargin=False, **band_axis(names)),
        "shapes": [rule("x", failed, "@faulty", "solid", 2), *_alert_rule(row)],
        "margin": {"t": 10, **MARGIN},
    }
    return Chart(
        f"heat-{index}", "Error by band over time", _heat_caption(error_TC, names), [trace], layout, HEAT_HEIGHT
    )


def _alert_rule(row: Mapping[str, Any]) -> list[Json]:
    """Where the spectrum beneath was heard, if an alert stood there."""
    if row["shown"] == "last":
        return []
    return [rule("x", str(np.datetime64(row["shown_us"], "us").astype("datetime64[s]")), "@accent", "dot", 1.5)]


def _heat_caption(error_TC: np.ndarray, names: Sequence[str]) -> str:
    """Where the error grew: the last tenth of the window against its first half."""
    spans = len(error_TC)
    early, late = error_TC[: spans // 2], error_TC[-max(spans // 10, 1) :]
    if not np.isfinite(early).any() or not np.isfinite(late).any():
        return "Mean share of the score by band; spans of time without rows stay empty."
    before, after = (np.nanmean(part[np.isfinite(part).all(1)], axis=0) for part in (early, late))
    top = np.argsort(before - after, kind="stable")[:3]
    grown = [f"{isolated(names[place])} from {number(before[place], 2)} to {number(after[place], 2)}" for place in top]
    return f"Largest growth from the first half to the last tenth of this window: {sentence_list(grown)}."


def baseline_note(row: Mapping[str, Any]) -> str:
    """Against what the score was: empty where it is the machine's own baseline."""
    return BASELINE_NOTES.get(row["baseline"], "")


def spectrum_chart(row: Mapping[str, Any], index: int, unit: str) -> Chart:
    """The healthy median with its middle 90 %, and the median at the alert."""
    names, when = row["spectrum_bands"], SHOWN.get(row["shown"], "")
    alert = np.asarray(row["alert_S"], np.float64)
    healthy, low, high = (np.asarray(row[key], np.float64) for key in ("healthy_S", "healthy_low_S", "healthy_high_S"))
    x = tuple(range(len(names)))  # the page holds equal tuples once
    every = np.concatenate([alert, healthy])
    log = bool(unit) and float(np.nanmin(every)) > 0
    traces: list[Json] = []
    if np.isfinite(healthy).all():
        floor = np.maximum(low, float(healthy.min()) * 0.2) if log else low  # silence has no place on a log axis
        edge = {"showlegend": False, "hoverinfo": "skip", "width": 0}
        traces.append(line("95 %", x, packed_numbers(high), "@healthy-soft", **edge))
        filled = {"fill": "tonexty", "fillcolor": "@healthy-soft"}
        traces.append(line("5 %", x, packed_numbers(floor), "@healthy-soft", **edge, **filled))
        traces.append(_named(line("healthy, median", x, packed_numbers(healthy), "@healthy"), names))
    traces.append(_named(line(when, x, packed_numbers(alert), "@faulty"), names))
    level = f"magnitude ({unit})" if unit else "value"
    scale: Json = {"type": "log", **log_ticks(float(np.nanmin(every)), float(np.nanmax(every)))} if log else {}
    layout = {"xaxis": axis("", **band_axis(names, 3)), "yaxis": axis(level + (", log" if log else ""), **scale)}
    return Chart(
        f"alert-spectrum-{index}",
        f"Spectrum: healthy, and {when}",
        _spectrum_caption(row),
        traces,
        layout,
        HALF_HEIGHT + 40,
    )


def _named(trace: Json, names: Sequence[str]) -> Json:
    return {**trace, "text": labels(names), "hovertemplate": "%{text}: %{y:.3g}<extra></extra>"}


def _spectrum_caption(row: Mapping[str, Any]) -> str:
    rows = row["healthy_rows"]
    if not rows:
        return "There are no earlier healthy rows of this machine to compare with." + baseline_note(row)
    return (
        f"Grey: median and middle 90 % of {rows:,} earlier healthy rows of this machine, nearest in overall level. "
        f"Coloured: median of the rows {SHOWN.get(row['shown'], '')}.{baseline_note(row)}"
    )


def band_table(row: Mapping[str, Any], unit: str) -> Table:
    """The bands with the largest shares of the score."""
    level = f" ({unit})" if unit else ""
    body = []
    for name, share, healthy, alert in zip(
        row["top_bands"], row["top_share"], row["top_healthy"], row["top_alert"], strict=True
    ):
        ratio = alert / healthy if healthy and np.isfinite(healthy) and healthy > 0 and unit else None
        times = "" if ratio is None else f"{number(ratio, 2)} times"
        body.append([Cell(name), Cell(percent(share)), Cell(number(healthy)), Cell(number(alert), times)])
    columns = [Column("Band", numeric=False), Column("Share of the score"), Column(f"Healthy{level}")]
    return Table(
        f"Bands with the largest shares of the score {SHOWN.get(row['shown'], '')}",
        [*columns, Column(f"Then{level}")],
        body,
    )
