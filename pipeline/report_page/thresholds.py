"""How sure are the thresholds: what each tier asked for and reached, the tail it stands on, and the alert policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report_page.blocks import (
    EM_DASH,
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Footnotes,
    Items,
    Section,
    Table,
    as_map,
    as_number,
    count,
    number,
    percent,
    percent_interval,
    plural,
)
from pipeline.report_page.colours import detector_label
from pipeline.report_page.data import ReportData, detector_order, test_scores, threshold_setters
from pipeline.report_page.judgement import null_reason
from pipeline.report_page.over_time import over_time_group
from pipeline.report_page.policy import policy_blocks
from pipeline.report_page.score_charts import rate_chart, tail_chart
from pipeline.report_page.what_if import what_if_chart

TIERS = ("low", "page")
LISTED = 5


def thresholds_section(data: ReportData) -> Section:
    """What the tiers really do, and how sure that is."""
    title = "How sure are the thresholds?"
    calibration, blocks = as_map(data.calibration), list[Block]()
    tiers, basis = _tier_table(data), _basis_table(data)
    blocks += [table for table in (tiers, basis) if table]
    charts = _charts(data)
    blocks += [Charts(charts)] if charts else []
    other = what_if_chart(data.what_if) if data.what_if else None
    blocks += [Charts([other])] if other else []
    setters = _setters_table(data)
    blocks += [setters] if setters else []
    calibrated = _calibrated_table(data)
    blocks += [calibrated] if calibrated else []
    blocks += policy_blocks(data)
    of_choice = as_map(calibration.get("choice")).get("notes") or []
    said = [str(text) for text in calibration.get("notes") or [] if text not in of_choice]
    blocks += [Items(said, "Said by the calibration")] if said else []
    blocks += over_time_group(data)
    lead = (
        "Thresholds are percentiles of healthy calibration rows, which are later than every row that fitted a model or "
        "a baseline; where those are too few, a tail fitted to the largest scores goes on. What a threshold then "
        "really does is counted on healthy test rows, later still."
    )
    return Section("thresholds", title, "Thresholds", thresholds_answer(data), lead, blocks)


def thresholds_answer(data: ReportData) -> str:
    """What the page tier was asked for and reached."""
    page = as_map(as_map(data.evaluation.get("tiers")).get("page"))
    percentile, rate = as_number(page.get("percentile")), as_number(page.get("false_positive_rate"))
    if percentile is None or rate is None:
        return ""
    asked, low, high = 1 - percentile / 100, as_number(page.get("ci_low")), as_number(page.get("ci_high"))
    told = f"The page threshold was asked to let {percent(asked)} of healthy rows through and lets {percent(rate)}"
    if low is None or high is None:
        return f"{told}; how sure that is, the data cannot tell."
    verdict = (
        "as asked, within its interval"
        if low <= asked <= high
        else ("more" if low > asked else "fewer") + " than asked for"
    )
    return f"{told} (interval {percent_interval(low, high)}): {verdict}."


def _setters_table(data: ReportData) -> Table | None:
    """The machines whose calibration rows lie above the low threshold: they set both tiers for the whole fleet."""
    setters = threshold_setters(data)
    if not setters:
        return None
    rows = [
        [Cell(name), Cell(count(above)), Cell(percent(share), share=share)] for name, above, share in setters[:LISTED]
    ]
    caption = f"Which machines set the thresholds: calibration rows at or above low, {plural(len(setters), 'machine')}"
    return Table(caption, [Column("Machine", numeric=False), Column("Rows"), Column("Share")], rows)


def _charts(data: ReportData) -> list[Chart]:
    scores = {name: healthy for name, healthy, _ in test_scores(data)}
    found = []
    if data.detector in scores:
        tiers = as_map(data.evaluation.get("tiers"))
        found.append(tail_chart(data.detector, scores[data.detector], tiers, data.thresholds(data.detector)))
    found.append(rate_chart(as_map(as_map(data.calibration).get("detectors")), detector_order(data)))
    return [chart for chart in found if chart]


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


def _basis_table(data: ReportData) -> Table | None:
    """How many calibration rows the release detector's thresholds need and have, and which one is extrapolated."""
    detector = as_map(as_map(as_map(data.calibration).get("detectors")).get(data.detector))
    notes, rows = Footnotes(), []
    for tier in TIERS:
        figures = as_map(detector.get(tier))
        if as_number(figures.get("rows_needed")) is None:
            continue
        basis = str(figures.get("basis", ""))
        counted = basis == "rows"
        told = basis if basis == "largest scores" else f"extrapolated: {basis}"
        rows.append(
            [
                Cell(tier.capitalize()),
                Cell(count(figures.get("rows_needed"))),
                Cell(count(detector.get("rows"))),
                Cell(count(figures.get("rows_above"))),
                Cell(count(figures.get("machine_days_above"))),
                Cell("counted rows")
                if counted
                else Cell(told, note=notes.number(tail_sentence(as_map(detector.get("tail"))))),
            ]
        )
    if not rows:
        return None
    heads = [Column("Rows needed", hint="ten above the threshold"), Column("Calibration rows")]
    heads += [
        Column("Rows above", hint="the threshold"),
        Column("Machine-days above", hint="the threshold"),
        Column("Threshold comes from", numeric=False),
    ]
    name = f" ({detector_label(data.detector)})" if data.detector else ""
    caption = f"What the thresholds{name} stand on: calibration rows that their percentile needs, and those there are"
    return Table(caption, [Column("Tier", numeric=False), *heads], rows, notes.reasons)


def tail_sentence(fit: Mapping[str, Any]) -> str:
    """What an extrapolated threshold rests on.

    >>> tail_sentence({"kind": "none", "reason": "No tail fits."})
    'No tail fits. The threshold is among the largest scores.'
    """
    if fit.get("kind") not in ("pareto", "exponential"):
        reason = str(fit.get("reason") or "No tail was fitted.")
        return f"{reason} The threshold is among the largest scores."
    kind = "A generalised Pareto tail" if fit["kind"] == "pareto" else "An exponential tail"
    tail, shape = as_map(fit.get("tail")), as_number(fit.get("shape"))
    held = " (held at 0 beyond the tenth largest)" if shape is not None and shape < 0 else ""
    told = f", shape {shape:.2f}{held}" if shape is not None and fit["kind"] == "pareto" else ""
    said = (
        f"{kind} of the {count(fit.get('excesses'))} largest calibration scores, which count as "
        f"{number(fit.get('independent'), 3)} independent ones{told}, goes on from {number(tail.get('start'))}; "
        f"samples of it lie as far from their fit in {percent(fit.get('p_value'))} of the cases."
    )
    return f"{said} {fit['reason']}" if fit.get("reason") else said


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
