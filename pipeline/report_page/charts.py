"""The report's charts, as plotly JSON with colours by name.

Shape legend: N rows, B histogram bins. Scores are float64 of shape (n,), higher is more anomalous; an alarm is
`score > threshold`. No text of the data reaches plotly unescaped: it reads a subset of HTML in its labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.report_page.blocks import (
    EM_DASH,
    Chart,
    as_map,
    as_number,
    number,
    sentence_list,
)
from pipeline.report_page.colours import detector_colour, detector_label
from pipeline.report_page.names import ISOLATES, escaped, plot_label, visible
from pipeline.report_page.packing import packed_heat

Json = dict[str, Any]
LOG_FROM = 4  # a loss that falls by more than this factor is drawn in log
HALF_HEIGHT, TALL_HEIGHT = 260, 340
HEAT_SCALE = [[0, "@heat-0"], [0.25, "@heat-1"], [0.5, "@heat-2"], [0.75, "@heat-3"], [1, "@heat-4"]]


def axis(title: str, **more: Any) -> Json:
    """An axis with its title (and unit); the page adds its colours."""
    return {"title": {"text": escaped(title), "standoff": 8}, **more}


def significant(values_N: npt.ArrayLike, digits: int = 4) -> list[float | None]:
    """Values as JSON holds them: few digits, null for what is not finite.

    >>> significant([0.123456, float("nan"), 1234567.0])
    [0.1235, None, 1235000.0]
    """
    array = np.asarray(values_N, dtype=np.float64)
    return [float(f"{value:.{digits - 1}e}") if np.isfinite(value) else None for value in array.tolist()]


def line(name: str, x: Any, y: Any, colour: str, **more: Any) -> Json:
    """A line over plain or packed values; `dash`, `width`, `shape` and any key of plotly's scatter."""
    style = {"color": colour, "width": more.pop("width", 2), "dash": more.pop("dash", "solid")}
    style["shape"] = more.pop("shape", "linear")
    return {"type": "scatter", "mode": "lines", "name": escaped(name), "x": x, "y": y, "line": style, **more}


def rule(axis_name: str, at: Any, colour: str, dash: str = "solid", width: float = 1.5) -> Json:
    """A line across the whole panel, upright (`x`) or level (`y`)."""
    other = "y" if axis_name == "x" else "x"
    shape = {"type": "line", f"{axis_name}0": at, f"{axis_name}1": at, f"{other}0": 0, f"{other}1": 1}
    return {**shape, f"{other}ref": f"{other} domain", "line": {"color": colour, "dash": dash, "width": width}}


def note(text: str, **place: Any) -> Json:
    """A small label inside a panel."""
    style = {"size": 11, "color": place.pop("colour", "@muted")}
    return {"text": escaped(text), "showarrow": False, "font": style, **place}


def log_ticks(low: float, high: float) -> Json:
    """Ticks of a log axis from a positive low to high: 1-2-5 over few decades, powers of ten over many."""
    return {"dtick": "D2" if high < 150 * low else 1, "tickformat": "~g"}


def labels(names: Sequence[str]) -> tuple[str, ...]:
    """Names of bands as plotly may show them, in a tuple: the page holds equal tuples once."""
    return tuple(escaped(visible(name)) for name in names)


def band_axis(names: Sequence[str], most: int = 6) -> Json:
    """An axis over bands by their number, with the names of a few as ticks.

    >>> band_axis(["0-10 Hz", "10-20 Hz", "20-30 Hz"], 2)["ticktext"]
    ['0-10 Hz', '20-30 Hz']
    """
    places = np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)).tolist()
    return {"tickvals": places, "ticktext": [plot_label(names[place], 20).strip(ISOLATES) for place in places]}


def heat_trace(values_BN: npt.NDArray[Any], names: Sequence[str], what: str, time: str, **place: Any) -> Json:
    """A heat map of values from 0 on a root scale, bands (B) upwards, with a bar that says what its colours mean.

    Args:
        values_BN: NaN stays empty.
        names: of the bands.
        what: the values are.
        time: how plotly shows a place along x.
        place: `x`, or `x0` and `dx`, and any other key of plotly's heatmap.
    """
    highest = float(np.nanmax(values_BN)) if np.isfinite(values_BN).any() else 0.0
    marks = np.array([0, 0.04, 0.25, 1.0])  # where the root scale has ticks, as parts of the highest
    return {
        "type": "heatmap",
        "y": tuple(range(len(names))),
        "z": packed_heat(values_BN),
        "zmin": 0,
        "zmax": 1,
        "colorscale": HEAT_SCALE,
        "names": labels(names),
        "hovertemplate": f"{time}, %{{customdata[1]}}: {what} %{{customdata[0]:.3g}}<extra></extra>",
        "colorbar": {
            "title": {"text": what, "side": "right"},
            "thickness": 10,
            "len": 1,
            "tickvals": np.sqrt(marks).round(4).tolist(),
            "ticktext": [number(value * highest, 2) for value in marks],
            "outlinewidth": 0,
        },
        **place,
    }


# --- what the models learned ------------------------------------------------------------------------------------------


def training_charts(name: str, history: Mapping[str, Any]) -> list[Chart]:
    """The loss of training and validation rows by epoch; reconstruction and KL in panels of their own.

    Args:
        name: the detector.
        history: {"epochs": [{"epoch", "train_loss", "validation_loss", "reconstruction"?, "kl"?}], "best_epoch",
            "cap_hit"}.
    """
    epochs = [as_map(entry) for entry in history.get("epochs") or []]
    if not epochs:
        return []
    x = [entry.get("epoch") for entry in epochs]
    best = history.get("best_epoch")
    parts = [
        (key, label)
        for key, label in (("reconstruction", "reconstruction"), ("kl", "KL divergence"))
        if _any(epochs, key)
    ]
    colour = detector_colour(name)
    shown = next((entry.get("validation_loss") for entry in epochs if entry.get("epoch") == best), None)
    charts = []
    losses = [
        line("validation", x, _series(epochs, "validation_loss"), colour, width=2.25),
        line("train", x, _series(epochs, "train_loss"), "@healthy", dash="dot", width=1.75),
    ]
    caption = f"{detector_label(name)}: {len(epochs)} epochs; best epoch {best if best is not None else EM_DASH}"
    caption += f", validation loss {number(shown, 4)}." if as_number(shown) is not None else "."
    if history.get("cap_hit"):
        caption += " Training stopped at the epoch cap, not because it had converged."
    charts.append(_training_chart(f"training-{name}-loss", f"{detector_label(name)}: loss", caption, losses, best))
    for key, label in parts:
        values = _series(epochs, key)
        traces = [line(label, x, values, colour, width=2.25)]
        ends = [value for value in values if value is not None]
        words = f"{label[0].upper()}{label[1:]} term by epoch" + (
            f", from {number(ends[0])} to {number(ends[-1])}." if ends else "."
        )
        title = f"{detector_label(name)}: {label}"
        charts.append(_training_chart(f"training-{name}-{key}", title, words, traces, best))
    return charts


def _training_chart(chart_id: str, title: str, caption: str, traces: list[Json], best: Any) -> Chart:
    values = [value for value in traces[0]["y"] if value is not None]
    corner = ("bottom", 0) if values and values[-1] > values[0] else ("top", 1)  # the one that the curve leaves free
    every = [value for trace in traces for value in trace["y"] if value is not None]
    log = bool(every) and min(every) > 0 and corner[0] == "top" and max(every) > LOG_FROM * min(every)
    scale = (
        axis("loss (no unit, log scale)", type="log", **log_ticks(min(every), max(every)))
        if log
        else axis("loss (no unit)")
    )
    layout: Json = {
        "xaxis": axis("epoch", rangemode="tozero", tickformat="d"),
        "yaxis": {"tickformat": "~g", **scale},
        "showlegend": len(traces) > 1,
    }
    if best is not None:
        layout["shapes"] = [rule("x", best, "@muted", "dash", 1)]
        layout["annotations"] = [
            note("best", x=best, y=corner[1], yref="y domain", xanchor="right", xshift=-4, yanchor=corner[0])
        ]
    return Chart(slug(chart_id), title, caption, traces, layout, HALF_HEIGHT, "half")


def _any(entries: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(as_number(entry.get(key)) is not None for entry in entries)


def _series(entries: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    return [as_number(entry.get(key)) for entry in entries]


# --- comparison -------------------------------------------------------------------------------------------------------


def roc_chart(points: Sequence[Mapping[str, Any]], order: Sequence[str], healthy: int = 0) -> Chart | None:
    """True-positive rate against false-positive rate (log), one line per detector.

    Args:
        points: [{"detector", "false_positive_rate", "true_positive_rate"}], in the order of the curve.
        order: detectors as the page lists them; others follow by name.
        healthy: how many healthy rows there are; a rate below one of them is not drawn.
    """
    lowest = 1 / max(healthy, 10) if healthy else 1e-4
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        false, true = as_number(point.get("false_positive_rate")), as_number(point.get("true_positive_rate"))
        if false is not None and true is not None and false >= lowest:
            curves.setdefault(str(point.get("detector")), []).append((false, true))
    names = [name for name in order if name in curves] + sorted(set(curves) - set(order))
    traces = []
    for index, name in enumerate(names):
        curve = np.array(sorted(curves[name]))
        keep = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), 300)).astype(int))
        x, y = significant(curve[keep, 0]), significant(curve[keep, 1])
        dash = ("solid", "dash", "dot", "dashdot", "longdash")[index % 5]
        trace = line(detector_label(name), x, y, detector_colour(name), dash=dash, width=2.25 if index == 0 else 1.75)
        template = f"{escaped(detector_label(name))}: %{{y:.1%}} of pre-failure rows at %{{x:.2%}} false<extra></extra>"
        traces.append({**trace, "hovertemplate": template})
    if not traces:
        return None
    x_axis = axis("false-positive rate (log scale)", type="log", range=[np.log10(lowest), 0])
    layout = {
        "xaxis": {**x_axis, "dtick": 1, "tickformat": "~p"},
        "yaxis": axis("true-positive rate", range=[0, 1.02], tickformat=".0%"),
    }
    caption = (
        f"Share of rows before failures above a threshold against share of healthy rows above it, for "
        f"{sentence_list([detector_label(name) for name in names])}. Descriptive: swept over the test rows themselves."
    )
    return Chart("roc", "True positives against false positives", caption, traces, layout, TALL_HEIGHT)


def slug(text: str) -> str:
    """An identifier for the page from a name of the data."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "chart"
