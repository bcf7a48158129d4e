"""What validation tells people of a whole set: sentences for the report, or a refusal with its reasons."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from pipeline.errors import ContractError
from pipeline.params import ValidateParams
from pipeline.quarantine import GivenBack
from pipeline.row_counts import QUARANTINED, SUSPECT, Counts
from pipeline.schema import MAINTENANCE_SCHEMA, MICROSECONDS_PER_DAY
from pipeline.store import read_table


def refuse_if_nothing_is_left(counts: Counts, params: ValidateParams, data_set: Path) -> None:
    """A set of which most rows are quarantined, or none can train, is refused with the reasons.

    Raises:
        ContractError: it is so.
    """
    quarantined, suspect = int(counts.by_status[QUARANTINED]), int(counts.by_status[SUSPECT])
    found = {**counts.by_reason.get("quarantined", {}), **counts.by_reason.get("suspect", {})}
    reasons = ", ".join(f"{name} {count}" for name, count in sorted(found.items()))
    if quarantined > params.max_quarantined_share * counts.rows:
        got = f"{quarantined} of {counts.rows} rows ({reasons})"
        expected = f"at most {100 * params.max_quarantined_share:g} % (validate.max_quarantined_share)"
        raise ContractError.of("quarantined rows", got=got, expected=expected, where=data_set)
    if quarantined + suspect == counts.rows:
        got = f"none of {counts.rows} rows: all are quarantined or suspect ({reasons})"
        raise ContractError.of("rows to learn from", got=got, expected="at least one", where=data_set)


def set_notes(
    data_set: Path, counts: Counts, releases: Sequence[GivenBack], reasons: Collection[str], params: ValidateParams
) -> list[str]:
    """What a person should know of the whole set, in sentences."""
    notes = []
    known = set(counts.usable_by_machine)
    log_file = data_set / "maintenance.parquet"
    log = (
        read_table(log_file, ["machine_id"], MAINTENANCE_SCHEMA)["machine_id"].to_pylist() if log_file.exists() else []
    )
    for what, strangers in (
        ("The maintenance log names", sorted(set(log) - known)),
        ("Releases from quarantine name", sorted({release.machine for release in releases} - known - {""})),
    ):
        if strangers:
            notes.append(f"{what} {_count(len(strangers), 'machine')} without spectra: {_some(strangers)}.")
    unknown = sorted({release.reason for release in releases} - {"", *reasons})
    if unknown:
        notes.append(
            f"Releases from quarantine name {_count(len(unknown), 'reason')} that no rule has: {_some(unknown)}."
        )
    span = (counts.last_us - counts.first_us) / MICROSECONDS_PER_DAY
    if counts.last_us >= counts.first_us and span < params.min_days:
        notes.append(f"The spectra span {span:.3g} days, less than {params.min_days:g} (validate.min_days).")
    few = sorted(name for name, rows in counts.usable_by_machine.items() if rows < params.min_rows_per_machine)
    if few:
        least = f"{params.min_rows_per_machine} usable rows (validate.min_rows_per_machine)"
        notes.append(f"{_count(len(few), 'machine')} with fewer than {least}: {_some(few)}.")
    if counts.given_back:
        notes.append(f"{counts.given_back} rows were given back from quarantine by people ({len(releases)} releases).")
    return notes


def day_notes(days: pa.Table, machines: Sequence[str]) -> list[str]:
    """What the days say, in sentences: a change of the plant once, and each kind of finding of machines once."""
    frame = days.select(["machine_id", "day", "findings", "of_the_plant"]).to_pandas()
    notes = []
    plant = frame[frame["of_the_plant"] != ""]
    for reason, rows in _by_reason(plant, "of_the_plant"):
        dates = sorted(set(rows["day"]))
        span = f"On {dates[0]}" if len(dates) == 1 else f"On {len(dates)} days, {dates[0]} to {dates[-1]},"
        most = int(rows.groupby("day").size().max())
        notes.append(f"{span} the plant changed: {reason} at {most} of {len(machines)} machines; no row is set aside.")
    for reason, rows in _by_reason(frame[frame["findings"] != ""], "findings"):
        own = rows[[reason not in of_plant.split("+") for of_plant in rows["of_the_plant"]]]
        if len(own):
            which = _some([f"{machine} {day}" for machine, day in zip(own["machine_id"], own["day"], strict=True)])
            count = own["machine_id"].nunique()
            notes.append(f"{reason} on {_count(len(own), 'day')} of {_count(count, 'machine')}: {which}.")
    return notes


def _by_reason(frame: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.DataFrame]]:
    reasons = sorted({reason for joined_ in frame[column].unique() for reason in joined_.split("+")})
    for reason in reasons:
        yield reason, frame[[reason in joined_.split("+") for joined_ in frame[column]]]


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(names[:5])
    return listed if len(names) <= 5 else f"{listed} and {len(names) - 5} more"
