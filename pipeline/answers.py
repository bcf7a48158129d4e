"""What people have answered, as files of the data set: corrections of the cleaning, and alerts confirmed or dismissed.

`corrections.csv` has a line per interval: machine_id, start, end, action (keep or remove), note; times are ISO 8601,
without a zone UTC, as in the list of removed intervals that it corrects. `feedback.parquet` has a row per alert.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.clock import Clock
from pipeline.errors import ContractError
from pipeline.schema import FEEDBACK_SCHEMA, IntN
from pipeline.store import read_table, write_table, write_text

CORRECTIONS, FEEDBACK = "corrections.csv", "feedback.parquet"
COLUMNS = ("machine_id", "start", "end", "action", "note")
ACTIONS = ("keep", "remove")
STATES = ("open", "confirmed", "dismissed")


@dataclass(frozen=True)
class Correction:
    """Rows of one machine in [start, end] are kept or removed, whatever the statistics say."""

    machine: str
    start_us: int
    end_us: int
    keep: bool
    note: str
    line: int


def carry_answers(source: Path, snapshot: Path) -> None:
    """Copy the answers of a data set's folder, checked, into a snapshot; those that are gone go there too."""
    for name in (CORRECTIONS, FEEDBACK):
        old, new = source / name, snapshot / name
        if not old.is_file():
            new.unlink(missing_ok=True)
        elif name == CORRECTIONS:
            text = _text(old)
            parse_corrections(text, old)
            write_text(new, text)
        else:
            write_table(new, read_feedback(source))


def read_corrections(data_set: Path, machines: Sequence[str]) -> list[Correction]:
    """The corrections of a data set; none where it has no such file.

    Raises:
        ContractError: see parse_corrections; or a machine without rows in the data set.
    """
    path = data_set / CORRECTIONS
    found = parse_corrections(_text(path), path) if path.is_file() else []
    known = set(machines)
    for each in found:
        if each.machine not in known:
            expected = f"a machine of the data set (it has {len(known)})"
            raise ContractError.of(
                "machine_id", got=repr(each.machine), expected=expected, where=_place(path, each.line)
            )
    return found


def parse_corrections(text: str, where: Path) -> list[Correction]:
    """Read and check corrections.

    Raises:
        ContractError: a column is missing, a time cannot be read, an interval ends before it starts, an action is
            neither keep nor remove, or two intervals of a machine overlap and say the contrary; with the line.

    >>> line = "pump,2025-01-01T00:00Z,2025-01-02T00:00Z,keep,new foundation"
    >>> parse_corrections("machine_id,start,end,action,note\\n" + line, Path("corrections.csv"))[0].keep
    True
    """
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in COLUMNS[:-1] if name not in (reader.fieldnames or [])]
    if missing:
        raise ContractError.of("columns", got=f"no {', '.join(missing)}", expected=", ".join(COLUMNS), where=where)
    found = []
    for values in reader:
        place = _place(where, reader.line_num)
        if not any((value or "") for key, value in values.items() if key is not None):
            continue
        action = (values["action"] or "").strip()
        if action not in ACTIONS:
            raise ContractError.of("action", got=repr(action), expected="keep or remove", where=place)
        if not values["machine_id"]:
            raise ContractError.of("machine_id", got="nothing", expected="a machine", where=place)
        start, end = (_time(values[name], name, place) for name in ("start", "end"))
        if end < start:
            raise ContractError.of("end", got="a time before start", expected="start <= end", where=place)
        note = values.get("note") or ""
        found.append(Correction(values["machine_id"], start, end, action == "keep", note, reader.line_num))
    _check_contradictions(found, where)
    return found


def read_feedback(data_set: Path) -> pa.Table:
    """Alerts that people have answered or that stand open (FEEDBACK_SCHEMA); empty where there is no such file.

    Raises:
        ContractError: a column is missing, a state is unknown, or an alert closes before it opens; with the row.
    """
    path = data_set / FEEDBACK
    if not path.is_file():
        return FEEDBACK_SCHEMA.empty_table()
    table = read_table(path, schema=FEEDBACK_SCHEMA)
    for row, alert in enumerate(table.to_pylist()):
        place = f"{path}, row {row}"
        if alert["state"] not in STATES:
            raise ContractError.of("state", got=repr(alert["state"]), expected=f"one of {STATES}", where=place)
        if alert["closed"] is not None and alert["closed"] < alert["opened"]:
            raise ContractError.of("closed", got="a time before opened", expected="opened <= closed", where=place)
    return table


def corrections_csv(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Lines of a CSV file; names of the data are quoted where they need it, and never read as formulas.

    >>> corrections_csv([["=pump,1", "x"]], ["machine_id", "note"])
    'machine_id,note\\n"\\'=pump,1",x\\n'
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[f"'{cell}" if cell[:1] in ("=", "+", "@", "\t") else cell for cell in row] for row in rows])
    return out.getvalue()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ContractError.of("corrections", got="text that is not UTF-8", expected="UTF-8", where=path) from None


def _time(text: str | None, name: str, place: str) -> int:
    if not (text or "").strip():
        raise ContractError.of(name, got="nothing", expected="an ISO 8601 time", where=place)
    try:
        found: IntN = Clock("UTC").to_utc_us(pa.array([(text or "").strip()]), place)
    except ContractError:
        raise ContractError.of(name, got=repr(text), expected="an ISO 8601 time", where=place) from None
    return int(found[0])


def _check_contradictions(found: Sequence[Correction], where: Path) -> None:
    ordered = sorted(found, key=lambda each: (each.machine, each.start_us))
    reach: dict[bool, Correction] = {}
    for each in ordered:
        other = reach.get(not each.keep)
        if other is not None and other.machine == each.machine and each.start_us < other.end_us:
            got = f"{'keep' if each.keep else 'remove'} where line {other.line} says the contrary of the same time"
            raise ContractError.of("corrections", got=got, expected="one action", where=_place(where, each.line))
        mine = reach.get(each.keep)
        if mine is None or mine.machine != each.machine or mine.end_us < each.end_us:
            reach[each.keep] = each


def _place(where: Path, line: int) -> str:
    return f"{where}, line {line}"


__all__ = ["Correction", "carry_answers", "corrections_csv", "parse_corrections", "read_corrections", "read_feedback"]
