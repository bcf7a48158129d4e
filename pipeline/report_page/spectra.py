"""Original against reconstruction: what the model heard and what it expected, bin by bin.

Shape legend: F frequency bins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report_page.blocks import (
    EM_DASH,
    Chart,
    Charts,
    Section,
    as_number,
    number,
    percent,
    sentence_list,
    when,
)
from pipeline.report_page.charts import TALL_HEIGHT, Json, axis, line, significant
from pipeline.report_page.data import ReportData
from pipeline.schema import FloatN

BAND = re.compile(r"^\s*([\d.]+)\s*(?:-|–|to)\s*([\d.]+)\s*Hz\s*$")
MAX_SPECTRA = 8


def reconstruction_section(data: ReportData) -> Section:
    """Spectra against their reconstruction: healthy ones, then ones at alerts."""
    title = "Original against reconstruction"
    if data.reconstructions is None:
        return Section("reconstruction", title)
    ordered = sorted(data.reconstructions, key=lambda row: row.get("kind") == "alert")[:MAX_SPECTRA]
    charts = [chart for index, row in enumerate(ordered, 1) if (chart := reconstruction_chart(row, index)) is not None]
    if not charts:
        return Section("reconstruction", title, missing="the release detector reconstructs no spectra")
    level = "value" if data.fleet.get("kind") == "features" else "log magnitude"
    lead = (
        f"What the model heard and what it expected. Level is the {level} relative to the machine's own baseline, in "
        "robust standard deviations; the bars are each bin's share of the error."
    )
    return Section("reconstruction", title, lead, [Charts(charts)])


def band_centres(bands: Sequence[Any] | None, bins: int) -> FloatN | None:
    """The middle of each band in Hz from names ("100-200 Hz"), centres (F numbers) or edges (F + 1); else None.

    >>> band_centres(["0-100 Hz", "100-300 Hz"], 2).tolist()
    [50.0, 200.0]
    >>> band_centres(["bin 0", "bin 1"], 2) is None
    True
    """
    numbers = [as_number(band) for band in bands or []]
    if numbers and all(value is not None for value in numbers) and len(numbers) in (bins, bins + 1):
        values = np.array(numbers, dtype=np.float64)
        return values if len(values) == bins else (values[:-1] + values[1:]) / 2
    found = [BAND.match(str(band)) for band in bands or []]
    if len(found) != bins or not all(found):
        return None
    return np.array([(float(match[1]) + float(match[2])) / 2 for match in found if match])


def reconstruction_chart(row: Mapping[str, Any], index: int) -> Chart | None:
    """One spectrum against its reconstruction, and each bin's share of the error beneath; None for unequal lengths."""
    original = np.asarray(row.get("original") or [], dtype=np.float64)
    rebuilt = np.asarray(row.get("reconstruction") or [], dtype=np.float64)
    share = np.asarray(row.get("share") or [], dtype=np.float64)
    bins, alert = len(original), row.get("kind") == "alert"
    if not bins or len(rebuilt) != bins:
        return None
    with_share = len(share) == bins
    centres = band_centres(row.get("bands"), bins)
    x = list(range(bins)) if centres is None else significant(centres, 6)
    colour = "@faulty" if alert else "@accent"
    traces = [
        line("original", x, significant(original), "@ink", width=1.5),
        line("reconstruction", x, significant(rebuilt), colour, width=2, dash="dash"),
    ]
    across = {"title": "frequency bin (number)", "tickformat": "d"}
    if centres is not None:
        across = {"title": "frequency (Hz)", "tickformat": "~s"}
    layout: Json = {
        "xaxis": axis(**across, anchor="y2" if with_share else "y"),
        "yaxis": axis("level (robust SD)", domain=[0.38, 1] if with_share else [0, 1]),
    }
    caption = "No error shares were written for this spectrum."
    if with_share:
        traces.append(_share_bars(x, centres, share, colour))
        layout["yaxis2"] = axis("error (%)", domain=[0, 0.26], rangemode="tozero", nticks=3)
        caption = _largest_shares(row.get("bands"), centres, share)
    title = f"{row.get('machine_id', EM_DASH)} · {when(row.get('timestamp'))} UTC"
    tag, tone = ("at an alert", "bad") if alert else ("healthy", "plain")
    return Chart(f"spectrum-{index}", title, caption, traces, layout, TALL_HEIGHT, "half", tag, tone)  # type: ignore[arg-type]


def _share_bars(x: Sequence[Any], centres: FloatN | None, share_F: FloatN, colour: str) -> Json:
    bars: Json = {"type": "bar", "name": "error share", "x": x, "y": significant(share_F * 100), "yaxis": "y2"}
    if centres is not None and len(centres) > 1:
        bars["width"] = significant(np.gradient(centres) * 0.9)
    look = {"marker": {"color": colour, "line": {"width": 0}}, "showlegend": False}
    return {**bars, **look, "hovertemplate": "%{y:.1f} % of the error<extra></extra>"}


def _largest_shares(bands: Any, centres: FloatN | None, share_F: FloatN) -> str:
    top = [int(place) for place in np.argsort(-np.nan_to_num(share_F), kind="stable")[:3]]
    listed = sentence_list([f"{_band_name(bands, centres, place)} ({percent(share_F[place])})" for place in top])
    return f"Largest shares of the error: {listed}."


def _band_name(bands: Any, centres: FloatN | None, place: int) -> str:
    if isinstance(bands, Sequence) and place < len(bands) and isinstance(bands[place], str):
        return str(bands[place])
    return f"{number(centres[place], 4)} Hz" if centres is not None else f"bin {place}"
