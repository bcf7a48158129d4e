"""The pages in the order of the questions: the summary first, at the end what to do next, with notes and limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from pipeline.report_page.blocks import (
    EM_DASH,
    Block,
    Cell,
    Column,
    Details,
    Figures,
    Group,
    Items,
    Section,
    Steps,
    Table,
    Text,
    as_map,
    as_number,
    count,
    interval,
    number,
    parse_time,
    percent,
    percent_interval,
    plural,
    short_hours,
    when,
)
from pipeline.report_page.codes import codes_section
from pipeline.report_page.colours import detector_label
from pipeline.report_page.comparison import comparison_section
from pipeline.report_page.crew import crew_section
from pipeline.report_page.data import ReportData
from pipeline.report_page.failures import failures_section
from pipeline.report_page.inputs import data_section
from pipeline.report_page.judgement import cautions, null_reason, release_figures
from pipeline.report_page.model import model_section
from pipeline.report_page.next_steps import next_steps
from pipeline.report_page.thresholds import thresholds_section

NOT_WHY = "A high error says that something changed, never why. An alert is a reason to look, not a diagnosis."
MISSING = {
    "data": "no stage wrote what it set aside",
    "model": "no neural detector was trained, or none left a history",
    "codes": "no autoencoder was judged, or the evaluation wrote no codes",
    "thresholds": "nothing was calibrated",
    "detectors": "the evaluation compared no detectors",
    "failures": "the evaluation wrote no failures",
    "crew": "the evaluation wrote no alert episodes",
}


def sections(data: ReportData) -> list[Section]:
    """Every page, in its order; an empty one says why."""
    built = [
        data_section(data),
        model_section(data),
        codes_section(data),
        thresholds_section(data),
        comparison_section(data),
        failures_section(data),
        crew_section(data),
        next_section(data),
    ]
    pages = [section if section.blocks else _missing(section, data) for section in built]
    return [summary_section(data, pages), *pages]


def _missing(section: Section, data: ReportData) -> Section:
    return replace(section, missing=data.missing.get(section.id) or section.missing or MISSING[section.id], answer="")


def summary_section(data: ReportData, pages: Sequence[Section]) -> Section:
    """The headline, key figures, what to beware of, and each page's answer."""
    rows = [
        [
            Cell(f"{index}. {page.title}", link=page.id),
            Cell(page.answer or (f"Not available: {page.missing}." if page.missing else "See the page.")),
        ]
        for index, page in enumerate(pages, 1)
    ]
    columns = [Column("Question", numeric=False, prose=True), Column("Answer", numeric=False, prose=True)]
    answers = Table("Eight questions, each with a page of its own", columns, rows)
    return Section("summary", headline(data), "Summary", blocks=[*opening(data), answers])


def headline(data: ReportData) -> str:
    """The one sentence at the top."""
    figures = release_figures(data)
    name = detector_label(data.detector) if data.detector else "No detector"
    caught, events = as_number(figures.get("events_caught")), as_number(figures.get("events"))
    if caught is None or not events:
        return f"{name}: no failure could be judged."
    return f"{name} caught {count(caught)} of {plural(int(events), 'failure')}."


def opening(data: ReportData) -> list[Block]:
    """Key figures, what the release does in service, and what to beware of."""
    blocks: list[Block] = [key_figures(data)]
    in_service = _in_service_sentence(as_map(data.evaluation.get("in_service")))
    blocks += [Text(in_service)] if in_service else []
    if data.manifest.get("provisional"):
        since = (
            f" (the fleet changed on {when(data.manifest['changed_at'])} UTC)"
            if data.manifest.get("changed_at")
            else ""
        )
        text = (
            f"Provisional release{since}: its healthy rows are not yet confirmed, and it is rebuilt once the horizon "
            "has passed."
        )
        blocks.append(Text(text, "warning"))
    warnings = cautions(data)
    blocks += [Items(warnings, "Before you rely on these figures", "warning")] if warnings else []
    return blocks


def _in_service_sentence(figures: Mapping[str, Any]) -> str:
    """What the page tier, whose threshold differs from the comparison's, did on the test rows."""
    caught, events = as_number(figures.get("events_caught")), as_number(figures.get("events"))
    false, days = as_number(figures.get("false_episodes")), as_number(figures.get("machine_days"))
    if caught is None or not events or false is None:
        return ""
    over = f" in {count(days) if days >= 10 else number(days, 2)} machine-days" if days else ""
    told = f"{count(caught)} of {plural(int(events), 'failure')}, with {plural(int(false), 'false episode')}{over}"
    return (
        "The figures above compare detectors at one budget. In service, alerts come from the page tier: on the same "
        f"rows it caught {told}."
    )


def key_figures(data: ReportData) -> Figures:
    """Failures caught, false episodes a day, lead time, page-tier rate; each with what stands beside it."""
    figures, at = release_figures(data), ("detectors", str(data.detector))
    page = as_map(as_map(data.evaluation.get("tiers")).get("page"))

    def shown(text: str, beside: str, value: Any, *path: str) -> tuple[str, str]:
        return (EM_DASH, null_reason(data, *path)) if as_number(value) is None else (text, beside)

    caught, chance = figures.get("events_caught"), figures.get("events_by_chance")
    false, lead = figures.get("false_episodes_per_day"), figures.get("median_lead_time_hours")
    rate = page.get("false_positive_rate")
    by_chance = "chance level not known" if as_number(chance) is None else f"{number(chance, 2)} by chance"
    days = (as_number(lead) or 0) / 24
    since = "first alert to failure" + (f", {days:.1f} days" if days >= 2 else "")
    return Figures(
        [
            (
                "Failures caught",
                *shown(f"{count(caught)} of {count(figures.get('events'))}", by_chance, caught, *at, "events_caught"),
            ),
            (
                "False episodes per day",
                *shown(number(false, 2), _false_beside(data), false, *at, "false_episodes_per_day"),
            ),
            ("Median lead time", *shown(short_hours(lead), since, lead, *at, "median_lead_time_hours")),
            (
                "Page tier, false positives",
                *shown(percent(rate), _rate_beside(data, page), rate, "tiers", "page", "false_positive_rate"),
            ),
        ]
    )


def _false_beside(data: ReportData) -> str:
    bounds = interval(release_figures(data).get("false_episodes_per_day_ci"))
    return f"whole fleet; interval {bounds}" if bounds else "whole fleet"


def _rate_beside(data: ReportData, page: Mapping[str, Any]) -> str:
    bounds, percentile = percent_interval(page.get("ci_low"), page.get("ci_high")), as_number(page.get("percentile"))
    text = (
        f"interval {bounds}" if bounds else f"no interval: {null_reason(data, 'tiers', 'page', 'ci_low').rstrip('.')}"
    )
    return text if percentile is None else f"{text}; asked for {percent(1 - percentile / 100)}"


def facts(data: ReportData) -> list[tuple[str, str]]:
    """What data and which release, as pairs for the page's head; what is not known is left out."""
    dataset, split = as_map(data.evaluation.get("dataset")), as_map(data.split)
    in_log = as_number(as_map(split.get("failures")).get("total"))
    seconds = as_number(data.fleet.get("interval_seconds"))
    begin, end = _span(data)
    pairs = [
        ("Data set", dataset.get("name") or data.fleet.get("name") or data.source),
        ("Source", data.source),
        ("Rows", _known(count, data.snapshot.get("rows"), as_map(split.get("rows")).get("total"), dataset.get("rows"))),
        ("Test rows", _known(count, dataset.get("test_rows"))),
        ("Machines", _known(count, data.snapshot.get("machines"), dataset.get("machines"))),
        ("Frequency bins", _known(count, data.snapshot.get("bins"), dataset.get("bins"), data.fleet.get("bins"))),
        (
            "Failures judged" if in_log is None else "Failures in the log",
            _known(count, in_log, dataset.get("failures")),
        ),
        ("Span (UTC)", f"{when(begin)} to {when(end)}" if begin and end else ""),
        ("Interval", f"{number(seconds)} s" if seconds else ""),
        ("Release detector", detector_label(data.detector) if data.detector else ""),
        ("Release", data.release_id),
    ]
    return [(name, str(value)) for name, value in pairs if value]


def _known(show: Any, *values: Any) -> str:
    """The first figure that is known, as text."""
    return next((str(show(value)) for value in values if as_number(value) is not None), "")


def _span(data: ReportData) -> tuple[Any, Any]:
    boundaries = as_map(as_map(data.split).get("boundaries"))
    validated = as_map(data.validation)  # rows whose clock is right
    places = ((validated, "first", "last"), (data.snapshot, "first", "last"), (boundaries, "start", "end"))
    for source, begin, end in places:
        if parse_time(source.get(begin)) and parse_time(source.get(end)):
            return source[begin], source[end]
    return None, None


def next_section(data: ReportData) -> Section:
    """What to do; then limits, null figures with their reasons, and where everything came from."""
    steps = next_steps(data)
    answer = f"{plural(len(steps), 'thing')} to do; first: {steps[0].title[0].lower()}{steps[0].title[1:]}."
    blocks: list[Block] = [Steps(steps), Group("limits", "Limits and provenance", _limits(data))]
    return Section("next", "What to do next?", "Next", answer, "", blocks)


def _limits(data: ReportData) -> list[Block]:
    blocks: list[Block] = [Text(NOT_WHY, "finding")]
    said = list(dict.fromkeys(str(text) for text in (*data.notes, *(data.evaluation.get("notes") or []))))
    blocks += [Items(said, "Notes of the evaluation")] if said else []
    reasons = _flat(as_map(data.evaluation.get("null_reasons")))
    if reasons:
        heads = [Column("Figure", numeric=False), Column("Reason", numeric=False, prose=True)]
        body = [[Cell(name), Cell(reason)] for name, reason in reasons]
        blocks.append(Table("Figures that the data cannot tell", heads, body))
    provenance = _provenance(data)
    if provenance:
        heads = [Column("What", numeric=False), Column("Value", numeric=False, prose=True)]
        blocks.append(Table("Provenance", heads, [[Cell(name), Cell(value)] for name, value in provenance]))
    if data.params:
        plain = json.loads(json.dumps(data.params, default=str))
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        blocks.append(Details("The settings that made these figures", text))
    return blocks


def _provenance(data: ReportData) -> list[tuple[str, str]]:
    budget = as_number(as_map(data.evaluation.get("budget")).get("false_episodes_per_machine_day"))
    inputs = as_map(data.manifest.get("inputs"))
    pairs = [
        ("Release", data.release_id),
        ("Release detector", detector_label(data.detector) if data.detector else None),
        ("Seed", data.params.get("seed", data.manifest.get("seed"))),
        ("Source", data.source),
        ("Budget", None if budget is None else f"{budget:g} false episodes per machine and day"),
        (
            "Precision and device",
            " on ".join(str(data.manifest[key]) for key in ("precision", "device") if data.manifest.get(key)),
        ),
        *((f"SHA-256 of {name}", value) for name, value in sorted(inputs.items())),
    ]
    return [(name, str(value)) for name, value in pairs if value is not None and value != ""]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested reasons as (dotted name, reason)."""
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        path = f"{prefix}{name}"
        found += _flat(value, f"{path}.") if isinstance(value, Mapping) else [(path, str(value))]
    return found
