"""Stage `validate`: Great Expectations on the facts of every row and every machine-day; which rows are set aside, why.

Rows stream through in chunks and memory does not grow with them: spectra become facts on two threads, the suite `rows`
checks the facts, and the status table is written as it goes. What takes the whole set (another unit on some days of a
machine) is checked at the end by the suite `days`; only if it finds such rows is the status table written again.

Shape legend: N rows, E machine-days.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.data_docs import write_data_docs
from pipeline.day_checks import DayFacts, day_facts
from pipeline.day_tally import DayTally
from pipeline.day_verdicts import DayVerdict, days_table, plant_share, set_aside_days, verdicts_of_rows
from pipeline.errors import run_reporting_errors
from pipeline.expectations import BitsN, Rule, Suite, context, load_rules
from pipeline.fact_stream import FactBatch, Names, fact_batches, joined, no_rows
from pipeline.facts import newest_of_files
from pipeline.params import ValidateParams, load_params
from pipeline.quarantine import GivenBack, read_releases, released
from pipeline.row_counts import OK, QUARANTINED, STATUSES, SUSPECT, Counts
from pipeline.schema import (
    MACHINE,
    MICROSECONDS_PER_HOUR,
    VALIDATE_SCHEMA,
    IntN,
    dictionary_column,
    load_fleet_spec,
    time_column,
)
from pipeline.store import day_files, read_batches, write_json, write_table, write_tables
from pipeline.validation_notes import day_notes, refuse_if_nothing_is_left, set_notes

ROWS_PER_VALIDATION = 2_000_000  # 1.7 GB at the peak; each run of the checkpoint costs 0.16 s whatever its rows
RANK = {"quarantine": QUARANTINED, "suspect": SUSPECT}


@dataclass(frozen=True)
class ValidateResult:
    """What validation came to, beside the status table that it has written.

    `days` is of DAYS_SCHEMA; `metrics` and `summary` are plain JSON; `gx` and `suites` make the Data Docs.
    """

    metrics: dict[str, Any]
    summary: dict[str, Any]
    days: pa.Table
    gx: Any
    suites: Sequence[Suite]


def validate(
    data_set: Path,
    status_file: Path,
    params: ValidateParams,
    *,
    rules: dict[str, list[Rule]] | None = None,
    rows_per_validation: int = ROWS_PER_VALIDATION,
) -> ValidateResult:
    """Facts and status of every row of a snapshot, written to `status_file` (VALIDATE_SCHEMA) as they come.

    Args:
        data_set: a snapshot (`spectra/`, `fleet.yaml`, a maintenance log, releases from quarantine).
        status_file: the table to write; it stands also where the set is refused, so that people can look.
        params: validate section.
        rules: of `load_rules`; by default the committed ones.
        rows_per_validation: rows that Great Expectations sees at once.

    Raises:
        ContractError: no rows, a damaged file, or more rows quarantined than `max_quarantined_share`.
        HearkenError: a check is broken.
    """
    fleet = load_fleet_spec(data_set / "fleet.yaml")
    files, releases = day_files(data_set), read_releases(data_set)
    rules = load_rules() if rules is None else rules
    gx, limits, logs = context(), params.model_dump(), fleet.kind == "spectrum"
    suites = [Suite(name, rules[name], fleet.kind, limits, gx) for name in ("rows", "days")]
    newest = newest_of_files(files, params.future_hours)
    names, counts = Names(), Counts.none()
    tally = DayTally(names)
    horizon = newest + round(params.future_hours * MICROSECONDS_PER_HOUR)

    def tallied() -> Iterator[FactBatch]:
        for batch in fact_batches(files, fleet.bins, logs=logs):
            tally.add(batch, horizon)
            yield batch

    def checked() -> Iterator[pa.Table]:
        for chunk in joined(tallied(), rows_per_validation):
            table, given_back = _status_table(chunk or [no_rows(fleet.bins)], suites[0], names, newest, releases)
            counts.given_back += given_back
            yield counts.add(table)

    write_tables(status_file, VALIDATE_SCHEMA, checked())
    facts = day_facts(tally.finish(), fleet.interval_seconds, params)
    broken_E = suites[1].failures(_day_frame(facts, names.names))
    plant_E = plant_share(broken_E, facts, len(suites[1].rules), params.plant_share)
    days = days_table(facts, names.names, broken_E, plant_E, suites[1].rules)
    verdicts = set_aside_days(facts, names.names, broken_E & ~plant_E, suites[1].rules)
    if verdicts:
        given_back = counts.given_back
        counts = _amend(status_file, verdicts, releases)
        counts.given_back = given_back
    reasons = {rule.reason for suite in suites for rule in suite.rules}
    notes = [*set_notes(data_set, counts, releases, reasons, params), *day_notes(days, names.names)]
    refuse_if_nothing_is_left(counts, params, data_set)
    warned = {found.rule.reason: found.unexpected for found in suites[0].findings() if found.rule.action == "warn"}
    findings = {suite.name: [found.to_json() for found in suite.findings()] for suite in suites}
    metrics = {**counts.metrics(), "warnings": warned, "notes": notes}
    return ValidateResult(metrics, {"expectations": findings, "rows": counts.rows}, days, gx, suites)


def _status_table(
    chunk: Sequence[FactBatch], suite: Suite, names: Names, newest_us: int, releases: Sequence[GivenBack]
) -> tuple[pa.Table, int]:
    """VALIDATE_SCHEMA of some batches, and how many of their rows people have given back."""
    machine_N = np.concatenate([names.codes(batch.machine_N, batch.machines) for batch in chunk])
    time_us_N = np.concatenate([batch.time_us_N for batch in chunk])
    facts = {name: np.concatenate([batch.facts[name] for batch in chunk]) for name in chunk[0].facts}
    wide = {name: values.astype(np.int64 if values.dtype.kind == "i" else float) for name, values in facts.items()}
    frame = pd.DataFrame(wide, copy=False)
    frame["hours_ahead"] = (time_us_N - newest_us) / MICROSECONDS_PER_HOUR
    frame["timestamp"] = time_us_N.view("datetime64[us]")
    frame["machine_id"] = pd.Categorical.from_codes(machine_N, names.names)
    broken_N = suite.failures(frame)
    kept_N = broken_N.copy()
    if releases and broken_N.any():
        scorable_N = np.isfinite(frame["energy"].to_numpy())
        for bit, rule in enumerate(suite.rules):
            kept_N[scorable_N & released(releases, rule.reason, machine_N, names.names, time_us_N)] &= ~(1 << bit)
    code_N, reasons, rank_N = joined_reasons(kept_N, suite.rules)
    file_codes = np.repeat(np.arange(len(chunk)), [len(batch) for batch in chunk])
    rows_N = np.concatenate([np.arange(batch.row, batch.row + len(batch), dtype=np.int32) for batch in chunk])
    columns = {
        "file": dictionary_column(file_codes, [batch.file for batch in chunk]),
        "row": pa.array(rows_N),
        "machine_id": dictionary_column(machine_N, names.names, MACHINE),
        "timestamp": time_column(time_us_N),
        **{name: pa.array(values, from_pandas=True) for name, values in facts.items()},
        "status": dictionary_column(rank_N, STATUSES),
        "reason": dictionary_column(code_N, reasons),
    }
    table = pa.table([columns[name] for name in VALIDATE_SCHEMA.names], schema=VALIDATE_SCHEMA)
    return table, int(((broken_N != 0) & (kept_N == 0)).sum())


def joined_reasons(bits_N: BitsN, rules: Sequence[Rule]) -> tuple[IntN, list[str], IntN]:
    """Per row a code (N,) into the list of reasons, joined by "+", and the row's status (N,) as code into STATUSES.

    >>> rules = [Rule.of({"type": "t", "kwargs": {}, "meta": {"reason": name}}, "example") for name in "ab"]
    >>> [values if isinstance(values, list) else values.tolist() for values in joined_reasons(np.array([0, 3]), rules)]
    [[0, 1], ['', 'a+b'], [0, 2]]
    """
    broken = np.flatnonzero(bits_N)  # few: sorting all rows takes ten times as long
    combinations, code = np.unique(np.r_[0, bits_N[broken]], return_inverse=True)
    code_N = np.zeros(len(bits_N), np.int64)
    code_N[broken] = code[1:]
    reasons, ranks = [], []
    for bits in combinations.tolist():
        failed = [rule for bit, rule in enumerate(rules) if bits >> bit & 1]
        reasons.append("+".join(dict.fromkeys(rule.reason for rule in failed)))
        ranks.append(max((RANK.get(rule.action, OK) for rule in failed), default=OK))
    # two sets of rules can have one name
    unique = list(dict.fromkeys(reasons))
    to_unique = np.array([unique.index(reason) for reason in reasons])
    return to_unique[code_N], unique, np.array(ranks)[code_N]


def _day_frame(facts: DayFacts, machines: Sequence[str]) -> pd.DataFrame:
    """What the suite `days` looks at."""
    values = {name: np.asarray(getattr(facts, name)) for name in DayFacts.__dataclass_fields__}
    frame = pd.DataFrame({name: column for name, column in values.items() if name not in ("machine", "day")})
    frame["machine_id"] = pd.Categorical.from_codes(facts.machine, list(machines))
    return frame


def _amend(status_file: Path, verdicts: Sequence[DayVerdict], releases: Sequence[GivenBack]) -> Counts:
    """Write the status table again with the rows of machine-days set aside; new counts of all rows."""
    counts = Counts.none()

    def amended() -> Iterator[pa.Table]:
        for table in read_batches(status_file):
            yield counts.add(verdicts_of_rows(table.cast(VALIDATE_SCHEMA), verdicts, releases))

    write_tables(status_file, VALIDATE_SCHEMA, amended())
    return counts


def main() -> None:
    """Read data/raw; write the status table, data/validation, metrics/validation.json and reports/data_docs."""
    result = validate(Path("data/raw"), Path("data/status/validate.parquet"), load_params().validate_)
    write_json("metrics/validation.json", result.metrics)
    write_json("data/validation/result.json", result.summary)
    write_table("data/validation/days.parquet", result.days)
    write_data_docs(result.gx, result.suites, result.metrics["notes"], Path("reports/data_docs"))


if __name__ == "__main__":
    run_reporting_errors(main)
