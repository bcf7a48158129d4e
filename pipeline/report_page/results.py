"""What came out: thresholds with the rates that they reach, and the comparison of all detectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.report_page.blocks import (
    EM_DASH,
    Block,
    Cell,
    Charts,
    Column,
    Footnotes,
    Items,
    Section,
    Table,
    Text,
    as_map,
    as_number,
    count,
    number,
    percent,
    percent_interval,
    plural,
    short_hours,
)
from pipeline.report_page.charts import distribution_chart, roc_chart
from pipeline.report_page.colours import detector_label
from pipeline.report_page.data import SCORES_ABSENT, ReportData
from pipeline.report_page.failures import judged_failures
from pipeline.report_page.judgement import baseline_sentence, comparison_table, detector_order, null_reason, only_caught
from pipeline.schema import BoolN, FloatN, codes_and_names

TIERS = ("low", "page")


def thresholds_section(data: ReportData) -> Section:
    """Score distributions with thresholds, and what the tiers really do."""
    calibration, blocks = as_map(data.calibration), list[Block]()
    tiers = _tier_table(data)
    blocks += [tiers] if tiers else []
    scores = _test_scores(data)
    charts = [distribution_chart(name, healthy, faulty, data.thresholds(name)) for name, healthy, faulty in scores]
    if charts:
        blocks.append(Charts(charts, "Scores of the test rows"))
    elif blocks:
        reason = data.missing.get("scores", SCORES_ABSENT)
        blocks.append(Text(f"Score distributions are not available: {reason}.", "muted"))
    calibrated = _calibrated_table(data)
    blocks += [calibrated] if calibrated else []
    policy = _policy_sentence(as_map(calibration.get("policy")))
    blocks += [Text(policy)] if policy else []
    said = [str(text) for text in calibration.get("notes") or []]
    blocks += [Items(said, "Said by the calibration")] if said else []
    lead = "Percentiles of healthy calibration rows, which are later than every row that fitted a model or a baseline."
    return Section("thresholds", "Thresholds", lead, blocks)


def _policy_sentence(policy: Mapping[str, Any]) -> str:
    k, n = as_number(policy.get("k")), as_number(policy.get("n"))
    if k is None or n is None:
        return ""
    minutes = as_number(policy.get("window_minutes")) or (as_number(policy.get("window_us")) or 0) / 60e6
    window = f" that are no older than {number(minutes)} minutes" if minutes else ""
    return (
        f"A page opens when {count(k)} of a machine's last {plural(int(n), 'row')}{window} exceed the page threshold."
    )


def _tier_table(data: ReportData) -> Table | None:
    tiers, notes, rows = as_map(data.evaluation.get("tiers")), Footnotes(), []
    for tier in TIERS:
        figures = as_map(tiers.get(tier))
        if not figures:
            continue
        percentile, rate = as_number(figures.get("percentile")), as_number(figures.get("false_positive_rate"))
        interval = percent_interval(figures.get("ci_low"), figures.get("ci_high"))
        reasons = [null_reason(data, "tiers", tier, key) for key in ("false_positive_rate", "ci_low")]
        rows.append(
            [
                Cell(tier.capitalize()),
                Cell(EM_DASH if percentile is None else f"{percentile:g}"),
                Cell(number(data.thresholds(data.detector)[tier])),
                Cell(EM_DASH if percentile is None else percent(1 - percentile / 100)),
                Cell(percent(rate), note=notes.number(reasons[0]) if rate is None else None),
                Cell(interval or EM_DASH, note=None if interval else notes.number(reasons[1])),
            ]
        )
    if not rows:
        return None
    heads = [Column("Percentile"), Column("Threshold", hint="score, no unit"), Column("Asked-for rate")]
    heads += [Column("Realised rate", hint="healthy test rows"), Column("Interval")]
    name = f" ({detector_label(data.detector)})" if data.detector else ""
    caption = f"Tiers of the release detector{name}: share of healthy rows above the threshold"
    return Table(caption, [Column("Tier", numeric=False), *heads], rows, notes.reasons)


def _calibrated_table(data: ReportData) -> Table | None:
    """Thresholds of every detector, with the interval of the rate and the tune failures caught."""
    calibration = as_map(data.calibration)
    detectors = as_map(calibration.get("detectors"))
    order = [name for name in detector_order(data) if name in detectors]
    rows = []
    for name in [*order, *sorted(set(detectors) - set(order))]:
        cells = [Cell(detector_label(name), detector=name)]
        for tier in TIERS:
            cells += _calibrated_cells(as_map(as_map(detectors[name]).get(tier)))
        rows.append(cells)
    if not rows:
        return None
    caption = (
        f"Calibrated on {count(calibration.get('rows'))} healthy rows of {count(calibration.get('machines'))} machines:"
        " threshold, interval of the false-positive rate, and tune failures caught"
    )
    heads = [Column(f"{tier.capitalize()}, {what}") for tier in TIERS for what in ("threshold", "rate", "caught")]
    return Table(caption, [Column("Detector", numeric=False), *heads], rows)


def _calibrated_cells(figures: Mapping[str, Any]) -> list[Cell]:
    caught = figures.get("tune_caught")
    caught = len(caught) if isinstance(caught, list) else caught
    of_how_many = as_number(figures.get("tune_failures"))
    told = f"{count(caught)} of {count(of_how_many)}" if as_number(caught) is not None and of_how_many else EM_DASH
    rate = percent_interval(figures.get("rate_low"), figures.get("rate_high")) or EM_DASH
    return [Cell(number(figures.get("threshold"))), Cell(rate), Cell(told)]


def _test_scores(data: ReportData) -> list[tuple[str, FloatN, FloatN]]:
    """(detector, healthy test scores, test scores before failures), for each detector with any finite score."""
    table = data.scores
    if table is None:
        return []
    order = detector_order(data)
    names = [name.removeprefix("score_") for name in table.column_names if name.startswith("score_")]
    names.sort(key=lambda name: (order.index(name) if name in order else len(order), name))
    test = _equals(table, "role", "test") if "role" in table.column_names else np.ones(table.num_rows, bool)
    healthy, faulty = (test & _equals(table, "label", label) for label in ("healthy", "faulty"))
    found = []
    for name in names:
        scores = table[f"score_{name}"].to_numpy()
        finite = np.isfinite(scores)
        if (finite & (healthy | faulty)).any():
            found.append((name, scores[healthy & finite], scores[faulty & finite]))
    return found


def _equals(table: pa.Table, column: str, value: str) -> BoolN:
    codes, names = codes_and_names(table[column])
    return np.asarray(codes == names.index(value)) if value in names else np.zeros(table.num_rows, bool)


def comparison_section(data: ReportData) -> Section:
    """The table of all detectors, where a baseline wins, who caught what."""
    title = "Detectors compared"
    if not as_map(data.evaluation.get("detectors")):
        return Section("comparison", title)
    sentence, beaten = baseline_sentence(data)
    blocks: list[Block] = [Text(sentence, "finding" if beaten else "plain")] if sentence else []
    blocks.append(comparison_table(data))
    healthy = max((len(group) for _, group, _ in _test_scores(data)), default=0)
    chart = roc_chart(data.roc, detector_order(data), healthy)
    blocks += [Charts([chart])] if chart else []
    blocks += [table for table in (_at_false_episodes(data), _per_machine(data), _caught_matrix(data)) if table]
    only = only_caught(data)
    blocks += [Items(only, "Caught by one detector alone")] if only else []
    lead = (
        "All detectors judge the same rows at the same budget of false episodes. The best of each column is in bold; "
        "intervals stand beneath."
    )
    return Section("comparison", title, lead, blocks)


def _at_false_episodes(data: ReportData) -> Table | None:
    """Failures caught when 0, 1, 3 false episodes are allowed in all on the calibration rows."""
    detectors, apart = as_map(data.evaluation.get("detectors")), as_map(data.evaluation.get("at_false_episodes"))
    given = {
        name: as_map(apart.get(name) or as_map(detectors[name]).get("at_false_episodes"))
        for name in detector_order(data)
    }
    given = {name: levels for name, levels in given.items() if levels}
    levels = sorted({str(level) for value in given.values() for level in value if str(level).isdigit()}, key=int)
    if not levels:
        return None
    rows = [
        [Cell(detector_label(name), detector=name), *(_caught_at(values.get(level)) for level in levels)]
        for name, values in given.items()
    ]
    heads = [Column(f"{plural(int(level), 'false episode')} allowed") for level in levels]
    caption = "Failures caught at thresholds that allow so many false episodes in all on the calibration rows"
    return Table(caption, [Column("Detector", numeric=False), *heads], rows)


def _caught_at(value: Any) -> Cell:
    figures = as_map(value)
    if not figures:
        return Cell(count(value))
    false = as_number(figures.get("false_episodes"))
    return Cell(count(figures.get("events_caught")), "" if false is None else f"{count(false)} false on the test rows")


def _per_machine(data: ReportData) -> Table | None:
    """AUROC within each machine, where the evaluation wrote it."""
    machines = as_map(data.evaluation.get("per_machine"))
    names = [name for name in detector_order(data) if any(name in as_map(value) for value in machines.values())]
    if not names:
        return None
    rows = []
    for machine in sorted(machines):
        values = {name: as_number(as_map(machines[machine]).get(name)) for name in names}
        best = max((value for value in values.values() if value is not None), default=None)
        rows.append(
            [
                Cell(str(machine)),
                *(Cell(number(value), best=value is not None and value == best) for value in values.values()),
            ]
        )
    columns = [Column("Machine", numeric=False), *(Column(detector_label(name)) for name in names)]
    return Table("AUROC within each machine; the best of each row is in bold", columns, rows)


def _caught_matrix(data: ReportData) -> Table | None:
    """Failure by failure: lead time of each detector, or a dash."""
    events, names = judged_failures(data), detector_order(data)
    if not any(as_map(event.get("detectors")) for event in events):
        return None
    rows = []
    for event in events:
        mode = str(event.get("failure_mode") or EM_DASH).replace("_", " ")
        cells = [Cell(str(event.get("failure_id", EM_DASH))), Cell(str(event.get("machine_id", EM_DASH))), Cell(mode)]
        for name in names:
            verdict = as_map(as_map(event.get("detectors")).get(name))
            cells.append(Cell(short_hours(verdict.get("lead_time_hours")) if verdict.get("caught") else EM_DASH))
        rows.append(cells)
    heads = [Column(name, numeric=False) for name in ("Failure", "Machine", "Mode")]
    caption = "Failure by failure: lead time of the detectors that caught it, a dash for those that did not"
    return Table(caption, [*heads, *(Column(detector_label(name)) for name in names)], rows)
