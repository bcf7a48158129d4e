"""What each catch costs: failures caught against false episodes, the curve that a plant chooses its budget from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report_page.blocks import Chart, as_map, as_number, count, number, plural, sentence_list
from pipeline.report_page.charts import TALL_HEIGHT, Json, axis, line, note, rule, significant
from pipeline.report_page.colours import detector_colour, detector_label
from pipeline.report_page.data import ReportData, detector_order
from pipeline.report_page.names import escaped

APART, TOGETHER = 0.1, 0.7  # of a failure: between the lines of two detectors, and of all that coincide
DASHES = ("solid", "7px,3px", "2px,2px", "8px,2px,2px,2px", "12px,3px")


def price_chart(data: ReportData) -> Chart | None:
    """Failures caught against false episodes, a line per detector, with the point of its calibrated threshold.

    None where no failure was judged or no curve was written.
    """
    curves = _by_detector(data.curves)
    names = [name for name in detector_order(data) if name in curves] + sorted(set(curves) - set(detector_order(data)))
    events = max((as_number(row.get("events")) or 0 for row in data.curves), default=0)
    if not names or not events:
        return None
    per_day = _per_day(data.curves)
    unit = "false episodes per day, whole fleet" if per_day else "false episodes on the test rows, in all"
    end = max(_place(row, per_day) for rows in curves.values() for row in rows) or per_day or 1.0
    lines: list[Json] = []
    dots: list[Json] = []
    for place, name in enumerate(names):
        lift = (len(names) / 2 - 0.5 - place) * min(APART, TOGETHER / len(names))
        swept = [row for row in curves[name] if row.get("kind") == "sweep"]
        reached = [row for row in curves[name] if row.get("kind") == "operating"]
        lines += [_trace(name, swept, per_day, end, lift, place)] if swept else []
        dots += [_dot(name, reached[0], per_day, lift)] if reached else []
    if not lines:
        return None
    dots[:1] = [{**dot, "showlegend": True} for dot in dots[:1]]
    lowest = min(as_number(row.get("events_caught")) or 0.0 for rows in curves.values() for row in rows)
    step = max(1, round((events - lowest) / 8))
    layout: Json = {
        "xaxis": axis(unit, range=[-0.02 * end, 1.01 * end], tickformat="~g"),
        "yaxis": axis("failures caught", range=[lowest - 0.6, events + 0.6], tickformat="d", dtick=step),
        "showlegend": True,
    }
    budget = _budget(data, per_day)
    if budget is not None:
        layout["shapes"] = [rule("x", budget, "@ink", "dot", 1.5)]
        layout["annotations"] = [
            note("budget", x=budget, y=0, yref="y domain", yanchor="bottom", xanchor="left", xshift=4, colour="@ink")
        ]
    caption = _caption(curves, names, events, budget, per_day)
    title = "What each catch costs: failures caught against false episodes"
    return Chart("price", title, caption, lines + dots[::-1], layout, TALL_HEIGHT + 12 * len(names))


def _by_detector(curves: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows with both counts, by detector."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in curves:
        if as_number(row.get("false_episodes")) is not None and as_number(row.get("events_caught")) is not None:
            found.setdefault(str(row.get("detector")), []).append(row)
    return found


def _per_day(curves: Sequence[Mapping[str, Any]]) -> float | None:
    """False episodes of the fleet a day per false episode in all; None where days mean nothing."""
    for row in curves:
        false, daily = as_number(row.get("false_episodes")), as_number(row.get("false_episodes_per_day"))
        if false and daily is not None:
            return daily / false
    return None


def _place(row: Mapping[str, Any], per_day: float | None) -> float:
    return (as_number(row.get("false_episodes")) or 0.0) * (per_day or 1.0)


def _trace(
    name: str, rows: Sequence[Mapping[str, Any]], per_day: float | None, end: float, lift: float, place: int
) -> Json:
    """A staircase; hover and table tell the counts themselves, not where the line is drawn.

    It goes on to the chart's end, for its last point holds until one more false episode opens.
    """
    caught = [as_number(row.get("events_caught")) or 0.0 for row in rows]
    caught.append(caught[-1])
    style = {"dash": DASHES[place % len(DASHES)], "width": 2.5 if place == 0 else 1.75, "shape": "hv"}
    trace = line(
        detector_label(name),
        significant([*(_place(row, per_day) for row in rows), end]),
        [round(value + lift, 3) for value in caught],
        detector_colour(name),
        **style,
    )
    told = f"{escaped(detector_label(name))}: %{{customdata:.0f}} caught at %{{x:.3g}} false<extra></extra>"
    return {**trace, "mode": "lines", "customdata": caught, "hovertemplate": told, "meta": {"values": caught[:-1]}}


def _dot(name: str, row: Mapping[str, Any], per_day: float | None, lift: float) -> Json:
    caught = as_number(row.get("events_caught")) or 0.0
    told = f"{escaped(detector_label(name))}, threshold from calibration: {caught:.0f} caught at %{{x:.3g}} false"
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "threshold from calibration rows",
        "x": [_place(row, per_day)],
        "y": [round(caught + lift, 3)],
        "marker": {"size": 12, "color": detector_colour(name), "line": {"color": "@surface", "width": 2}},
        "hovertemplate": f"{told}<extra></extra>",
        "showlegend": False,
        "hoverlabel": {"namelength": -1},
        "meta": {"values": None},
    }


def _budget(data: ReportData, per_day: float | None) -> float | None:
    """Where the budget lies on the axis."""
    rate = as_number(as_map(data.evaluation.get("budget")).get("false_episodes_per_machine_day"))
    days = as_number(as_map(data.evaluation.get("dataset")).get("machine_days"))
    return None if rate is None or days is None else rate * days * (per_day or 1.0)


def _caption(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    names: Sequence[str],
    events: float,
    budget: float | None,
    per_day: float | None,
) -> str:
    unit = "false episodes a day" if per_day else "false episodes in all"
    told = f"Of {plural(int(events), 'failure')}"
    if budget is not None:
        words = []
        for name in names:
            swept = [row for row in curves[name] if row.get("kind") == "sweep" and _place(row, per_day) <= budget]
            caught = [as_number(row.get("events_caught")) or 0.0 for row in swept]
            words.append(f"{detector_label(name)} {count(caught[-1] if caught else 0)}")
        told += f", with at most the budget of {number(budget, 2)} {unit}: {sentence_list(words)}"
    return (
        f"{told}. Descriptive: thresholds are swept over the test rows themselves; only the dots are thresholds that "
        "came from calibration rows. A dot beyond the budget raises more false episodes than it was set for. Lines "
        "that coincide are drawn a little apart."
    )
