"""Each judged failure: the release detector's score up to it, alert episodes, and what it heard bin by bin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report_page.blocks import (
    EM_DASH,
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Group,
    Section,
    Table,
    Text,
    as_map,
    hours,
    parse_time,
    plural,
    sentence_list,
    when,
)
from pipeline.report_page.charts import Json, axis, line, log_ticks, note, rule
from pipeline.report_page.colours import detector_colour, detector_label
from pipeline.report_page.data import SCORES_ABSENT, ReportData, judged_failures, release_verdict
from pipeline.report_page.failure_evidence import MARGIN, evidence_blocks
from pipeline.report_page.names import isolated, shortened
from pipeline.report_page.packing import packed_numbers, packed_times
from pipeline.schema import MICROSECONDS_PER_HOUR, FloatN, IntN, codes_and_names, times_us

POINTS = 600  # at most, of one failure
HEIGHT = 230
DEFAULT_HORIZON_US = 168 * MICROSECONDS_PER_HOUR
CONTEXT_SHARE, AFTER_SHARE = 0.25, 0.03  # of the window, shown before it and after the failure


@dataclass(frozen=True)
class FailureView:
    """One failure with the rows around it; times in microseconds, ascending, scores of the release detector (n,)."""

    event: Mapping[str, Any]
    detector: str
    times_us_N: IntN
    scores_N: FloatN
    window_us: tuple[int, int]
    spans: Sequence[Mapping[str, Any]]  # alert episodes of this machine, cut to the window
    thresholds: Mapping[str, float | None]
    caught: bool
    lead_hours: float | None


def failures_section(data: ReportData) -> Section:
    """An index, then a group of charts per judged failure, oldest first, at most `max_failures`."""
    title, short, events = "What happened before each failure?", "Failures", judged_failures(data)
    if data.events is None:
        return Section("failures", title, short)
    if not events:
        return Section("failures", title, short, missing="no failure was judged")
    views, without = _views(data, events[: data.max_failures])
    if not views:
        return Section("failures", title, short, missing=data.missing.get("scores", SCORES_ABSENT))
    blocks: list[Block] = [_index(views)]
    evidence = {row["failure_id"]: row for row in data.evidence.to_pylist()} if data.evidence is not None else {}
    unit = "" if data.fleet.get("kind") == "features" else str(data.fleet.get("unit") or "no unit")
    blocks += [
        _group(view, index, evidence.get(str(view.event.get("failure_id"))), unit)
        for index, view in enumerate(views, 1)
    ]
    if without:
        listed = sentence_list([isolated(name) for name in without])
        blocks.append(Text(f"No scores around {plural(len(without), 'failure')}: {listed}.", "muted"))
    rest = len(events) - data.max_failures
    if rest > 0:
        blocks.append(
            Text(f"{plural(rest, 'more failure')} not drawn (report.max_failures is {data.max_failures}).", "muted")
        )
    lead = (
        f"Score of {detector_label(data.detector)} up to each judged failure: the largest value of each short span of "
        "time. Shaded spans are page-tier alert episodes: one that caught the failure in blue-green, a false "
        "one in amber, one that counts as neither in grey. The lead time runs from the first page to the failure."
    )
    return Section("failures", title, short, failures_answer(data), lead, blocks)


def failures_answer(data: ReportData) -> str:
    """How many were paged, how early, and which were missed."""
    events = judged_failures(data)
    verdicts = [(event, *release_verdict(data, event)) for event in events]
    leads = [lead for _, caught, lead in verdicts if caught and lead is not None]
    missed = [isolated(shortened(event.get("machine_id", EM_DASH), 40)) for event, caught, _ in verdicts if not caught]
    told = f"{sum(caught for _, caught, _ in verdicts)} of {plural(len(events), 'failure')} paged in time"
    told += f", the median {hours(float(np.median(leads)))} ahead" if leads else ""
    if not missed:
        return f"{told}."
    which = sentence_list(missed) if len(missed) <= 5 else "all of them" if len(missed) == len(events) else len(missed)
    return f"{told}. Missed: {which}."


def _index(views: Sequence[FailureView]) -> Table:
    """A line per failure, with a link to its charts."""
    rows = []
    for index, view in enumerate(views, 1):
        event = view.event
        rows.append(
            [
                Cell(str(event.get("machine_id", EM_DASH)), link=f"failure-{index}"),
                Cell(_mode(event)),
                Cell(str(event.get("failure_id", EM_DASH))),
                Cell(when(event.get("time"))),
                Cell("yes" if view.caught else "no"),
                Cell(hours(view.lead_hours) if view.caught else EM_DASH),
            ]
        )
    heads = [Column(name, numeric=False) for name in ("Machine", "Mode", "Failure")]
    more = [Column("Failed (UTC)"), Column("Paged in time"), Column("Lead time")]
    return Table(f"{plural(len(views), 'judged failure')}, oldest first", [*heads, *more], rows)


def _mode(event: Mapping[str, Any]) -> str:
    return str(event.get("failure_mode") or "mode not recorded").replace("_", " ")


def _group(view: FailureView, index: int, evidence: Mapping[str, Any] | None, unit: str) -> Group:
    """Timeline, heat map, spectra and bands of one failure."""
    event = view.event
    window = _stamps(np.array(view.window_us))
    blocks: list[Block] = [Charts([timeline_chart(view, index)])]
    if evidence is None:
        blocks.append(Text("Error by band was not written for this failure.", "muted"))
    else:
        blocks += evidence_blocks(evidence, index, window, when(event.get("time")), unit)
    names = (event.get("machine_id", EM_DASH), _mode(event), event.get("failure_id", EM_DASH))
    title = " · ".join(map(isolated, names))
    tag = f"paged {hours(view.lead_hours)} ahead" if view.caught else "not paged"
    return Group(f"failure-{index}", title, blocks, tag, "good" if view.caught else "bad")


def downsample_max(times_us_N: IntN, values_N: FloatN, points: int = POINTS) -> tuple[IntN, FloatN]:
    """The largest value of each of `points // 2` equal spans of time, at its own time; a gap in the data is one NaN.

    Args:
        times_us_N: microseconds, ascending, shape (n,).
        values_N: scores, shape (n,); not finite ones are left out.
        points: at most this many come back.

    >>> times, values = downsample_max(np.arange(1000), np.arange(1000.0), points=20)
    >>> len(times), float(values.max())
    (10, 999.0)
    """
    finite = np.isfinite(values_N)
    times, values = times_us_N[finite], values_N[finite]
    if len(times) < 2:
        return times, values
    spans = max(points // 2, 1)
    if len(times) > spans:
        place = ((times - times[0]) / (times[-1] - times[0] + 1) * spans).astype(np.int64)
        by_place = np.lexsort((values, place))  # the last of each place is its largest
        last = np.r_[place[by_place][1:] != place[by_place][:-1], True]
        peaks = np.sort(by_place[last])
        times, values = times[peaks], values[peaks]
    steps = np.diff(times)
    gaps = np.flatnonzero(steps > 6 * np.median(steps)) + 1
    middle = times[gaps - 1] + steps[gaps - 1] // 2
    return np.insert(times, gaps, middle), np.insert(values, gaps, np.nan)


def timeline_chart(view: FailureView, index: int) -> Chart:
    """The chart of one failure; `index` is the page's own number, so that no text of the data becomes an identifier."""
    times, values = downsample_max(view.times_us_N, view.scores_N)
    finite = values[np.isfinite(values)]
    log = bool(len(finite)) and float(finite.min()) > 0
    trace = line(
        "score",
        packed_times(times),
        packed_numbers(values),
        detector_colour(view.detector),
        width=1.5,
        connectgaps=False,
    )
    trace["hovertemplate"] = "%{x|%Y-%m-%d %H:%M}: score %{y:.3g}<extra></extra>"
    shapes, notes = _marks(view, log)
    ticks = log_ticks(float(finite.min()), float(finite.max())) if log else {"nticks": 6}
    score_axis = axis("score (no unit)", type="log" if log else "linear", **ticks)
    layout = {
        "xaxis": axis("time (UTC)", type="date", range=_stamps(np.array(view.window_us))),
        "yaxis": {**score_axis, **_score_range(finite, view.thresholds, log)},
        "shapes": shapes,
        "annotations": notes,
        "margin": {"t": 26, **MARGIN},
        "showlegend": False,
    }
    return Chart(f"timeline-{index}", "Anomaly score", _caption(view), [trace], layout, HEIGHT)


def _caption(view: FailureView) -> str:
    failed, episodes = (
        when(view.event.get("time")),
        plural(len(view.spans), "alert episode") if view.spans else "No alert episode",
    )
    told = f"Paged {hours(view.lead_hours)} before the failure" if view.caught else "No page before the failure"
    caption = f"{told} of {failed} UTC. {episodes} in view."
    budget = as_map(as_map(view.event.get("detectors")).get(view.detector))
    if "caught" in budget and bool(budget["caught"]) != view.caught:
        lead = hours(budget.get("lead_time_hours"))
        caption += (
            f" At the comparison's threshold it is {f'caught, {lead} ahead' if budget['caught'] else 'not caught'}."
        )
    return caption


def _marks(view: FailureView, log: bool) -> tuple[list[Json], list[Json]]:
    """Shapes and labels: the failure, the start of its window, alert episodes, thresholds."""
    above = {"y": 1, "yref": "y domain", "yanchor": "bottom"}
    failed, begins = when(view.event.get("time")), view.event.get("window_start")
    shapes: list[Json] = [shape for span in view.spans for shape in _episode_shapes(span)]
    shapes.append(rule("x", failed, "@faulty", "solid", 2))
    notes = [note("failure", x=failed, xanchor="right", colour="@faulty", **above)]
    if parse_time(begins):
        shapes.append(rule("x", when(begins), "@muted", "dot", 1))
        notes.append(note("judged from here", x=when(begins), xanchor="right", **above))
    for tier, dash, shift in (("low", "dot", -5), ("page", "dash", 5)):
        threshold = view.thresholds.get(tier)
        if threshold is not None and (threshold > 0 or not log):
            shapes.append(rule("y", threshold, "@ink", dash, 1))
            at = float(np.log10(threshold)) if log else threshold  # plotly wants a label's place on a log axis as a log
            right = {"x": 1, "xref": "x domain", "xanchor": "left", "xshift": 5}
            notes.append(note(tier, y=at, yref="y", yshift=shift, colour="@ink", **right))  # apart where both are near
    return shapes, notes


def _episode_shapes(span: Mapping[str, Any]) -> list[Json]:
    """A faint band over the panel and a solid bar at its foot, so that a short episode still shows."""
    colours = {"caught": ("@accent", "@caught-soft"), "false": ("@warn", "@false-soft")}
    colour, soft = colours.get(str(span.get("kind")), ("@healthy", "@healthy-soft"))
    ends = {"type": "rect", "x0": span["start"], "x1": span["end"], "yref": "y domain"}
    band = {**ends, "y0": 0, "y1": 1, "fillcolor": soft, "line": {"width": 0}, "layer": "below"}
    bar = {**ends, "y0": 0, "y1": 0.045, "fillcolor": colour, "line": {"color": colour, "width": 2}}
    return [band, bar]


def _score_range(finite: FloatN, thresholds: Mapping[str, float | None], log: bool) -> Json:
    """A range that holds the scores and both thresholds, with air around them."""
    known = [value for value in thresholds.values() if value is not None and (value > 0 or not log)]
    every = np.r_[finite, known]
    if not len(every):
        return {}
    low, high = float(every.min()), float(every.max())
    if log:
        low, high = float(np.log10(low)), float(np.log10(high))
    air = (high - low) * 0.08 or 0.5
    return {"range": [low - air, high + air]}


def _stamps(times_us_N: IntN) -> list[str]:
    """Times as plotly reads them, in UTC."""
    return [str(stamp) for stamp in np.datetime_as_string(times_us_N.astype("datetime64[us]"), unit="s")]


def _views(data: ReportData, events: Sequence[Mapping[str, Any]]) -> tuple[list[FailureView], list[str]]:
    """What can be drawn, and the failures around which there are no scores."""
    table, column = data.scores, f"score_{data.detector}"
    if table is None or not data.detector or column not in table.column_names:
        return [], [str(event.get("failure_id", EM_DASH)) for event in events]
    codes, machines = codes_and_names(table["machine_id"])
    times, scores = times_us(table["timestamp"]), table[column].to_numpy()
    views, without = [], []
    for event in events:
        window, machine = _window_us(event), str(event.get("machine_id"))
        shown = np.empty(0, np.int64)
        if window is not None and machine in machines:
            mine = (codes == machines.index(machine)) & (times >= window[0]) & (times <= window[1])
            shown = np.flatnonzero(mine & np.isfinite(scores))
            shown = shown[np.argsort(times[shown], kind="stable")]
        if window is None or not len(shown):
            without.append(str(event.get("failure_id", EM_DASH)))
            continue
        caught, lead = release_verdict(data, event)
        spans = _spans_within(data.episodes, machine, window)
        limits = data.thresholds(data.detector)
        views.append(
            FailureView(event, data.detector, times[shown], scores[shown], window, spans, limits, caught, lead)
        )
    return views, without


def _window_us(event: Mapping[str, Any]) -> tuple[int, int] | None:
    """The span of time to draw: the judged window with some air, in microseconds."""
    failed, begins = parse_time(event.get("time")), parse_time(event.get("window_start"))
    if failed is None:
        return None
    end = int(failed.timestamp() * 1e6)
    begin = int(begins.timestamp() * 1e6) if begins else end - DEFAULT_HORIZON_US
    length = max(end - begin, MICROSECONDS_PER_HOUR)
    return end - length - int(length * CONTEXT_SHARE), end + int(length * AFTER_SHARE)


def _spans_within(episodes: Sequence[Mapping[str, Any]], machine: str, window: tuple[int, int]) -> list[dict[str, Any]]:
    """This machine's episodes that touch the window, cut to it."""
    found = []
    for episode in episodes:
        begin, end = parse_time(episode.get("start")), parse_time(episode.get("end"))
        if str(episode.get("machine_id")) != machine or begin is None or end is None:
            continue
        first, last = int(begin.timestamp() * 1e6), int(end.timestamp() * 1e6)
        if first <= window[1] and last >= window[0]:
            start, stop = _stamps(np.array([max(first, window[0]), min(last, window[1])]))
            found.append({"start": start, "end": stop, "kind": episode.get("kind")})
    return found
