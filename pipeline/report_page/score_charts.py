"""Charts of scores: their distribution, their tail above the thresholds, and how sure each threshold's rate is.

Shape legend: N rows, B histogram bins. Scores are float64 of shape (n,), higher is more anomalous; an alarm is
`score > threshold`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report_page.blocks import (
    Chart,
    as_map,
    as_number,
    count,
    number,
    percent,
    percent_interval,
    sentence_list,
)
from pipeline.report_page.charts import (
    HALF_HEIGHT,
    TALL_HEIGHT,
    Json,
    axis,
    line,
    log_ticks,
    note,
    rule,
    significant,
    slug,
)
from pipeline.report_page.colours import detector_colour, detector_label
from pipeline.report_page.names import escaped
from pipeline.schema import FloatN

HISTOGRAM_BINS = 60
LOWEST_SHARE = 0.005  # of the scores: as many share the first bin, or a long left tail fills the panel
TAIL_POINTS = 240


def score_histogram(
    healthy_N: FloatN, faulty_N: FloatN, bins: int = HISTOGRAM_BINS
) -> tuple[FloatN, FloatN, FloatN, bool]:
    """Share of rows per bin for two groups over common edges, in log bins where every score is positive.

    Args:
        healthy_N: scores of healthy rows; not finite ones are left out.
        faulty_N: scores of rows before failures, may be empty.
        bins: number of bins B.

    Returns:
        (edges (B + 1,), healthy shares (B,), faulty shares (B,), log); shares sum to 1, or are 0 for an empty group.
        The first bin holds all lower scores too.

    >>> edges, healthy, faulty, log = score_histogram(np.array([1.0, 20.0]), np.array([100.0]), bins=2)
    >>> edges.round(6).tolist(), healthy.tolist(), faulty.tolist(), log
    ([1.0, 10.0, 100.0], [0.5, 0.5], [0.0, 1.0], True)
    """
    groups = [np.asarray(group, np.float64)[np.isfinite(group)] for group in (healthy_N, faulty_N)]
    both = np.concatenate(groups)
    if not len(both):
        return np.linspace(0, 1, bins + 1), np.zeros(bins), np.zeros(bins), False
    log, high = float(both.min()) > 0, float(both.max())
    low = float(np.quantile(both, LOWEST_SHARE, method="lower"))
    if low == high:
        low, high = (low / 1.1, high * 1.1) if log else (low - 0.5, high + 0.5)
    edges = np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)
    edges[0], edges[-1] = low, high  # rounding must not lose the extremes
    shares = []
    for group in groups:
        inner = np.searchsorted(edges[1:-1], group, side="right")
        shares.append(np.bincount(inner, minlength=bins) / max(len(group), 1))
    return edges, shares[0], shares[1], log


def distribution_chart(name: str, healthy_N: FloatN, faulty_N: FloatN, thresholds: Mapping[str, float | None]) -> Chart:
    """Score distribution of healthy test rows against rows before failures, with the thresholds."""
    edges, healthy, faulty, log = score_histogram(healthy_N, faulty_N)
    smallest = min((float(share) for share in (*healthy, *faulty) if share > 0), default=1e-4)
    floor = smallest * 40  # per cent: below the smallest bin, so that an empty bin meets the axis
    traces = [_steps("healthy rows", edges, healthy, floor, "@healthy", "@healthy-soft")]
    if len(faulty_N):
        traces.append(_steps("rows before failures", edges, faulty, floor, "@faulty", "@faulty-soft"))
    shapes, notes, words = [], [], []
    for tier, dash in (("low", "dot"), ("page", "solid")):
        threshold = thresholds.get(tier)
        if threshold is None or (log and threshold <= 0):
            continue
        at = float(np.log10(threshold)) if log else threshold
        shapes.append(rule("x", threshold, "@ink", dash, 1.5))
        notes.append(_tier_note(tier, at))
        words.append(_beyond(tier, threshold, healthy_N, faulty_N))
    top = max(float(healthy.max()), float(faulty.max()), 1e-3)
    layout: Json = {
        "xaxis": axis(f"anomaly score (no unit{', log scale' if log else ''})", type="log" if log else "linear"),
        "yaxis": axis("rows per bin (%, log)", type="log", range=[float(np.log10(floor)), float(np.log10(top * 200))]),
        "shapes": shapes,
        "annotations": notes,
    }
    caption = f"{count(len(healthy_N))} healthy rows, {count(len(faulty_N))} rows before failures. " + " ".join(words)
    layout["xaxis"].update(log_ticks(edges[0], edges[-1]) if log else {})
    layout["yaxis"].update({"dtick": 1, "tickformat": "~g"})
    return Chart(slug(f"scores-{name}"), detector_label(name), caption.strip(), traces, layout, HALF_HEIGHT, "half")


def _tier_note(tier: str, at: float) -> Json:
    """A tier's name at the top of its rule: the low tier lies left of the page tier, and may lie close to it."""
    side = {"xanchor": "right", "xshift": -4} if tier == "low" else {"xanchor": "left", "xshift": 4}
    return note(tier, x=at, y=1.0, yref="y domain", yanchor="top", colour="@ink", **side)


def _beyond(tier: str, threshold: float, healthy_N: FloatN, faulty_N: FloatN) -> str:
    shares = [
        f"{percent((group > threshold).mean())} of {label}"
        for group, label in ((healthy_N, "healthy"), (faulty_N, "pre-failure"))
        if len(group)
    ]
    return f"Above {tier} ({number(threshold)}): {sentence_list(shares)} rows."


def _steps(name: str, edges: FloatN, shares: FloatN, floor: float, colour: str, fill: str) -> Json:
    """A histogram as a filled outline; an empty bin stands on the floor, for a log axis has no zero."""
    percentages = shares * 100
    drawn = np.maximum(percentages, floor)
    x, y = np.r_[edges[0], edges], np.r_[floor, drawn, floor]  # up from the floor, and down to it
    trace = line(name, significant(x), significant(y), colour, width=1.5, shape="hv")
    template = "score from %{x:.3g}: %{customdata:.3g} % of rows<extra></extra>"
    told = {"customdata": significant(np.r_[percentages[0], percentages, percentages[-1]]), "hovertemplate": template}
    return {**trace, **told, "fill": "tozeroy", "fillcolor": fill}


def tail_chart(
    name: str, healthy_N: FloatN, tiers: Mapping[str, Any], thresholds: Mapping[str, float | None]
) -> Chart | None:
    """Share of healthy test rows above each score, with what each tier asked for and the interval of what it reached.

    None for fewer than two different scores.
    """
    ordered = np.sort(healthy_N[np.isfinite(healthy_N)])
    if len(ordered) < 2 or ordered[0] == ordered[-1]:
        return None
    n = len(ordered)
    ranks = np.unique((n - np.geomspace(1, n, TAIL_POINTS)).astype(np.int64).clip(0, n - 1))
    log = float(ordered[0]) > 0
    x, y = significant(ordered[ranks]), significant((n - ranks) / n * 100)
    traces = [line("healthy test rows", x, y, detector_colour(name), width=2.25)]
    traces[0]["hovertemplate"] = "%{y:.3g} % of healthy rows reach %{x:.3g}<extra></extra>"
    shapes, notes, words = [], [], []
    for tier in ("low", "page"):
        at, figures = thresholds.get(tier), as_map(tiers.get(tier))
        percentile = as_number(figures.get("percentile"))
        if at is None or percentile is None or (log and at <= 0):
            continue
        asked = 1 - percentile / 100
        shapes.append(rule("x", at, "@ink", "dot" if tier == "low" else "solid", 1))
        place = float(np.log10(at)) if log else at
        notes.append(_tier_note(tier, place))
        traces += _asked_and_reached(tier, at, asked, figures)
        told = percent_interval(figures.get("ci_low"), figures.get("ci_high"))
        words.append(
            f"{tier.capitalize()} at {number(at)}: asked for {percent(asked)}, reached "
            f"{percent(figures.get('false_positive_rate'))}{f' (interval {told})' if told else ', no interval'}."
        )
    scale: Json = {"type": "log", **log_ticks(float(ordered[0]), float(ordered[-1]))} if log else {}
    layout = {
        "xaxis": axis(f"anomaly score (no unit{', log scale' if log else ''})", **scale),
        "yaxis": axis("healthy rows above (%, log)", type="log", dtick=1, tickformat="~g"),
        "shapes": shapes,
        "annotations": notes,
    }
    caption = f"{count(n)} healthy test rows of {detector_label(name)}. {' '.join(words)}"
    return Chart(
        "tail",
        f"{detector_label(name)}: how rarely a healthy row scores as high",
        caption.strip(),
        traces,
        layout,
        TALL_HEIGHT,
    )


def _asked_and_reached(tier: str, at: float, asked: float, figures: Mapping[str, Any]) -> list[Json]:
    """A ring at the asked-for rate; a point with its interval at the rate reached."""
    ring = {"type": "scatter", "mode": "markers", "name": f"asked for ({tier})", "x": [at], "y": [asked * 100]}
    found: list[Json] = [
        {**ring, "marker": {"symbol": "circle-open", "size": 11, "color": "@ink", "line": {"width": 2}}}
    ]
    rate, low, high = (as_number(figures.get(key)) for key in ("false_positive_rate", "ci_low", "ci_high"))
    if rate:
        point: Json = {"type": "scatter", "mode": "markers", "name": f"reached ({tier})", "x": [at], "y": [rate * 100]}
        if low is not None and high is not None:
            up, down = max(high - rate, 0) * 100, min(max(rate - low, 0), rate * 0.98) * 100
            bars = {"type": "data", "symmetric": False, "array": [up], "arrayminus": [down]}
            point["error_y"] = {**bars, "color": "@faulty", "thickness": 2, "width": 6}
        found.append({**point, "marker": {"size": 8, "color": "@faulty"}})
    return found


def rate_chart(detectors: Mapping[str, Any], order: Sequence[str]) -> Chart | None:
    """Every detector's calibrated tiers: the interval of the false-positive rate, as a multiple of what was asked for.

    None where no interval is known.
    """
    names = [name for name in [*order, *sorted(set(detectors) - set(order))] if name in detectors]
    traces, words, shown = [], [], []
    for shift, tier, colour in ((0.14, "low", "@healthy"), (-0.14, "page", "@accent")):
        bars = []
        for place, name in enumerate(reversed(names)):
            figures = as_map(as_map(detectors[name]).get(tier))
            percentile, low, high = (as_number(figures.get(key)) for key in ("percentile", "rate_low", "rate_high"))
            if percentile is not None and low is not None and high is not None and percentile < 100:
                asked = 1 - percentile / 100
                bars.append((place + shift, low / asked, high / asked))
        if not bars:
            continue
        shown += bars
        low = 0.02  # of the asked-for rate: a log axis has no zero
        x = [value for _, a, b in bars for value in (max(a, low), max(b, low), None)]
        y = [value for place, *_ in bars for value in (place, place, None)]
        trace = line(f"{tier} tier", significant([np.nan if v is None else v for v in x]), y, colour, width=7)
        traces.append(
            {**trace, "connectgaps": False, "hovertemplate": "%{x:.2f} times what was asked for<extra></extra>"}
        )
        widest = max(bars, key=lambda bar: bar[2])
        words.append(
            f"{tier}: up to {number(widest[2], 2)} times ({detector_label(names[len(names) - 1 - round(widest[0])])})"
        )
    if not traces:
        return None
    layout = {
        "xaxis": axis(
            "interval of the rate, as a multiple of what was asked for (log)", type="log", dtick="D2", tickformat="~g"
        ),
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": [escaped(detector_label(name)) for name in reversed(names)],
            "range": [-0.6, len(names) - 0.4],
            "showgrid": False,
        },
        "shapes": [rule("x", 1, "@ink", "dot", 1.5)],
    }
    caption = f"A bar that crosses 1 keeps what was asked for. Highest ends: {sentence_list(words)}."
    return Chart("rates", "How sure each threshold's rate is", caption, traces, layout, 110 + 42 * len(names))
