"""Is the data sound: rows set aside and why, what the log says of them, and what they are used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report_page.blocks import (
    EM_DASH,
    Block,
    Cell,
    Column,
    Columns,
    Items,
    Section,
    Table,
    Text,
    as_map,
    as_number,
    count,
    number,
    percent,
    plural,
    when,
)
from pipeline.report_page.data import ReportData
from pipeline.report_page.names import isolated

LISTED = 10
EXACT: Mapping[str, str] = {}  # names of the data, shown as they are
LOG_STATUS_WORDS = {
    "healthy": "healthy",
    "horizon": "in the horizon before a failure",
    "down": "down after a failure",
    "repair": "in repair",
    "run_in": "run-in after a repair",
    "off": "off",
    "untagged": "not tagged healthy",
    "unconfirmed": "younger than the horizon",
    "before_change": "before the fleet changed",
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
    quarantined, removed = as_map(validation.get("by_reason")), as_map(cleaning.get("by_machine"))
    candidates = [
        _count_table(by_status, "What the maintenance log says", "Status", LOG_STATUS_WORDS),
        _count_table(by_role, "What the rows are used for", "Role", ROLE_WORDS),
        _count_table(quarantined, "Quarantined by validation", "Reason", whole=validation.get("rows")),
        _count_table(removed, "Removed by cleaning, most first", "Machine", EXACT, whole=_cleaned(cleaning)),
    ]
    tables = [table for table in (*candidates, _time_order(split), _failure_use(split)) if table is not None]
    blocks: list[Block] = [Text(text) for text in _set_aside(validation, cleaning)]
    blocks += [Columns(tables)] if tables else []
    worst = cleaning.get("worst_episodes")
    blocks += _worst_episodes(worst) if isinstance(worst, list) else []
    blocks += _unused_failures(split)
    said = [str(text) for source in (data.snapshot, validation, split, cleaning) for text in _sentences(source)]
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
    removed = as_number(cleaning.get("removed"))
    if removed is not None:
        seen = _cleaned(cleaning)
        share = f" ({percent(removed / seen)} of {count(seen)})" if seen else ""
        found.append(
            f"Cleaning removed {plural(int(removed), 'row')}{share} from training and validation only. Calibration and "
            "test keep every row that the maintenance log calls healthy, or their false alarms would be flattered."
        )
    if cleaning.get("cap_hit"):
        found.append(
            "Cleaning reached its cap (clean.max_removed_share): more episodes were as odd, and stay in training."
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


def _worst_episodes(episodes: Sequence[Any]) -> list[Block]:
    rows = []
    for episode in map(as_map, episodes[:LISTED]):
        machine = str(episode.get("machine_id") or episode.get("machine") or EM_DASH)
        spans = [Cell(when(episode.get("start"))), Cell(when(episode.get("end")))]
        fate = "kept" if episode.get("removed") is False else "removed"
        rows.append(
            [Cell(machine), *spans, Cell(count(episode.get("rows"))), Cell(number(episode.get("error"))), Cell(fate)]
        )
    if not rows:
        return []
    heads = [
        Column("From (UTC)"),
        Column("To (UTC)"),
        Column("Rows"),
        Column("Error", hint="robust SD"),
        Column("Outcome"),
    ]
    return [Table("Worst episodes that cleaning saw", [Column("Machine", numeric=False), *heads], rows)]
