"""Does the page threshold keep its rate: week by week after calibration, by half of the test span, by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report_page.blocks import (
    EM_DASH,
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Footnotes,
    Group,
    Table,
    Text,
    as_map,
    as_number,
    count,
    percent,
    percent_interval,
    plural,
)
from pipeline.report_page.charts import HALF_HEIGHT, Json, axis, line, significant
from pipeline.report_page.colours import detector_label
from pipeline.report_page.data import ReportData
from pipeline.report_page.judgement import null_reason

PARTS = {
    "first_half": "First half of the test span",
    "second_half": "Second half of the test span",
    "epochs_of_calibration": "Machines as they were at calibration",
    "epochs_since": "Machines since a change (repair, sensor, firmware)",
}
# verdict on an interval: (in a table, in the chart's legend, colour, symbol)
VERDICTS = {
    "kept": ("inside", "interval holds what was asked for", "@accent", "circle"),
    "more": ("more", "more than asked for", "@faulty", "triangle-up"),
    "fewer": ("fewer", "fewer than asked for", "@warn", "triangle-down"),
    "untold": (EM_DASH, "no interval", "@healthy", "diamond"),
}
HEADS = (Column("Healthy rows"), Column("Machines"), Column("Rate", hint="above page"), Column("Interval"))
MEANS = {
    "kept": "The later rows still resemble those of the calibration.",
    "more": "Later rows are not like those of the calibration: find what changed, or calibrate on later rows.",
    "fewer": "Later rows are quieter than those of the calibration: the threshold is higher than it need be.",
    "untold": "How sure that is, the data cannot tell.",
}
VAGUE = 5.0  # times what was asked for: an interval that reaches so far tells little
TICKS = 13


def over_time_group(data: ReportData) -> list[Block]:
    """The rate of later rows apart from that of the first ones; nothing where the evaluation wrote none."""
    figures = as_map(data.evaluation.get("rates_over_time"))
    asked = as_number(figures.get("asked"))
    if asked is None:
        return []
    louder = any(verdict(as_map(figures.get(key)), asked) == "more" for key in ("second_half", "epochs_since"))
    blocks: list[Block] = [Text(_answer(figures, asked), "warning" if louder else "plain")]
    chart, weeks = week_chart(figures), _week_table(data, figures, asked)
    blocks += [Charts([chart])] if chart else []
    blocks += [_part_table(data, figures, asked), *([weeks] if weeks else [])]
    return [Group("over-time", "Does the page threshold keep its rate?", blocks)]


def verdict(entry: Mapping[str, Any], asked: float) -> str:
    """Whether an interval holds what was asked for, or lies above or below it.

    >>> verdict({"ci_low": 0.001, "ci_high": 0.002}, 0.0005), verdict({"ci_low": None}, 0.0005)
    ('more', 'untold')
    """
    low, high = as_number(entry.get("ci_low")), as_number(entry.get("ci_high"))
    if low is None or high is None:
        return "untold"
    return "more" if low > asked else "fewer" if high < asked else "kept"


def _answer(figures: Mapping[str, Any], asked: float) -> str:
    first, second = as_map(figures.get("first_half")), as_map(figures.get("second_half"))
    if as_number(first.get("false_positive_rate")) is None or as_number(second.get("false_positive_rate")) is None:
        return f"{percent(asked)} of healthy rows was asked for; there are too few to tell early ones from late ones."
    told = (
        f"Asked for {percent(asked)} of healthy rows, the page threshold lets {_rate(first)} through in the first half "
        f"of the test span and {_rate(second)} in the second."
    )
    kind = verdict(second, asked)
    if kind == "kept" and (as_number(second.get("ci_high")) or 0.0) > VAGUE * asked:
        return f"{told} So wide an interval holds almost any rate: more healthy rows are needed to tell."
    return f"{told} {MEANS[kind]}"


def _rate(entry: Mapping[str, Any]) -> str:
    bounds = percent_interval(entry.get("ci_low"), entry.get("ci_high"))
    return percent(entry.get("false_positive_rate")) + (f" (interval {bounds})" if bounds else "")


def week_chart(figures: Mapping[str, Any]) -> Chart | None:
    """The rate of each week with its interval, against what was asked for; None where no week has a rate."""
    weeks = [as_map(week) for week in figures.get("weeks") or []]
    weeks = [week for week in weeks if as_number(week.get("false_positive_rate")) is not None]
    asked = as_number(figures.get("asked"))
    if not weeks or asked is None:
        return None
    told = {kind: [week for week in weeks if verdict(week, asked) == kind] for kind in VERDICTS}
    numbers, each = [_whole(week, "week") for week in weeks], max(_whole(week, "weeks") for week in weeks)
    span = [min(numbers) - 0.7 * each, max(numbers) + 0.7 * each]
    traces = [line(f"asked for, {percent(asked)}", span, [asked * 100] * 2, "@ink", dash="dot", width=1.5)]
    traces += [_week_trace(own, kind) for kind, own in told.items() if own]
    highest = max(as_number(week.get(key)) or 0.0 for week in weeks for key in ("ci_high", "false_positive_rate"))
    what = "week after calibration" if each == 1 else f"first of {each} weeks after calibration"
    layout: Json = {
        "xaxis": axis(what, range=span, tickformat="d", dtick=max(1, round(len(weeks) / TICKS)) * each),
        "yaxis": axis("healthy rows above (%)", range=[0, 112 * max(highest, asked)], tickformat="~g"),
        "showlegend": True,
    }
    name = detector_label(str(figures.get("detector") or ""))
    caption = _caption(weeks, told, asked, "week" if each == 1 else "span")
    return Chart("weekly-rates", f"{name}: page threshold, week by week", caption, traces, layout, HALF_HEIGHT + 40)


def _caption(
    weeks: Sequence[Mapping[str, Any]], told: Mapping[str, Sequence[Mapping[str, Any]]], asked: float, span: str
) -> str:
    intervals = len(weeks) - len(told["untold"])
    off = len(told["more"]) + len(told["fewer"])
    excluded = f"{count(off)} exclude{'s' if off == 1 else ''}" if off else "none excludes"
    top = max(weeks, key=lambda week: as_number(week.get("false_positive_rate")) or 0.0)
    return (
        f"{plural(len(weeks), span)}, {count(intervals)} with an interval; {excluded} the {percent(asked)} that was "
        f"asked for (of 90 % intervals a tenth does by chance). Highest: {percent(top.get('false_positive_rate'))} in "
        f"{span} {count(top.get('week'))}."
    )


def _week_trace(weeks: Sequence[Mapping[str, Any]], kind: str) -> Json:
    _, name, colour, symbol = VERDICTS[kind]
    keys = ("false_positive_rate", "ci_low", "ci_high")
    rate, low, high = ([(as_number(week.get(key)) or 0.0) * 100 for week in weeks] for key in keys)
    trace: Json = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [_whole(week, "week") for week in weeks],
        "y": significant(rate),
        "marker": {"size": 9, "color": colour, "symbol": symbol},
        "customdata": [count(week.get("rows")) for week in weeks],
        "hovertemplate": "week %{x}: %{y:.3g} % of %{customdata} rows<extra></extra>",
    }
    if kind != "untold":
        up, down = ([abs(end - own) for end, own in zip(ends, rate, strict=True)] for ends in (high, low))
        bars = {"type": "data", "symmetric": False, "array": significant(up), "arrayminus": significant(down)}
        trace["error_y"] = {**bars, "color": colour, "thickness": 2, "width": 5}
    return trace


def _whole(week: Mapping[str, Any], key: str) -> int:
    return int(as_number(week.get(key)) or 1)


def _part_table(data: ReportData, figures: Mapping[str, Any], asked: float) -> Table:
    notes = Footnotes()
    rows = [[Cell(label), *_cells(data, key, as_map(figures.get(key)), asked, notes)] for key, label in PARTS.items()]
    caption = "The rate under drift, apart from that of rows like the calibration's"
    return _table(caption, Column("Rows", numeric=False, prose=True), rows, asked, notes)


def _week_table(data: ReportData, figures: Mapping[str, Any], asked: float) -> Table | None:
    notes, rows = Footnotes(), []
    for week in (as_map(week) for week in figures.get("weeks") or []):
        first, each = _whole(week, "week"), _whole(week, "weeks")
        label = f"Week {first}" if each == 1 else f"Weeks {first} to {first + each - 1}"
        dates = " to ".join(str(week.get(end))[:10] for end in ("start", "end") if week.get(end))
        rows.append([Cell(label, dates), *_cells(data, "weeks", week, asked, notes)])
    return _table("Week by week", Column("After calibration", numeric=False), rows, asked, notes) if rows else None


def _table(caption: str, head: Column, rows: list[list[Cell]], asked: float, notes: Footnotes) -> Table:
    return Table(caption, [head, *HEADS, Column("Asked for", hint=percent(asked))], rows, notes.reasons)


def _cells(data: ReportData, key: str, entry: Mapping[str, Any], asked: float, notes: Footnotes) -> list[Cell]:
    """Rows, machines, rate, interval and verdict; a footnote says what is missing."""
    rate = as_number(entry.get("false_positive_rate"))
    bounds = percent_interval(entry.get("ci_low"), entry.get("ci_high"))
    told = str(entry.get("note") or "") if entry else null_reason(data, "rates_over_time", key)
    noted = notes.number(told) if told else None
    return [
        Cell(count(entry.get("rows"))),
        Cell(count(entry.get("machines"))),
        Cell(percent(rate), note=noted if rate is None else None),
        Cell(bounds or EM_DASH, note=None if rate is None else noted),
        Cell(VERDICTS[verdict(entry, asked)][0]),
    ]
