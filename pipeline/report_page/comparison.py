"""Which detector, at the same budget, and what did only one catch: pairs, totals, and every failure's verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.report_page.against import mode_table, pair_blocks
from pipeline.report_page.blocks import (
    EM_DASH,
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Items,
    Section,
    Table,
    Text,
    as_map,
    as_number,
    count,
    number,
    plural,
    sentence_list,
    short_hours,
)
from pipeline.report_page.charts import Json, axis, line, roc_chart
from pipeline.report_page.colours import detector_colour, detector_label
from pipeline.report_page.data import ReportData, detector_order, judged_failures, test_scores
from pipeline.report_page.judgement import baseline_sentence, comparison_table, only_caught
from pipeline.report_page.names import escaped
from pipeline.report_page.price import price_chart


def comparison_section(data: ReportData) -> Section:
    """Who caught what at the same budget; pairs before totals."""
    title, short = "Which detector, at the same budget, and what did only one catch?", "Detectors"
    if not as_map(data.evaluation.get("detectors")):
        return Section("detectors", title, short)
    only = only_caught(data)
    blocks: list[Block] = [Items(only, "Caught by one detector alone")] if only else []
    charts = [chart for chart in (caught_chart(data), price_chart(data)) if chart]
    blocks += [Charts(charts)] if charts else []
    blocks += [table for table in (mode_table(data), _caught_matrix(data)) if table]
    pairs = pair_blocks(data)
    counted = None if pairs else _pairs_table(data)  # an evaluation without differences
    blocks += [*pairs, *([counted] if counted else [])]
    sentence, beaten = baseline_sentence(data)
    blocks += [Text(sentence, "finding" if beaten else "plain")] if sentence else []
    blocks.append(comparison_table(data))
    healthy = max((len(group) for _, group, _ in test_scores(data)), default=0)
    chart = roc_chart(data.roc, detector_order(data), healthy)
    blocks += [Charts([chart])] if chart else []
    blocks += [table for table in (_at_false_episodes(data), _per_machine(data), _unseen(data)) if table]
    lead = (
        "All detectors judge the same rows at the same budget of false episodes. Which failures only one of them "
        "caught says more than totals do. In the table the best of each column is in bold, intervals stand beneath."
    )
    return Section("detectors", title, short, comparison_answer(data), lead, blocks)


def comparison_answer(data: ReportData) -> str:
    """Who caught most, and whether chance would have done as well."""
    figures = {name: as_map(value) for name, value in as_map(data.evaluation.get("detectors")).items()}
    caught = {
        name: value
        for name in detector_order(data)
        if (value := as_number(figures[name].get("events_caught"))) is not None
    }
    events = max((as_number(value.get("events")) or 0 for value in figures.values()), default=0)
    if not caught or not events:
        return "No failure could be judged, so detectors are compared by their ranking of rows alone."
    most = max(caught.values())
    if not most:
        return f"No detector caught any of {plural(int(events), 'failure')}."
    names = [name for name, value in caught.items() if value == most]
    who = "All detectors" if len(names) == len(caught) > 1 else sentence_list([detector_label(name) for name in names])
    told = f"{who} caught {count(most)} of {plural(int(events), 'failure')}"
    told += "" if len(names) == len(caught) else ", the most"
    own = as_number(figures.get(data.detector, {}).get("events_caught"))
    if data.detector not in names and own is not None:
        told += f"; the release's own, {detector_label(data.detector)}, caught {count(own)}"
    return f"{told}."


def caught_chart(data: ReportData) -> Chart | None:
    """Failures caught with their interval, and beside each what chance catches."""
    figures = {name: as_map(as_map(data.evaluation.get("detectors")).get(name)) for name in detector_order(data)}
    names = [
        name
        for name, own in figures.items()
        if as_number(own.get("events_caught")) is not None and as_number(own.get("events"))
    ]
    if not names:
        return None
    traces: list[Json] = []
    words: list[str] = []
    for place, name in enumerate(reversed(names)):
        own = figures[name]
        caught, events, chance = (
            as_number(own.get(key)) or 0.0 for key in ("events_caught", "events", "events_by_chance")
        )
        bounds = own.get("events_caught_ci")
        if isinstance(bounds, list) and len(bounds) == 2:
            span = [float(bound) * events for bound in bounds]
            trace = line("90 % interval", span, [place, place], detector_colour(name), width=3)
            traces.append({**trace, "showlegend": False, "hoverinfo": "skip"})
        dot = {
            "type": "scatter",
            "mode": "markers",
            "x": [caught],
            "y": [place],
            "name": "caught",
            "showlegend": place == 0,
        }
        hover = f"%{{x}} of {events:.0f} caught<extra></extra>"
        traces.append({**dot, "marker": {"size": 13, "color": detector_colour(name)}, "hovertemplate": hover})
        by_chance = {**dot, "x": [chance], "name": "by chance", "hovertemplate": "%{x:.2f} by chance<extra></extra>"}
        traces.append(
            {**by_chance, "marker": {"size": 11, "symbol": "line-ns-open", "color": "@ink", "line": {"width": 2.5}}}
        )
        words.insert(0, f"{detector_label(name)} {count(caught)} against {chance:.1f} by chance")
    most = max(as_number(own.get("events")) or 0 for own in figures.values())
    layout = {
        "xaxis": axis("failures caught", range=[-0.3, most + 0.3], tickformat="d", dtick=max(1, round(most / 10))),
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": [escaped(detector_label(name)) for name in reversed(names)],
            "range": [-0.6, len(names) - 0.4],
            "showgrid": False,
        },
    }
    caption = (
        f"Of {count(most)} failures: {sentence_list(words)}. Lines are 90 % intervals; too few failures make them wide."
    )
    return Chart("caught", "Failures caught, against chance", caption, traces, layout, 96 + 40 * len(names))


def _pairs_table(data: ReportData) -> Table | None:
    """The release detector against each other one, failure by failure."""
    events, names = judged_failures(data), [name for name in detector_order(data) if name != data.detector]
    if not events or data.detector not in as_map(data.evaluation.get("detectors")) or not names:
        return None

    def caught(event: Any, name: str) -> bool:
        return bool(as_map(as_map(event.get("detectors")).get(name)).get("caught"))

    rows = []
    for name in names:
        pairs = [(caught(event, data.detector), caught(event, name)) for event in events]
        counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
        rows.append([Cell(detector_label(name), detector=name), *(Cell(count(value)) for value in counts)])
    own = detector_label(data.detector)
    heads = [Column("Both"), Column(f"Only {own}"), Column("Only the other"), Column("Neither")]
    return Table(f"In pairs: {own} against each other detector", [Column("Against", numeric=False), *heads], rows)


def _unseen(data: ReportData) -> Table | None:
    """The same comparison on machines that no model saw."""
    unseen = as_map(data.evaluation.get("unseen_machines"))
    if not as_map(unseen.get("detectors")):
        return None
    apart = replace(data, evaluation={**data.evaluation, **unseen})
    return comparison_table(apart, "The same on machines that no model saw")


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
