"""Is the data sound: rows set aside and why, what the log says of them, and what they are used for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report_page.blocks import (
    Block,
    Cell,
    Column,
    Columns,
    Group,
    Items,
    Link,
    Section,
    Table,
    Text,
    as_map,
    as_number,
    count,
    percent,
    plural,
    when,
)
from pipeline.report_page.cleaned import cleaning_blocks, gate_words
from pipeline.report_page.data import DATA_DOCS, ReportData
from pipeline.report_page.names import isolated

EXACT: Mapping[str, str] = {}  # names of the data, shown as they are
LOG_STATUS_WORDS = {
    "healthy": "healthy",
    "alert": "in a confirmed alert",
    "horizon": "in the horizon before a failure",
    "down": "down after a failure",
    "repair": "in repair",
    "run_in": "run-in after a repair",
    "off": "off",
    "untagged": "not tagged healthy",
    "unconfirmed": "younger than the horizon",
    "quarantined": "quarantined by validation",
}
ROLE_WORDS = {
    "none": "none (scored only)",
    "baseline": "baseline (describes its machine)",
    "train": "train",
    "validation": "validation (early stopping)",
    "calibration": "calibration (thresholds)",
    "tune": "tune (before tune failures)",
    "test": "test",
}


def data_section(data: ReportData) -> Section:
    """Rows by what became of them, and why."""
    validation, split, cleaning = as_map(data.validation), as_map(data.split), as_map(data.cleaning)
    by_role = as_map(as_map(split.get("rows")).get("by_role")) or as_map(
        as_map(data.evaluation.get("dataset")).get("roles")
    )
    by_status = as_map(as_map(split.get("rows")).get("by_log_status"))
    quarantined, suspect = as_map(validation.get("by_reason")), as_map(validation.get("suspect_by_reason"))
    removed = as_map(cleaning.get("by_machine"))
    candidates = [
        _count_table(by_status, "What the maintenance log says", "Status", LOG_STATUS_WORDS),
        _count_table(by_role, "What the rows are used for", "Role", ROLE_WORDS),
        _count_table(quarantined, "Quarantined by validation", "Reason", whole=validation.get("rows")),
        _count_table(suspect, "Suspect by validation", "Reason", whole=validation.get("rows")),
        _count_table(removed, "Removed by cleaning, most first", "Machine", EXACT, whole=_cleaned(cleaning)),
    ]
    tables = [table for table in (*candidates, _time_order(split), _failure_use(split)) if table is not None]
    blocks: list[Block] = [Text(text) for text in _set_aside(validation, cleaning)]
    blocks += [Columns(tables)] if tables else []
    blocks += _unused_failures(split)
    blocks += _validation_blocks(data) + cleaning_blocks(data)
    verdict = gate_words(cleaning)  # stands above
    notes = [str(text) for source in (data.snapshot, validation, split, cleaning) for text in _sentences(source)]
    said = [text for text in notes if text != verdict]
    blocks += [Items(said, "Said by the stages")] if said else []
    lead = "What was used, what was set aside, and why."
    return Section("data", "Is the data sound?", "Data", data_answer(data), lead, blocks)


def data_answer(data: ReportData) -> str:
    """How much was set aside, and the main reason."""
    validation, cleaning = as_map(data.validation), as_map(data.cleaning)
    rows, quarantined = as_number(validation.get("rows")), as_number(validation.get("quarantined"))
    removed, seen = as_number(cleaning.get("removed")), _cleaned(cleaning)
    parts = []
    if quarantined is not None and rows:
        reasons = {
            str(name): value for name, raw in as_map(validation.get("by_reason")).items() if (value := as_number(raw))
        }
        main = f", mostly {isolated(_words(max(reasons, key=lambda name: reasons[name])))}" if reasons else ""
        share = percent(quarantined / rows) if quarantined else "None"
        parts.append(f"{share} of {count(rows)} rows were quarantined{main}")
    if removed is not None and seen:
        parts.append(f"{percent(removed / seen)} of the training rows were removed as unlike healthy ones")
    if parts:
        return f"{'; '.join(parts)}."
    dataset = as_map(data.evaluation.get("dataset"))
    if as_number(dataset.get("rows")) is None:
        return ""
    return (
        f"{count(dataset['rows'])} rows of {count(dataset.get('machines'))} machines; nothing was validated or cleaned."
    )


def _sentences(metrics: Mapping[str, Any]) -> list[Any]:
    """Notes and warnings of a stage; warnings may be counts by check."""
    found = list(metrics.get("notes") or [])
    warnings = metrics.get("warnings") or []
    if isinstance(warnings, Mapping):
        return found + [f"{_words(name)}: {count(value)} rows (kept)." for name, value in warnings.items() if value]
    return found + list(warnings)


def _cleaned(cleaning: Mapping[str, Any]) -> float | None:
    """How many rows cleaning looked at."""
    return next((value for key in ("looked_at", "rows") if (value := as_number(cleaning.get(key)))), None)


def _set_aside(validation: Mapping[str, Any], cleaning: Mapping[str, Any]) -> list[str]:
    """One sentence for validation and one for cleaning."""
    found = []
    rows, quarantined = as_number(validation.get("rows")), as_number(validation.get("quarantined"))
    if quarantined is not None:
        share = f" ({percent(quarantined / rows)} of {count(rows)})" if rows else ""
        found.append(
            f"Validation quarantined {plural(int(quarantined), 'row')}{share} for facts of the spectrum itself."
        )
    suspect = as_number(validation.get("suspect"))
    if suspect:
        share = f" ({percent(suspect / rows)} of {count(rows)})" if rows else ""
        found.append(
            f"Validation holds {plural(int(suspect), 'row')}{share} for suspect: odd, yet perhaps the failure itself. "
            "They train nothing, and are judged like any other."
        )
    given_back = as_number(validation.get("given_back"))
    if given_back:
        found.append(f"People gave {plural(int(given_back), 'row')} back from quarantine.")
    removed = as_number(cleaning.get("removed"))
    if removed is not None:
        seen = _cleaned(cleaning)
        share = f" ({percent(removed / seen)} of {count(seen)})" if seen else ""
        found.append(
            f"Cleaning removed {plural(int(removed), 'row')}{share} from training and validation only. Calibration and "
            "test keep every row that the maintenance log calls healthy, or their false alarms would be flattered."
        )
    return found


def _count_table(
    counts: Mapping[str, Any], caption: str, head: str, words: Mapping[str, str] | None = None, whole: Any = None
) -> Table | None:
    """Counts with their shares, most first; None where there are none."""
    known = {str(name): value for name, raw in counts.items() if (value := as_number(raw))}
    if not known:
        return None
    total = max(as_number(whole) or 0.0, sum(known.values()))
    body = [
        [
            Cell(_words(name) if words is None else words.get(name, name)),
            Cell(count(value)),
            Cell(percent(value / total), share=value / total),
        ]
        for name, value in sorted(known.items(), key=lambda item: (-item[1], item[0]))
    ]
    return Table(caption, [Column(head, numeric=False), Column("Rows"), Column("Share")], body)


def _words(name: str) -> str:
    return name.replace("_", " ") or "none given"


def _time_order(split: Mapping[str, Any]) -> Table | None:
    """From when to when each role's rows may lie, where one calendar holds for all machines."""
    edges = as_map(split.get("boundaries"))
    spans = [
        ("Train and validation", "start", "train_end"),
        ("Calibration", "calibration_start", "calibration_end"),
        ("Test", "test_start", "end"),
    ]
    body = [
        [Cell(name), Cell(when(edges[a])), Cell(when(edges[b]))]
        for name, a, b in spans
        if edges.get(a) and edges.get(b)
    ]
    if not body:
        return None
    return Table(
        "Time order, with purge gaps between",
        [Column("Rows", numeric=False), Column("From (UTC)"), Column("To (UTC)")],
        body,
    )


def _failure_use(split: Mapping[str, Any]) -> Table | None:
    failures = as_map(split.get("failures"))
    names = [("total", "In the log"), ("tune", "Tune the thresholds"), ("judged", "Judged"), ("unused", "Not used")]
    body = [
        [Cell(words), Cell(count(failures[key]))] for key, words in names if as_number(failures.get(key)) is not None
    ]
    return Table("Failures", [Column("Use", numeric=False), Column("Failures")], body) if body else None


def _unused_failures(split: Mapping[str, Any]) -> list[Block]:
    """Reason by reason, how many failures and which machines."""
    listed = as_map(split.get("failures")).get("unused_why")
    machines: dict[str, list[str]] = {}
    for entry in map(as_map, listed if isinstance(listed, list) else []):
        machines.setdefault(str(entry.get("why") or "no reason given"), []).append(str(entry.get("machine_id")))
    if not machines:
        return []
    rows = [
        [Cell(why), Cell(count(len(names))), Cell(", ".join(map(isolated, sorted(set(names)))))]
        for why, names in machines.items()
    ]
    columns = [
        Column("Why", numeric=False, prose=True),
        Column("Failures"),
        Column("Machines", numeric=False, prose=True),
    ]
    return [Table("Failures that neither tune nor judge", columns, rows)]


def _validation_blocks(data: ReportData) -> list[Block]:
    """The way to every rule and its result, and the days that break one."""
    blocks: list[Block] = []
    if data.data_docs:
        blocks.append(
            Link("Data Docs", DATA_DOCS, "every rule of validation and what it found, on pages of their own.")
        )
    blocks += _day_findings(data.days)
    return [Group("validation", "What validation found", blocks)] if blocks else []


def _day_findings(days: pa.Table | None) -> list[Block]:
    """Machine-days by the rule that they break; what most machines have on one day is the plant's."""
    if days is None:
        return []
    found: dict[tuple[str, bool], list[tuple[str, str]]] = {}
    for row in days.filter(pc.not_equal(days["findings"], "")).to_pylist():
        of_the_plant = row["of_the_plant"].split("+")
        for reason in row["findings"].split("+"):
            found.setdefault((reason, reason in of_the_plant), []).append((row["machine_id"], str(row["day"])))
    if not found:
        return [Text(f"None of {plural(days.num_rows, 'machine-day')} breaks a rule.")]
    body = []
    for (reason, plant), places in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        machines, dates = {machine for machine, _ in places}, [day for _, day in places]
        counts = [Cell(count(len(places))), Cell(count(len(machines)))]
        whose = Cell("the plant: most machines at once" if plant else "single machines")
        body.append([Cell(_words(reason)), *counts, Cell(min(dates)), Cell(max(dates)), whose])
    heads = [Column("Machine-days"), Column("Machines"), Column("First"), Column("Last")]
    columns = [Column("Finding", numeric=False), *heads, Column("Of", numeric=False)]
    caption = f"Machine-days that break a rule, of {count(days.num_rows)}"
    return [Table(caption, columns, body)]
