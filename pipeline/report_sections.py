"""The report's sections, in the order in which an engineer asks: what came out, of what, learned how, and where it ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import yaml

from pipeline.report_blocks import (
    EM_DASH,
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Details,
    Figures,
    Footnotes,
    Items,
    Section,
    Table,
    Tables,
    Text,
    as_map,
    as_number,
    count,
    detector_label,
    number,
    parse_time,
    percent,
    percent_interval,
    plural,
    sentence_list,
    short_hours,
    when,
)
from pipeline.report_charts import (
    distribution_chart,
    reconstruction_chart,
    roc_chart,
    timeline_chart,
    training_charts,
)
from pipeline.report_data import SCORES_ABSENT, ReportData
from pipeline.report_judgement import (
    baseline_sentence,
    cautions,
    comparison_table,
    detector_order,
    null_reason,
    only_caught,
    release_figures,
)
from pipeline.schema import MICROSECONDS_PER_HOUR, FloatN, IntN, codes_and_names, times_us

MAX_SPECTRA = 8
SOME_REASONS = {
    "data": "no stage wrote what it set aside",
    "training": "no neural detector was trained, or none left a history",
    "thresholds": "nothing was calibrated",
    "comparison": "the evaluation compared no detectors",
    "failures": "the evaluation wrote no failures",
    "reconstruction": "the evaluation wrote no spectra",
}
CONTEXT_SHARE, AFTER_SHARE = 0.25, 0.03  # of the horizon, shown before it and after the failure


def sections(data: ReportData) -> list[Section]:
    """Every section of the page; an empty one says why."""
    built = [
        data_section(data),
        training_section(data),
        thresholds_section(data),
        comparison_section(data),
        failures_section(data),
        reconstruction_section(data),
        notes_section(data),
    ]
    return [_or_missing(section, data) for section in built]


def _or_missing(section: Section, data: ReportData) -> Section:
    if section.blocks:
        return replace(section, missing="")
    return replace(section, missing=data.missing.get(section.id) or section.missing or SOME_REASONS.get(section.id, ""))


# --- headline ---------------------------------------------------------------------------------------------------------


def headline(data: ReportData) -> str:
    """The one sentence at the top."""
    figures = release_figures(data)
    name = detector_label(data.detector) if data.detector else "No detector"
    caught, events = as_number(figures.get("events_caught")), as_number(figures.get("events"))
    if caught is None or not events:
        return f"{name}: no failure could be judged."
    return f"{name} caught {count(caught)} of {plural(int(events), 'failure')}."


def key_figures(data: ReportData) -> Figures:
    """Failures caught, by chance, false episodes a day, lead time, page-tier false-positive rate with its interval."""
    figures, budget = release_figures(data), as_map(data.evaluation.get("budget"))
    page = as_map(as_map(data.evaluation.get("tiers")).get("page"))

    def shown(text: str, value: Any, *path: str, beside: str = "") -> tuple[str, str]:
        return (text, beside) if as_number(value) is not None else (EM_DASH, null_reason(data, *path))

    at = ("detectors", str(data.detector))
    caught, events, chance = (figures.get(key) for key in ("events_caught", "events", "events_by_chance"))
    by_chance = f"{number(chance, 2)} by chance" if as_number(chance) is not None else "chance level not known"
    false, lead, rate = (
        figures.get("false_episodes_per_day"),
        figures.get("median_lead_time_hours"),
        page.get("false_positive_rate"),
    )
    long = as_number(lead) is not None and lead >= 48
    beside_lead = f"{lead / 24:.1f} days, first page to failure" if long else "first page to failure"
    allowed = as_number(budget.get("false_episodes_per_machine_day"))
    machines = as_number(as_map(data.evaluation.get("dataset")).get("machines"))
    budget_text = (
        f"budget {number(allowed * machines, 2)}, whole fleet" if allowed is not None and machines else "whole fleet"
    )
    interval = percent_interval(page.get("ci_low"), page.get("ci_high"))
    nominal = as_number(page.get("percentile"))
    rate_text = (
        f"interval {interval}" if interval else f"interval not known: {null_reason(data, 'tiers', 'page', 'ci_low')}"
    )
    rate_text += f"; asked for {percent(1 - nominal / 100)}" if nominal is not None else ""
    return Figures(
        [
            (
                "Failures caught",
                *shown(f"{count(caught)} of {count(events)}", caught, *at, "events_caught", beside=by_chance),
            ),
            (
                "False episodes per day",
                *shown(number(false, 2), false, *at, "false_episodes_per_day", beside=budget_text),
            ),
            (
                "Median lead time",
                *shown(short_hours(lead), lead, *at, "median_lead_time_hours", beside=beside_lead),
            ),
            (
                "Page tier, false positives",
                *shown(percent(rate), rate, "tiers", "page", "false_positive_rate", beside=rate_text),
            ),
        ]
    )


def opening(data: ReportData) -> list[Block]:
    """Key figures, and what to beware of."""
    blocks: list[Block] = [key_figures(data)]
    warnings = cautions(data)
    if warnings:
        blocks.append(Items(warnings, "Before you rely on these figures", "warning"))
    return blocks


def facts(data: ReportData) -> list[tuple[str, str]]:
    """What data and which release, as pairs for the page's head."""
    dataset, interval = as_map(data.evaluation.get("dataset")), as_number(data.fleet.get("interval_seconds"))
    begin, end = _span(data)
    rows = [
        ("Data set", str(dataset.get("name") or data.fleet.get("name") or data.source or EM_DASH)),
        ("Rows", count(dataset.get("rows"))),
        ("Machines", count(dataset.get("machines"))),
        ("Frequency bins", count(dataset.get("bins"))),
        ("Failures in the log", count(dataset.get("failures"))),
        ("Span (UTC)", f"{when(begin)} to {when(end)}" if begin and end else ""),
        ("Interval", f"{number(interval)} s" if interval else ""),
        ("Release detector", detector_label(data.detector) if data.detector else EM_DASH),
        ("Release", data.release_id or ""),
    ]
    return [(name, value) for name, value in rows if value]


def _span(data: ReportData) -> tuple[Any, Any]:
    for source in (as_map(data.evaluation.get("dataset")), as_map(data.split), as_map(as_map(data.split).get("span"))):
        for begin, end in (("start", "end"), ("first", "last"), ("from", "to"), ("begin", "end")):
            if parse_time(source.get(begin)) and parse_time(source.get(end)):
                return source[begin], source[end]
    return None, None


# --- data -------------------------------------------------------------------------------------------------------------

# Names that a stage may give to its counts, and what the page calls them: (keys, caption, first column).
VALIDATION_COUNTS = ((("reasons", "quarantined_by_reason", "by_reason"), "Quarantined by validation", "Reason"),)
SPLIT_COUNTS = (
    (("log_status", "log_statuses", "statuses"), "What the maintenance log says", "Log status"),
    (("roles", "role", "rows_by_role"), "What the rows are used for", "Role"),
)
CLEANING_COUNTS = (
    (("reasons", "removed_by_reason", "by_reason"), "Removed by cleaning", "Reason"),
    (("removed_by_role",), "Removed by cleaning", "Role"),
)


def data_section(data: ReportData) -> Section:
    """Rows by what became of them, and why."""
    tables: list[Table] = []
    for source, wanted in (
        (data.validation, VALIDATION_COUNTS),
        (data.split, SPLIT_COUNTS),
        (data.cleaning, CLEANING_COUNTS),
    ):
        for keys, caption, head in wanted:
            counts = next((as_map(as_map(source).get(key)) for key in keys if as_map(source).get(key)), {})
            table = _count_table(counts, caption, head, as_number(as_map(source).get("rows")))
            tables += [table] if table else []
    worst = next(
        (
            as_map(data.cleaning).get(key)
            for key in ("worst_episodes", "episodes", "worst")
            if as_map(data.cleaning).get(key)
        ),
        None,
    )
    blocks: list[Block] = [Text(text) for text in _set_aside(data)]
    blocks += [Tables(tables)] if tables else []
    blocks += _worst_episodes(worst if isinstance(worst, list) else [])
    said = [
        str(text)
        for source in (data.validation, data.split, data.cleaning)
        for text in as_map(source).get("notes") or []
    ]
    blocks += [Items(said, "Said by the stages")] if said else []
    return Section("data", "Data", "What was used, what was set aside, and why.", blocks)


def _set_aside(data: ReportData) -> list[str]:
    """One sentence for validation and one for cleaning."""
    found = []
    rows = as_number(as_map(data.validation).get("rows"))
    quarantined = as_number(as_map(data.validation).get("quarantined"))
    if quarantined is not None:
        share = f" ({percent(quarantined / rows)} of {count(rows)})" if rows else ""
        found.append(
            f"Validation quarantined {plural(int(quarantined), 'row')}{share}: facts of the spectrum itself, such as bins that are not numbers."
        )
    removed = as_number(as_map(data.cleaning).get("removed"))
    if removed is not None:
        seen = as_number(as_map(data.cleaning).get("rows")) or as_number(as_map(data.cleaning).get("considered"))
        share = f" ({percent(removed / seen)} of {count(seen)})" if seen else ""
        found.append(
            f"Cleaning removed {plural(int(removed), 'row')}{share} from training and validation only. Calibration and test "
            "keep every row that the maintenance log calls healthy, or their false alarms would be flattered."
        )
    return found


def _count_table(counts: Mapping[str, Any], caption: str, head: str, rows: float | None) -> Table | None:
    known = {str(name): value for name, raw in counts.items() if (value := as_number(raw)) is not None}
    if not known:
        return None
    whole = max(rows or 0.0, sum(known.values()), 1.0)
    ordered = sorted(known.items(), key=lambda item: (-item[1], item[0]))
    body = [
        [Cell(_words(name)), Cell(count(value)), Cell(percent(value / whole), share=value / whole)]
        for name, value in ordered
    ]
    return Table(caption, [Column(head, numeric=False), Column("Rows"), Column("Share")], body)


def _words(name: str) -> str:
    return name.replace("_", " ") or "none given"


def _worst_episodes(episodes: Sequence[Any]) -> list[Block]:
    rows = []
    for episode in (as_map(entry) for entry in episodes[:10]):
        begin, end = episode.get("start", episode.get("first")), episode.get("end", episode.get("last"))
        worst = episode.get("error", episode.get("worst", episode.get("max_error", episode.get("deviations"))))
        machine = episode.get("machine_id", episode.get("machine"))
        rows.append(
            [
                Cell(str(machine or EM_DASH)),
                Cell(when(begin)),
                Cell(when(end)),
                Cell(count(episode.get("rows"))),
                Cell(number(worst)),
            ]
        )
    if not rows:
        return []
    columns = [
        Column("Machine", numeric=False),
        Column("From (UTC)"),
        Column("To (UTC)"),
        Column("Rows"),
        Column("Error (robust SD)"),
    ]
    return [Table("Worst episodes that cleaning removed", columns, rows)]


# --- training ---------------------------------------------------------------------------------------------------------


def training_section(data: ReportData) -> Section:
    """Curves of every detector that trains by epochs, and a warning where the epoch cap was hit."""
    blocks: list[Block] = []
    charts: list[Chart] = []
    for name in [*detector_order(data), *sorted(set(data.histories) - set(detector_order(data)))]:
        history = as_map(data.histories.get(name))
        own = training_charts(name, history)
        charts += own
        if own and history.get("cap_hit"):
            said = [str(text) for text in history.get("warnings") or []] or ["Training stopped at the epoch cap."]
            blocks.append(Text(f"{detector_label(name)}: {' '.join(said)} More epochs may lower the loss further.", "warning"))
    blocks += [Charts(charts)] if charts else []
    lead = "Loss on training rows, and on validation rows that no step saw. The weights of the best epoch are kept."
    return Section("training", "What the models learned", lead, blocks)


# --- thresholds -------------------------------------------------------------------------------------------------------


def thresholds_section(data: ReportData) -> Section:
    """Score distributions with thresholds, and what the tiers really do."""
    blocks: list[Block] = []
    tiers = _tier_table(data)
    if tiers:
        blocks.append(tiers)
    charts = [
        distribution_chart(name, healthy, faulty, data.thresholds(name)) for name, healthy, faulty in _test_scores(data)
    ]
    if charts:
        blocks.append(Charts(charts, "Scores of the test rows"))
    elif blocks:
        blocks.append(
            Text(f"Score distributions are not available: {data.missing.get('scores', SCORES_ABSENT)}.", "muted")
        )
    calibrated = _calibrated_table(data)
    if calibrated:
        blocks.append(calibrated)
    policy = as_map(as_map(data.calibration).get("policy"))
    if policy.get("k") and policy.get("n"):
        minutes = as_number(policy.get("window_minutes")) or (as_number(policy.get("window_us")) or 0) / 60e6
        window = f" no older than {number(minutes)} minutes" if minutes else ""
        blocks.append(
            Text(
                f"A page opens when {policy['k']} of a machine's last {policy['n']} rows{window} exceed the page threshold."
            )
        )
    said = [str(text) for text in as_map(data.calibration).get("notes") or []]
    if said:
        blocks.append(Items(said, "Said by the calibration"))
    lead = "Percentiles of healthy calibration rows, which are later than every row that fitted a model or a baseline."
    return Section("thresholds", "Thresholds", lead, blocks)


def _tier_table(data: ReportData) -> Table | None:
    tiers, notes, rows = as_map(data.evaluation.get("tiers")), Footnotes(), []
    for tier in ("low", "page"):
        figures = as_map(tiers.get(tier))
        if not figures:
            continue
        percentile, rate = as_number(figures.get("percentile")), as_number(figures.get("false_positive_rate"))
        interval = percent_interval(figures.get("ci_low"), figures.get("ci_high"))
        cells = [
            Cell(tier.capitalize()),
            Cell(f"{percentile:g}" if percentile is not None else EM_DASH),
            Cell(number(data.thresholds(data.detector)[tier])),
            Cell(percent(1 - percentile / 100) if percentile is not None else EM_DASH),
            Cell(
                percent(rate),
                note=None
                if rate is not None
                else notes.number(null_reason(data, "tiers", tier, "false_positive_rate")),
            ),
            Cell(
                interval or EM_DASH, note=None if interval else notes.number(null_reason(data, "tiers", tier, "ci_low"))
            ),
        ]
        rows.append(cells)
    if not rows:
        return None
    columns = [
        Column("Tier", numeric=False),
        Column("Percentile"),
        Column("Threshold", hint="score, no unit"),
        Column("Asked-for rate"),
        Column("Realised rate", hint="healthy test rows"),
        Column("Interval"),
    ]
    name = f" ({detector_label(data.detector)})" if data.detector else ""
    return Table(f"Tiers of the release detector{name}: share of healthy rows above the threshold", columns, rows, notes.reasons)


def _calibrated_table(data: ReportData) -> Table | None:
    """Thresholds of every detector, with the interval of the rate and the tune failures caught."""
    calibration = as_map(data.calibration)
    detectors, rows = as_map(calibration.get("detectors")), []
    order = [name for name in detector_order(data) if name in detectors]
    for name in [*order, *sorted(set(detectors) - set(order))]:
        cells = [Cell(detector_label(name), detector=name)]
        for tier in ("low", "page"):
            cells += _calibrated_cells(as_map(as_map(detectors[name]).get(tier)))
        rows.append(cells)
    if not rows:
        return None
    caption = (
        f"Calibrated on {count(calibration.get('rows'))} healthy rows of {count(calibration.get('machines'))} machines: "
        "threshold, interval of the false-positive rate, and tune failures caught"
    )
    heads = [Column(f"{tier}, {what}") for tier in ("Low", "Page") for what in ("threshold", "rate", "caught")]
    return Table(caption, [Column("Detector", numeric=False), *heads], rows)


def _calibrated_cells(figures: Mapping[str, Any]) -> list[Cell]:
    caught = figures.get("tune_caught")
    caught = len(caught) if isinstance(caught, list) else caught
    told = f"{count(caught)} of {count(figures.get('tune_failures'))}" if as_number(caught) is not None else EM_DASH
    rate = percent_interval(figures.get("rate_low"), figures.get("rate_high")) or EM_DASH
    return [Cell(number(figures.get("threshold"))), Cell(rate), Cell(told)]


def _test_scores(data: ReportData) -> list[tuple[str, FloatN, FloatN]]:
    """(detector, healthy test scores, test scores before failures), for each detector with any finite score."""
    table = data.scores
    if table is None:
        return []
    test = np.ones(table.num_rows, bool)
    if "role" in table.column_names:
        test = pc.fill_null(pc.equal(table["role"].cast("string"), "test"), False).to_numpy()
    codes, labels = codes_and_names(table["label"])
    masks = {
        label: test & (codes == labels.index(label)) if label in labels else np.zeros(len(test), bool)
        for label in ("healthy", "faulty")
    }
    found = []
    names = [name.removeprefix("score_") for name in table.column_names if name.startswith("score_")]
    for name in sorted(
        names, key=lambda name: (detector_order(data).index(name) if name in detector_order(data) else len(names), name)
    ):
        scores = table[f"score_{name}"].to_numpy()
        healthy, faulty = (scores[mask & np.isfinite(scores)] for mask in masks.values())
        if len(healthy) or len(faulty):
            found.append((name, healthy, faulty))
    return found


# --- comparison -------------------------------------------------------------------------------------------------------


def comparison_section(data: ReportData) -> Section:
    """The table of all detectors, where a baseline wins, who caught what."""
    blocks: list[Block] = []
    if as_map(data.evaluation.get("detectors")):
        sentence, beaten = baseline_sentence(data)
        blocks += [Text(sentence, "finding" if beaten else "plain")] if sentence else []
        blocks.append(comparison_table(data))
        chart = roc_chart(data.roc, detector_order(data)) if data.roc else None
        blocks += [Charts([chart])] if chart else []
        at_few = _at_false_episodes(data)
        blocks += [at_few] if at_few else []
        matrix = _caught_matrix(data)
        blocks += [matrix] if matrix else []
        only = only_caught(data)
        blocks += [Items(only, "Caught by one detector alone")] if only else []
    return Section(
        "comparison",
        "Detectors compared",
        "All detectors judge the same rows at the same budget of false episodes.",
        blocks,
    )


def _at_false_episodes(data: ReportData) -> Table | None:
    """Failures caught when 0, 1, 3 false episodes are allowed in all: {detector: {"0": caught}}."""
    given = {name: as_map(value) for name, value in as_map(data.evaluation.get("at_false_episodes")).items()}
    rows = [name for name in detector_order(data) if given.get(name)]
    levels = sorted({level for name in rows for level in given[name] if str(level).isdigit()}, key=int)
    if not levels:
        return None
    columns = [
        Column("Detector", numeric=False),
        *(Column(f"At most {plural(int(level), 'false episode')}") for level in levels),
    ]
    body = [
        [Cell(detector_label(name), detector=name), *(Cell(count(given[name].get(level))) for level in levels)]
        for name in rows
    ]
    return Table(
        "Failures caught for a fixed number of false episodes in all (the budget is too small to compare at)",
        columns,
        body,
    )


def _caught_matrix(data: ReportData) -> Table | None:
    """Failure by failure: lead time of each detector, or a dash."""
    events, names = _judged(data), detector_order(data)
    if not events or not any(as_map(event.get("detectors")) for event in events):
        return None
    rows = []
    for event in events:
        verdicts = as_map(event.get("detectors"))
        cells = [
            Cell(str(event.get("failure_id", EM_DASH))),
            Cell(str(event.get("machine_id", EM_DASH))),
            Cell(_mode(event)),
        ]
        for name in names:
            verdict = as_map(verdicts.get(name))
            cells.append(
                Cell(short_hours(verdict.get("lead_time_hours")) if verdict.get("caught") else EM_DASH)
            )
        rows.append(cells)
    heads = [Column("Failure", numeric=False), Column("Machine", numeric=False), Column("Mode", numeric=False)]
    caption = "Failure by failure: lead time of the detectors that caught it, a dash for those that did not"
    return Table(caption, [*heads, *(Column(detector_label(name)) for name in names)], rows)


def _judged(data: ReportData) -> list[Mapping[str, Any]]:
    """Test failures in order of time."""
    events = [event for event in data.events or [] if event.get("role", "test") == "test"]
    return sorted(events, key=lambda event: (str(event.get("time")), str(event.get("failure_id"))))


def _mode(event: Mapping[str, Any]) -> str:
    return _words(str(event.get("failure_mode") or "")) if event.get("failure_mode") else EM_DASH


# --- each failure -----------------------------------------------------------------------------------------------------


def failures_section(data: ReportData) -> Section:
    """A timeline per judged failure of the release detector's score."""
    events = _judged(data)
    title = "Each failure"
    if data.events is not None and not events:
        return Section("failures", title, missing="no failure was judged")
    charts, without = _timelines(data, events[: data.max_failures])
    blocks: list[Block] = [Charts(charts)] if charts else []
    if without and charts:
        blocks.append(Text(f"No scores around {plural(len(without), 'failure')}: {sentence_list(without)}.", "muted"))
    if len(events) > data.max_failures and charts:
        rest = len(events) - data.max_failures
        blocks.append(
            Text(f"{plural(rest, 'more failure')} not drawn (report.max_failures is {data.max_failures}).", "muted")
        )
    name = detector_label(data.detector) if data.detector else "the release detector"
    lead = (
        f"Score of {name} up to each judged failure: the largest value of each short span of time. Bands are alert episodes; "
        "one that caught the failure is drawn in the accent colour, a false one in amber. Lead time runs from first page to failure."
    )
    missing = data.missing.get("scores", SCORES_ABSENT) if events else ""
    return Section("failures", title, lead if charts else "", blocks, missing)


def _timelines(data: ReportData, events: Sequence[Mapping[str, Any]]) -> tuple[list[Chart], list[str]]:
    charts: list[Chart] = []
    without: list[str] = []
    table, column = data.scores, f"score_{data.detector}"
    if table is None or column not in table.column_names or not data.detector:
        return charts, without
    codes, machines = codes_and_names(table["machine_id"])
    times, scores = times_us(table["timestamp"]), table[column].to_numpy()
    for event in events:
        window = _window_us(event)
        machine = str(event.get("machine_id"))
        if window is None or machine not in machines:
            without.append(str(event.get("failure_id", EM_DASH)))
            continue
        shown = np.flatnonzero(
            (codes == machines.index(machine)) & (times >= window[0]) & (times <= window[1]) & np.isfinite(scores)
        )
        shown = shown[np.argsort(times[shown], kind="stable")]
        if not len(shown):
            without.append(str(event.get("failure_id", EM_DASH)))
            continue
        spans = _spans_within(data.episodes, machine, window)
        at: IntN = times[shown]
        charts.append(
            timeline_chart(
                event, data.detector, at, scores[shown], spans, data.thresholds(data.detector), len(charts) + 1
            )
        )
    return charts, without


def _window_us(event: Mapping[str, Any]) -> tuple[int, int] | None:
    """The span of time to draw: the horizon with some air, in microseconds."""
    failed, begins = parse_time(event.get("time")), parse_time(event.get("window_start"))
    if failed is None:
        return None
    end = int(failed.timestamp() * 1e6)
    begin = int(begins.timestamp() * 1e6) if begins else end - 168 * MICROSECONDS_PER_HOUR
    return begin - int((end - begin) * CONTEXT_SHARE), end + int((end - begin) * AFTER_SHARE)


def _spans_within(episodes: Sequence[Mapping[str, Any]], machine: str, window: tuple[int, int]) -> list[dict[str, Any]]:
    """This machine's episodes that touch the window, cut to it."""
    found = []
    for episode in episodes:
        begin, end = parse_time(episode.get("start")), parse_time(episode.get("end"))
        if str(episode.get("machine_id")) != machine or begin is None or end is None:
            continue
        first, last = int(begin.timestamp() * 1e6), int(end.timestamp() * 1e6)
        if first <= window[1] and last >= window[0]:
            edges = (np.datetime64(max(first, window[0]), "us"), np.datetime64(min(last, window[1]), "us"))
            found.append({"start": str(edges[0]), "end": str(edges[1]), "kind": episode.get("kind")})
    return found


# --- reconstruction ---------------------------------------------------------------------------------------------------


def reconstruction_section(data: ReportData) -> Section:
    """Spectra against their reconstruction: healthy ones, then ones at alerts."""
    rows = data.reconstructions or []
    ordered = sorted(rows, key=lambda row: row.get("kind") == "alert")[:MAX_SPECTRA]
    charts = [chart for index, row in enumerate(ordered, 1) if (chart := reconstruction_chart(row, index)) is not None]
    lead = (
        "What the model heard and what it expected. Level is the log magnitude relative to the machine's own baseline, in robust "
        "standard deviations; the bars are each bin's share of the error."
    )
    missing = "no row was chosen to be drawn" if data.reconstructions is not None else ""
    return Section(
        "reconstruction",
        "Original against reconstruction",
        lead if charts else "",
        [Charts(charts)] if charts else [],
        missing,
    )


# --- notes ------------------------------------------------------------------------------------------------------------


def notes_section(data: ReportData) -> Section:
    """Limits, null figures with their reasons, and where everything came from."""
    blocks: list[Block] = [
        Text(
            "A high error says that something changed, never why. An alert is a reason to look, not a diagnosis.",
            "finding",
        ),
    ]
    said = [str(text) for text in (*data.notes, *(data.evaluation.get("notes") or []))]
    blocks += [Items(said, "Notes of the evaluation")] if said else []
    reasons = _flat(as_map(data.evaluation.get("null_reasons")))
    if reasons:
        body = [[Cell(name), Cell(reason)] for name, reason in reasons]
        blocks.append(
            Table(
                "Figures that the data cannot tell",
                [Column("Figure", numeric=False), Column("Reason", numeric=False)],
                body,
            )
        )
    budget = as_number(as_map(data.evaluation.get("budget")).get("false_episodes_per_machine_day"))
    seed = data.params.get("seed")
    pairs = [
        ("Release", data.release_id),
        ("Release detector", detector_label(data.detector) if data.detector else None),
        ("Seed", str(seed) if seed is not None else None),
        ("Source", data.source),
        ("Budget", f"{number(budget)} false episodes per machine and day" if budget is not None else None),
    ]
    known = [[Cell(name), Cell(value)] for name, value in pairs if value]
    blocks.append(
        Table("Provenance", [Column("What", numeric=False), Column("Value", numeric=False)], known)
    ) if known else None
    if data.params:
        plain = json.loads(json.dumps(data.params, default=str))
        blocks.append(
            Details(
                "All settings of this run (params.yaml, defaults included)",
                yaml.safe_dump(plain, sort_keys=False, allow_unicode=True),
            )
        )
    return Section("notes", "Notes and limits", "", blocks)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested reasons as (dotted name, reason)."""
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        path = f"{prefix}{name}"
        found += _flat(value, f"{path}.") if isinstance(value, Mapping) else [(path, str(value))]
    return found
