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
    Tone,
    as_number,
    number,
    percent,
    sentence_list,
    when,
)
from pipeline.report_page.charts import TALL_HEIGHT, Json, axis, band_axis, line, significant
from pipeline.report_page.data import ReportData
from pipeline.report_page.names import isolated
from pipeline.report_page.packing import packed_numbers
from pipeline.schema import FloatN

BAND = re.compile(r"^\s*([\d.]+)\s*(?:-|–|to)\s*([\d.]+)\s*Hz\s*$")
MAX_SPECTRA = 8


TAGS: Mapping[str, tuple[str, Tone]] = {"alert": ("at an alert", "bad"), "worst": ("worst of its machine", "bad")}


def spectrum_charts(data: ReportData, kinds: Sequence[str]) -> list[Chart]:
    """Spectra of some kinds against their reconstruction, kind by kind."""
    rows = list(enumerate(data.reconstructions or [], 1))
    level = "value" if data.fleet.get("kind") == "features" else "log magnitude"
    wanted = [(index, row) for kind in kinds for index, row in rows if row.get("kind") == kind]
    return [chart for index, row in wanted[:MAX_SPECTRA] if (chart := reconstruction_chart(row, index, level))]


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


def reconstruction_chart(row: Mapping[str, Any], index: int, level: str = "level") -> Chart | None:
    """One spectrum against its reconstruction, and each bin's share of the error beneath; None for unequal lengths.

    Levels are relative to the machine's own baseline. A detector that reconstructs nothing leaves one line.
    """
    original = np.asarray(row.get("original") or [], dtype=np.float64)
    rebuilt = np.asarray(row.get("reconstruction") or [], dtype=np.float64)
    share = np.asarray(row.get("share") or [], dtype=np.float64)
    bins, kind = len(original), str(row.get("kind"))
    if not bins or len(rebuilt) not in (0, bins):
        return None
    with_share = len(share) == bins
    names = [str(name) for name in row.get("bands") or []]
    centres = band_centres(row.get("bands"), bins)
    x: Any = list(range(bins)) if centres is None else packed_numbers(centres)
    colour = "@faulty" if kind in TAGS else "@accent"
    traces = [line("original", x, packed_numbers(original), "@ink", width=1.5)]
    if len(rebuilt):
        traces.append(line("reconstruction", x, packed_numbers(rebuilt), colour, width=2, dash="dash"))
    across = axis("frequency (Hz)", tickformat="~s")
    if centres is None:
        across = axis("", **band_axis(names)) if len(names) == bins else axis("frequency bin (number)", tickformat="d")
    layout: Json = {
        "xaxis": {**across, "anchor": "y2" if with_share else "y"},
        "yaxis": axis("level (robust SD)", domain=[0.38, 1] if with_share else [0, 1]),
    }
    caption = "No error shares were written for this spectrum."
    if with_share:
        traces.append(_share_bars(x, centres, share, colour))
        layout["yaxis2"] = axis("error (%)", domain=[0, 0.26], rangemode="tozero", nticks=3)
        listed = sentence_list([f"{isolated(name)} ({percent(value)})" for name, value in largest_shares(row)])
        caption = f"Largest shares of the error: {listed}."
    caption += f" Level: {level} against the machine's own baseline."
    title = f"{isolated(row.get('machine_id', EM_DASH))} · {when(row.get('timestamp'))} UTC"
    tag, tone = TAGS.get(kind, ("healthy", "plain"))
    return Chart(f"spectrum-{index}", title, caption, traces, layout, TALL_HEIGHT, "half", tag, tone)


def _share_bars(x: Any, centres: FloatN | None, share_F: FloatN, colour: str) -> Json:
    bars: Json = {"type": "bar", "name": "error share", "x": x, "y": packed_numbers(share_F * 100), "yaxis": "y2"}
    if centres is not None and len(centres) > 1:
        bars["width"] = significant(np.gradient(centres) * 0.9)
    look = {"marker": {"color": colour, "line": {"width": 0}}, "showlegend": False}
    return {**bars, **look, "hovertemplate": "%{y:.1f} % of the error<extra></extra>"}


def largest_shares(row: Mapping[str, Any], most: int = 3) -> list[tuple[str, float]]:
    """The bands with the largest shares of the error, by name.

    >>> largest_shares({"bands": ["a", "b"], "share": [0.2, 0.8]}, 1)
    [('b', 0.8)]
    """
    share = np.nan_to_num(np.asarray(row.get("share") or [], dtype=np.float64))
    bands, centres = row.get("bands"), band_centres(row.get("bands"), len(share))
    top = [int(place) for place in np.argsort(-share, kind="stable")[:most]]
    return [(_band_name(bands, centres, place), float(share[place])) for place in top]


def _band_name(bands: Any, centres: FloatN | None, place: int) -> str:
    if isinstance(bands, Sequence) and place < len(bands) and isinstance(bands[place], str):
        return str(bands[place])
    return f"{number(centres[place], 4)} Hz" if centres is not None else f"bin {place}"
