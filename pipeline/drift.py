"""Has the fleet changed? Evidently compares recent rows with a release's reference; the machines say how many moved.

The only module that imports Evidently. A drift is a change of the fleet: enough columns differ, and enough machines
moved together. One machine that leaves its peers is a fault, and fills few of the sampled rows.
"""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ContractError
from pipeline.facts import newest_of_files
from pipeline.params import MonitorParams
from pipeline.reference import compared_columns, reference_table
from pipeline.release import Release
from pipeline.rows import Rows
from pipeline.schema import (
    BASELINES,
    MICROSECONDS_PER_DAY,
    MICROSECONDS_PER_HOUR,
    Baseline,
    codes_and_names,
    spectra_view,
    times_us,
)
from pipeline.store import atomic_file, context_text, day_files, read_table, read_with_context

MIN_MACHINE_ROWS = 10  # of the reference, below which a machine cannot be compared with itself
MIN_ROWS = 50
NEWEST_FILES = 14  # day files among which the newest row is looked for
WRONG_CLOCK_HOURS = 24.0  # a few rows further ahead than this have a wrong clock
SPLIT_SHARE = 0.25  # of the variation between hours, which the best split must explain to be a change within the window


@dataclass(frozen=True)
class DriftDecision:
    """What was decided, and the figures behind it.

    `share` of the compared columns that drifted, `columns` Evidently's statistic per column, `machines_share` of the
    machines that moved, `changed_at` when (UTC, to the hour).
    """

    drifted: bool
    share: float
    columns: dict[str, float]
    machines_share: float
    changed_at: dt.datetime | None
    rows: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"changed_at": self.changed_at.isoformat() if self.changed_at else None}


def check_drift(
    release: Release, data_set: Path, score_log: Path, params: MonitorParams, report_html: Path, seed: int
) -> DriftDecision:
    """Compare the newest `params.days` of a data set with the release's reference.

    Args:
        release: in service.
        data_set: landing zone in the form of the contract.
        score_log: where the rows of the window have been scored; says which rows are usable.
        params: section `monitor`.
        report_html: where Evidently's report is written.
        seed: of the sample.

    Raises:
        ContractError: fewer than 50 usable rows in the window.
    """
    rows = recent_rows(release, data_set, score_log, params, seed)
    if len(rows) < MIN_ROWS:
        raise ContractError.of("rows to compare", got=len(rows), expected=f"at least {MIN_ROWS}", where=data_set)
    current = reference_table(rows, release.detectors, release.tails)
    reference = read_table(release.folder / "reference.parquet")
    columns = compared_columns(reference)
    statistics = evidently_statistics(current, reference, columns, params, report_html)
    share = sum(value >= params.column_threshold for value in statistics.values()) / len(statistics)
    moved = machines_moved(current, reference, columns, params)
    drifted = share >= params.drift_share and moved >= params.min_machines_share
    reason = (
        f"{share:.0%} of {len(columns)} columns differ ({params.method} at least {params.column_threshold:g}; "
        f"{params.drift_share:.0%} are a drift) and {moved:.0%} of the machines moved "
        f"({params.min_machines_share:.0%} are a drift)"
    )
    changed = change_point(current, reference, columns) if drifted else None
    return DriftDecision(drifted, share, statistics, moved, changed, len(rows), reason)


def recent_rows(release: Release, data_set: Path, score_log: Path, params: MonitorParams, seed: int) -> Rows:
    """A seeded sample of the usable rows of the newest `params.days`, stratified by machine."""
    files = day_files(data_set)
    newest = newest_of_files(files[-NEWEST_FILES:], WRONG_CLOCK_HOURS)
    since = newest - int(params.days * MICROSECONDS_PER_DAY)
    first_day = str(np.datetime64(since, "us").astype("datetime64[D]"))
    tables, spectra = [], []
    for path in (file for file in files if file.stem >= first_day):
        log_file = score_log / path.name
        if not log_file.exists():
            continue
        log = read_table(log_file, ["row", "machine_id", "timestamp", "epoch", "baseline"])
        log = log.filter(pa.array(log["baseline"].is_valid().to_numpy() & (times_us(log["timestamp"]) > since)))
        picked = log["row"].to_numpy()
        day = read_with_context(path, ["spectrum"], release.condition_column)
        spectra.append(spectra_view(day["spectrum"], int(release.manifest["bins"]), path)[picked])
        condition = context_text(day, release.condition_column or "", path).take(pa.array(picked))
        tables.append(log.append_column("condition", condition))
    if not tables:
        raise ContractError.of("score log", got="no scored day", expected=f"days from {first_day}", where=score_log)
    table = pa.concat_tables(tables, promote_options="permissive")
    machine, machines = codes_and_names(table["machine_id"])
    condition, conditions = codes_and_names(table["condition"])
    picked = stratified_sample(machine, params.max_rows, seed)
    return Rows(
        np.concatenate(spectra)[picked],
        machine[picked],
        machines,
        table["epoch"].to_numpy()[picked],
        condition[picked],
        conditions,
        times_us(table["timestamp"])[picked],
        table.take(pa.array(picked)),
    )


def stratified_sample(machine_N: np.ndarray, max_rows: int, seed: int) -> np.ndarray:
    """Sorted positions of at most about `max_rows` rows, the same number of each machine where it has them.

    >>> picked = stratified_sample(np.array([0] * 90 + [1] * 10), 20, seed=1)
    >>> int((picked < 90).sum()), int((picked >= 90).sum())
    (10, 10)
    """
    if len(machine_N) <= max_rows:
        return np.arange(len(machine_N))
    shuffled = np.random.default_rng(seed).permutation(len(machine_N))
    order = shuffled[np.argsort(machine_N[shuffled], kind="stable")]
    codes = machine_N[order]
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return np.sort(order[rank < max(1, max_rows // len(starts))])


def evidently_statistics(
    current: pa.Table, reference: pa.Table, columns: list[str], params: MonitorParams, report_html: Path
) -> dict[str, float]:
    """Evidently's drift statistic per column (a distance: larger is further); its HTML report is written atomically."""
    os.environ["DO_NOT_TRACK"] = "1"
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    definition = DataDefinition(numerical_columns=columns)
    now, then = (
        Dataset.from_pandas(table.select(columns).to_pandas(), data_definition=definition)
        for table in (current, reference)
    )
    metrics = [ValueDrift(column=name, method=params.method, threshold=params.column_threshold) for name in columns]
    snapshot = Report(metrics).run(now, then)
    with atomic_file(report_html) as path:
        path.write_text(snapshot.get_html_str(as_iframe=False), encoding="utf-8")
    found = {item["config"]["column"]: float(item["value"]) for item in snapshot.dict()["metrics"]}
    return {name: round(found[name], 6) for name in columns}


def machines_moved(current: pa.Table, reference: pa.Table, columns: list[str], params: MonitorParams) -> float:
    """Share of the machines that moved by the fleet's own rule, each against its own reference rows.

    A machine moved when its median left its reference median by `column_threshold` of its own standard deviations in
    `drift_share` of the columns. Machines whose baseline is not their own (new, or repaired since) have nothing to be
    compared with and do not count, unless no machine has.
    """
    now, then = (
        table.filter(pc.equal(table["baseline"].cast(pa.string()), BASELINES[Baseline.OWN]))
        for table in (current, reference)
    )
    groups = [_by_machine(table, columns) for table in (now, then)]
    known = [machine for machine in groups[0] if len(groups[1].get(machine, ())) >= MIN_MACHINE_ROWS]
    if not known:
        fleet = _matrix(reference, columns)
        pairs = [(rows, fleet) for rows in _by_machine(current, columns).values()]
    else:
        pairs = [(groups[0][machine], groups[1][machine]) for machine in known]
    moved = 0
    for rows, before in pairs:
        distance = np.abs(np.median(rows, axis=0) - np.median(before, axis=0)) / np.maximum(before.std(0), 1e-9)
        moved += bool((distance >= params.column_threshold).mean() >= params.drift_share)
    return moved / max(1, len(pairs))


def _by_machine(table: pa.Table, columns: list[str]) -> dict[str, np.ndarray]:
    """Rows of the compared columns per machine."""
    code, machines = codes_and_names(table["machine_id"])
    values = _matrix(table, columns)
    return {machines[index]: values[code == index] for index in np.unique(code)}


def change_point(current: pa.Table, reference: pa.Table, columns: list[str]) -> dt.datetime:
    """The hour after which the fleet differs: the split of hourly fleet medians with the largest difference of means.

    The distance of each hour from the reference is one number; the split maximises n1 n2 / n (m1 - m2)^2, the
    between-group sum of squares (Page's change point by least squares). A window that has changed throughout has no
    such split worth the name: then its first hour is returned.
    """
    now, then = _matrix(current, columns), _matrix(reference, columns)
    hour = times_us(current["timestamp"]) // MICROSECONDS_PER_HOUR
    hours = np.unique(hour)
    centre, spread = np.median(then, axis=0), np.maximum(then.std(0), 1e-9)
    distance = np.array([np.abs((np.median(now[hour == one], axis=0) - centre) / spread).mean() for one in hours])
    best, gain = 0, 0.0
    total = ((distance - distance.mean()) ** 2).sum()
    for cut in range(1, len(hours)):
        left, right = distance[:cut], distance[cut:]
        between = len(left) * len(right) / len(hours) * (right.mean() - left.mean()) ** 2
        if right.mean() > left.mean() and between > gain:
            best, gain = cut, between
    start = hours[best] if gain > SPLIT_SHARE * total else hours[0]
    return dt.datetime.fromtimestamp(int(start) * 3600, tz=dt.UTC)


def _matrix(table: pa.Table, columns: list[str]) -> np.ndarray:
    return np.column_stack([table[name].to_numpy() for name in columns])


def window_start(data_set: Path, days: float) -> dt.datetime:
    """The start of the newest `days` of a data set (UTC)."""
    newest = newest_of_files(day_files(data_set)[-NEWEST_FILES:], WRONG_CLOCK_HOURS)
    return dt.datetime.fromtimestamp(newest / 1e6, tz=dt.UTC) - dt.timedelta(days=days)
