"""Charts of one machine's history: rarity by detector, levels over time and frequency, the spectrum at the peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.alert_details import fault_orders
from pipeline.close_look import CloseLook
from pipeline.history import History, MachineAlert, changes_of, detectors_of, series
from pipeline.report_page.blocks import Chart, count, plural, when
from pipeline.report_page.charts import (
    HALF_HEIGHT,
    Json,
    axis,
    band_axis,
    labels,
    line,
    log_ticks,
    note,
    rule,
    significant,
)
from pipeline.report_page.colours import detector_colour, detector_label
from pipeline.report_page.names import escaped, plot_label
from pipeline.report_page.packing import packed_numbers, packed_times
from pipeline.schema import BearingSpec

MAIN_PIXELS, MEMBER_PIXELS, GAP_PIXELS = 230, 62, 10
MARGIN = {"l": 104, "r": 84, "t": 34, "b": 44}
BANDS = {"page": "@faulty-soft", "low": "@false-soft", None: "@healthy-soft"}
LEVEL_SCALE = [
    [0, "@cold-3"],
    [0.25, "@cold-2"],
    [0.42, "@cold-1"],
    [0.5, "@heat-0"],
    [0.58, "@heat-1"],
    [0.75, "@heat-2"],
    [1, "@heat-3"],
]
LEAST_RANGE = {"dB": 10.0, "robust SD": 3.0}
HEAT_HEIGHT = 360


def stamp(time_us: int) -> str:
    """A time as plotly reads it."""
    return str(np.datetime64(time_us, "us").astype("datetime64[s]"))


def rarity_chart(history: History) -> Chart:
    """Rarity over time: the detector that raises alerts above, the others in narrow panels beneath."""
    names = detectors_of(history.rows, history.detector)
    drawn = {name: series(history, name) for name in names}
    highest = max((float(np.nanmax(own)) for _, own in drawn.values() if len(own)), default=0.0)
    top = max(highest + 0.3, *(limit + 0.5 for limit in history.tiers.values()), 3.3)
    pixels = [MAIN_PIXELS, *[MEMBER_PIXELS] * (len(names) - 1)]
    whole = sum(pixels) + GAP_PIXELS * (len(pixels) - 1)
    layout: Json = {
        "showlegend": False,
        "margin": MARGIN,
        "annotations": [],
        "shapes": alert_bands(history.alerts, history),
    }
    traces, ceiling = [], 1.0
    for place, (name, height) in enumerate(zip(names, pixels, strict=True)):
        at = "y" if place == 0 else f"y{place + 1}"
        floor = max(0.0, ceiling - height / whole)
        time_us_N, rarity_N = drawn[name]
        trace = line(detector_label(name), packed_times(time_us_N), packed_numbers(rarity_N), detector_colour(name))
        trace["line"]["width"] = 1.75 if place == 0 else 1.25
        told = f"{escaped(detector_label(name))}, %{{x|%Y-%m-%d %H:%M}}: 1 in 10^%{{y:.2f}}<extra></extra>"
        traces.append({**trace, "yaxis": at, "hovertemplate": told})
        layout[f"yaxis{place + 1 if place else ''}"] = _rarity_axis(top, [floor, ceiling], place == 0)
        layout["annotations"].append(_panel_name(detector_label(name), ceiling, detector_colour(name)))
        layout["shapes"] += [
            {**rule("y", limit, "@ink", "dot" if tier == "low" else "solid", 1.25 if place == 0 else 0.6), "yref": at}
            for tier, limit in history.tiers.items()
        ]
        ceiling = floor - GAP_PIXELS / whole
    span = [stamp(history.span.since_us), stamp(history.span.until_us)]
    bottom = "y" if len(names) == 1 else f"y{len(names)}"
    layout["xaxis"] = axis("time (UTC)", type="date", range=span, anchor=bottom)
    for tier, limit in history.tiers.items():
        place_of = {"xref": "x domain", "x": 1.0, "xanchor": "left", "xshift": 6, "y": limit, "yref": "y"}
        place_of["yanchor"] = "top" if tier == "low" else "bottom"  # they may lie close together
        layout["annotations"].append(note(tier, colour="@ink", **place_of))
    _add_changes(layout, history)
    layout["annotations"] += alert_labels(history.alerts, history)
    words = " Dotted: tier low; solid: tier page." if history.tiers else " No row tells where the tiers lie."
    caption = (
        "How rare the rarest row of each stretch is among healthy rows, in log: up is rarer. All panels have one scale."
        f"{words} Beyond the calibration rows rarity is extrapolated. Shaded: alerts, red if they paged, brown if not, "
        "grey without data."
    )
    height = whole + MARGIN["t"] + MARGIN["b"]
    return Chart("rarity", "How rare each row is, by detector", caption, traces, layout, height)


def _rarity_axis(top: float, domain: Sequence[float], main: bool) -> Json:
    if not main:
        return {"domain": domain, "range": [0, top], "showticklabels": False, "tickvals": [], "title": {"text": ""}}
    step = 1 if top < 7 else 2
    marks = list(range(step, int(top) + 1, step))
    texts = [f"1 in {count(10**mark)}" if mark < 7 else f"1 in 10<sup>{mark}</sup>" for mark in marks]
    return {
        "domain": domain,
        "range": [0, top],
        "tickvals": marks,
        "ticktext": texts,
        "title": {"text": ""},
        "automargin": False,
    }


def _panel_name(name: str, ceiling: float, colour: str) -> Json:
    place = {"xref": "paper", "x": 0, "xanchor": "left", "xshift": 4, "yref": "paper", "y": ceiling, "yanchor": "top"}
    return {**note(name, colour=colour, **place), "bgcolor": "@surface", "opacity": 0.9}


def _least_width(history: History) -> int:
    """A moment is as wide as this, or nobody would see it."""
    return (history.span.until_us - history.span.since_us) // 250


def alert_bands(alerts: Sequence[MachineAlert], history: History) -> list[Json]:
    """Alerts as upright bands through all panels."""
    bands = []
    for alert in alerts:
        begin = max(alert.opened_us, history.span.since_us)
        end = history.span.until_us if alert.closed_us is None else min(alert.end_us, history.span.until_us)
        end = max(end, begin + _least_width(history))
        place = {"x0": stamp(begin), "x1": stamp(end), "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
        bands.append({"type": "rect", **place, "fillcolor": BANDS.get(alert.tier, BANDS[None]), "line": {"width": 0}})
    return bands


def alert_labels(alerts: Sequence[MachineAlert], history: History) -> list[Json]:
    """Numbers above the bands, as many as can be read."""
    room, shown, taken = (history.span.until_us - history.span.since_us) // 30, list[Json](), list[int]()
    for alert in sorted(alerts, key=lambda alert: (alert is not history.chosen, alert.tier != "page", alert.opened_us)):
        begin = max(alert.opened_us, history.span.since_us)
        if any(abs(begin - other) < room for other in taken):
            continue
        colour = "@faulty" if alert.tier == "page" else ("@warn" if alert.tier else "@muted")
        place = {"x": stamp(begin), "yref": "paper", "y": 1, "yanchor": "bottom", "xanchor": "left"}
        shown.append(note(f"#{alert.id}", colour=colour, **place))
        taken.append(begin)
    return shown


def _add_changes(layout: Json, history: History) -> None:
    """Upright lines where another release scores, and where a new baseline epoch begins."""
    for column, word, colour, dash in (
        ("release", "release", "@accent", "dash"),
        ("epoch", "epoch", "@muted", "dashdot"),
    ):
        for time_us, value in changes_of(history.rows, column):
            mark = {**rule("x", stamp(time_us), colour, dash, 1.5), "yref": "paper"}
            place = {
                "x": stamp(time_us),
                "yref": "paper",
                "y": 1,
                "yanchor": "bottom",
                "xanchor": "right",
                "xshift": -3,
            }
            layout["shapes"].append(mark)
            layout["annotations"].append(note(f"{word} {plot_label(value, 10)}", colour=colour, **place))


def level_chart(look: CloseLook, history: History) -> Chart:
    """Levels against the machine's own median, by time and frequency."""
    axis_values, across = _frequencies(look)
    level_FT = look.level_TF.T.astype(np.float64)
    known = np.abs(level_FT[np.isfinite(level_FT)])
    most = max(LEAST_RANGE[look.unit], float(np.quantile(known, 0.99)) if len(known) else 0.0)
    middle = (look.edges_us_T[1:] + look.edges_us_T[:-1]) / 2
    trace: Json = {
        "type": "heatmap",
        "x0": stamp(int(middle[0])),
        "dx": float(look.edges_us_T[1] - look.edges_us_T[0]) / 1000,
        "y": axis_values,
        "z": [significant(row, 3) for row in level_FT],
        "zmin": -most,
        "zmax": most,
        "colorscale": LEVEL_SCALE,
        "hoverongaps": False,
        "hovertemplate": f"%{{x|%Y-%m-%d %H:%M}}, %{{y:.4~g}}: %{{z:.1f}} {look.unit}<extra></extra>",
        "colorbar": {"title": {"text": look.unit, "side": "right"}, "thickness": 10, "len": 1, "outlinewidth": 0},
    }
    layout: Json = {
        "xaxis": axis("time (UTC)", type="date", range=[stamp(look.span.since_us), stamp(look.span.until_us)]),
        "yaxis": across,
        "margin": MARGIN,
        "plot_bgcolor": "@line",
        "shapes": [],
        "annotations": [],
    }
    if history.chosen is not None:
        for at, word in ((history.chosen.opened_us, "opened"), (history.chosen.end_us, "last")):
            layout["shapes"].append(rule("x", stamp(at), "@ink", "solid" if word == "opened" else "dot", 1.25))
        place = {"x": stamp(history.chosen.opened_us), "yref": "paper", "y": 1, "yanchor": "bottom", "xanchor": "left"}
        layout["annotations"].append(note(f"alert #{history.chosen.id}", colour="@ink", **place))
    bearing = look.spec.bearing_of(history.machine)
    if bearing is not None and look.spec.band_hz(0) is not None and not look.spec.axes:
        _add_fault_frequencies(layout, bearing, axis_values[-1])
    caption = (
        f"{plural(look.rows, 'spectrum', 'spectra')}, {when(look.span.since)} to {when(look.span.until)}, the median "
        f"of each stretch, against {plural(look.usual_rows, 'row')} that exceed no tier{look.by_condition}. Red is "
        "louder, blue is quieter, grey is without a spectrum."
    )
    return Chart("levels", "Louder and quieter than usual, by frequency", caption, [trace], layout, HEAT_HEIGHT)


def _frequencies(look: CloseLook) -> tuple[list[float], Json]:
    """Places of the bins along an axis of frequency, and that axis: in Hz where the bands are known, else by number."""
    bands = [look.spec.band_hz(place) for place in range(look.spec.bins)]
    if look.spec.axes is None and all(band is not None for band in bands):
        middles = [(band[0] + band[1]) / 2 for band in bands if band is not None]
        return middles, axis("frequency (Hz)", tickformat="~s", automargin=False)
    names = [look.spec.band_name(place) for place in range(look.spec.bins)]
    return [float(place) for place in range(look.spec.bins)], axis("", **band_axis(names))


def _add_fault_frequencies(layout: Json, bearing: BearingSpec, highest_hz: float) -> None:
    """Thin level lines at the fault frequencies; those whose names would overlap share line and label."""
    groups: list[tuple[float, list[str]]] = []
    for name, order in sorted(fault_orders(bearing).items(), key=lambda item: item[1]):
        frequency = order * bearing.speed_rpm / 60
        if frequency >= highest_hz:
            continue
        if groups and frequency - groups[-1][0] < highest_hz * 0.05:
            groups[-1][1].append(name)
        else:
            groups.append((frequency, [name]))
    for frequency, names in groups:
        layout["shapes"].append({**rule("y", frequency, "@ink", "dot", 0.8), "opacity": 0.6})
        place = {"xref": "x domain", "x": 0, "xanchor": "left", "xshift": 4, "y": frequency, "yanchor": "bottom"}
        layout["annotations"].append(
            {**note(", ".join(names), colour="@ink", **place), "bgcolor": "@surface", "opacity": 0.85}
        )


def peak_chart(look: CloseLook, unit: str) -> Chart | None:
    """The spectrum of the peak against the machine's own median and the middle 90 % around it."""
    if look.peak_F is None or not np.isfinite(look.usual_F).all():
        return None
    x, across = _frequencies(look)
    every = np.concatenate([look.peak_F, look.usual_F])
    log = look.spec.kind == "spectrum" and float(np.nanmin(every)) > 0
    low = np.maximum(look.usual_low_F, float(np.nanmin(look.usual_F)) * 0.2) if log else look.usual_low_F
    edge = {"showlegend": False, "hoverinfo": "skip", "width": 0}
    filled = {"fill": "tonexty", "fillcolor": "@healthy-soft"}
    names = labels([look.spec.band_name(place) for place in range(look.spec.bins)])
    traces = [
        line("95 %", x, packed_numbers(look.usual_high_F), "@healthy-soft", **edge),
        line("5 %", x, packed_numbers(low), "@healthy-soft", **edge, **filled),
        _named(line("usual, median", x, packed_numbers(look.usual_F), "@healthy"), names),
        _named(line("at the peak", x, packed_numbers(look.peak_F), "@faulty"), names),
    ]
    scale: Json = {"type": "log", **log_ticks(float(np.nanmin(every)), float(np.nanmax(every)))} if log else {}
    level = f"magnitude ({unit}){', log' if log else ''}" if look.spec.kind == "spectrum" else "value"
    layout = {"xaxis": across, "yaxis": axis(level, **scale)}
    rows = f"{plural(look.peak_usual_rows, 'usual row')}{look.as_the_peak}"
    caption = f"Grey: median and middle 90 % of {rows}. Coloured: the row at the peak"
    at = "" if look.peak_us is None else f", {stamp(look.peak_us).replace('T', ' ')} UTC"
    return Chart("peak", "The spectrum at the peak", f"{caption}{at}.", traces, layout, HALF_HEIGHT + 40)


def _named(trace: Mapping[str, Any], names: Sequence[str]) -> Json:
    return {**trace, "text": tuple(names), "hovertemplate": "%{text}: %{y:.3g}<extra></extra>"}
