"""A release at work: spectra in, score log out, one day file at a time.

The same rows get the same bits as in evaluation: the same detectors score them in the same padded batches.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.calibrate import TIERS
from pipeline.epochs import EpochStarts
from pipeline.errors import ContractError
from pipeline.moments import microseconds
from pipeline.release import Release
from pipeline.rows import RowKeys, conditions_of
from pipeline.run_alerts import ALERTS, TIER_NAMES, DayScores, run_alerts
from pipeline.schema import (
    BASELINE_NAMES,
    ENSEMBLE,
    MACHINE,
    MAINTENANCE_SCHEMA,
    MICROSECONDS_PER_DAY,
    TEXT,
    BoolN,
    FloatN,
    FloatNF,
    IntN,
    codes_and_names,
    dictionary_column,
    energy_is_finite,
    load_fleet_spec,
    score_log_schema,
    spectra_view,
    time_column,
    times_us,
)
from pipeline.store import day_files, read_table, read_with_context, write_json, write_table
from pipeline.train import use_threads

TOP_BINS = 5
FLAT = 1e-6  # of the largest bin: a spectrum whose bins differ by less


@dataclass(frozen=True)
class ScoreSummary:
    """What a scoring run came to: rows and machines scored, alerts opened at the page tier, first and last row."""

    rows: int
    machines: int
    pages: int
    unscored: int
    first: dt.datetime | None
    last: dt.datetime | None


def score_data_set(
    release: Release,
    data_set: Path,
    output: Path,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
) -> ScoreSummary:
    """Score a data set of the contract and write its score log, one Parquet file per day, replaced atomically.

    Beside it stands `_alerts.json`: the alerts that the release's policy opens over the rows of this run.

    Args:
        release: in service, or any other.
        data_set: folder with `spectra/`, `fleet.yaml` and, where there is one, a maintenance log.
        output: folder of the score log.
        since: rows from here on (UTC); None: all.
        until: rows before this (UTC); None: all.

    Raises:
        ContractError: another number of bins than the release, or damaged files. Nothing is written for a damaged day.
    """
    fleet_file = data_set / "fleet.yaml"
    bins = load_fleet_spec(fleet_file).bins if fleet_file.exists() else release.manifest["bins"]
    if bins != release.manifest["bins"]:
        raise ContractError.of("bins", got=bins, expected=release.manifest["bins"], where=fleet_file)
    use_threads(int(release.manifest["threads"]))
    log_file = data_set / "maintenance.parquet"
    maintenance = read_table(log_file, schema=MAINTENANCE_SCHEMA) if log_file.exists() else None
    epochs = release.epochs_with(maintenance)
    low = microseconds(since) if since else np.iinfo(np.int64).min
    high = microseconds(until) if until else np.iinfo(np.int64).max
    scored = []
    for path in _files_between(day_files(data_set), low, high):
        day = score_day(release, path, output / path.name, epochs, low, high)
        if day is not None:
            scored.append(day)
    alerts = run_alerts(release, output, scored, maintenance)
    write_json(output / ALERTS, alerts)
    return _summary(alerts, scored)


def score_day(
    release: Release, path: Path, output: Path, epochs: EpochStarts, low_us: int, high_us: int
) -> DayScores | None:
    """Score the rows of one day file from `low_us` on and before `high_us`, and write its part of the score log."""
    bins = int(release.manifest["bins"])
    table = read_with_context(path, ["machine_id", "timestamp", "spectrum"], release.condition_column)
    time_us = times_us(table["timestamp"])
    chosen = np.flatnonzero((time_us >= low_us) & (time_us < high_us))
    if not len(chosen):
        return None
    whole = len(chosen) == len(time_us)
    spectra = spectra_view(table["spectrum"], bins, path)
    spectra, time_us = (spectra, time_us) if whole else (spectra[chosen], time_us[chosen])
    machine, machines = codes_and_names(table["machine_id"])
    condition, conditions = conditions_of(table, release.condition_column, path)
    machine = machine[chosen]
    epoch = epochs.of_rows(machine, time_us, machines)
    keys = RowKeys(machines, machine, epoch, conditions, condition[chosen])
    scored = scored_table(release, path.name, chosen, spectra, keys, time_us)
    write_table(output, scored.table if whole else with_rows_before(scored.table, output))
    return DayScores(path.name, chosen, machine, machines, time_us, scored.tier, scored.rarity)


@dataclass(frozen=True)
class ScoredRows:
    """N rows of the score log, their tiers (places in TIER_NAMES), and how rare the release's detector finds them.

    `rarity` is minus the decimal logarithm of the tail probability, NaN: no score.
    """

    table: pa.Table
    tier: npt.NDArray[np.int8]
    rarity: FloatN


def scored_table(
    release: Release, file: str, row_N: IntN, spectra_NF: FloatNF, keys: RowKeys, time_us_N: IntN
) -> ScoredRows:
    """Score N rows of one file; a row that `usable_rows` leaves out gets nulls.

    Args:
        release: that scores.
        file: that the rows stand in.
        row_N: their places in it.
        spectra_NF: their spectra, in the release's unit.
        keys: machine, baseline epoch and condition of each.
        time_us_N: their times, microseconds since 1970 (UTC).
    """
    usable = usable_rows(spectra_NF, release.fleet.kind)
    scores, tier, top = score_columns(release, spectra_NF, keys, usable)
    tail = scores[f"tail_{release.detector}"].to_numpy(zero_copy_only=False).astype(np.float64)
    columns = {
        "file": dictionary_column(np.zeros(len(row_N), np.int16), [file]),
        "row": pa.array(row_N.astype(np.int32)),
        "machine_id": dictionary_column(keys.machine_N, list(keys.machines), MACHINE),
        "timestamp": time_column(time_us_N),
        "epoch": pa.array(keys.epoch_N),
        **scores,
        "tier": dictionary_column(tier, TIER_NAMES, TEXT),
        "top_bins": top,
        "release": dictionary_column(np.zeros(len(row_N), np.int16), [release.id]),
    }
    schema = score_log_schema(release.manifest["members"])
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    return ScoredRows(table, tier, -np.log10(tail))


def usable_rows(spectra_NF: FloatNF, kind: str) -> BoolN:
    """Rows (N,) that can be scored: finite, and where the kind of fleet means magnitudes neither negative nor flat.

    A flat spectrum (all bins alike) tells of a sensor, not of a machine.

    >>> usable_rows(np.array([[1, 2], [-1, 2], [np.inf, 2], [3, 3], [0, 0]], np.float32), "spectrum").tolist()
    [True, False, False, False, False]
    """
    usable = energy_is_finite(spectra_NF)
    if kind == "spectrum" and spectra_NF.shape[1] > 1:
        low_N, high_N = spectra_NF.min(axis=1), spectra_NF.max(axis=1)
        usable = np.asarray(usable & (low_N >= 0) & (low_N < (1 - FLAT) * high_N))
    return usable


def with_rows_before(scored: pa.Table, output: Path) -> pa.Table:
    """The newly scored rows of a day and those that its log already holds, in the order of rows."""
    if not output.exists():
        return scored
    earlier = read_table(output)
    kept = earlier.filter(pa.array(~np.isin(earlier["row"].to_numpy(), scored["row"].to_numpy())))
    both = pa.concat_tables([kept, scored], promote_options="permissive").unify_dictionaries()
    return both.take(pa.array(np.argsort(both["row"].to_numpy(), kind="stable")))


def score_columns(
    release: Release,
    spectra_NF: FloatNF,
    keys: RowKeys,
    usable_N: BoolN,
) -> tuple[dict[str, pa.Array], np.ndarray, pa.Array]:
    """Score and tail columns per member and of the ensemble, tier codes, top bins; unusable rows get nulls."""
    rows, good = len(spectra_NF), np.flatnonzero(usable_N)
    clean = spectra_NF if len(good) == rows else spectra_NF[good]
    baselines = next(iter(release.detectors.values())).baselines  # those of one build are all the same
    code = baselines.codes(keys.take(good))
    baseline = baselines.states(code)
    raw = {name: detector.score(clean, code) for name, detector in release.detectors.items()}
    comparable, tails = release.tails.judged(raw, baseline, code)
    columns: dict[str, pa.Array] = {}
    for name, values in raw.items():
        columns[f"score_{name}"], columns[f"tail_{name}"] = (
            _spread(values, good, rows),
            _spread(tails[name], good, rows),
        )
    only = next(iter(release.detectors))  # a release of one detector has no ensemble, and says that one's tail again
    together = tails[ENSEMBLE if ENSEMBLE in tails else only]
    columns[f"score_{ENSEMBLE}"] = _spread(comparable.get(ENSEMBLE, -np.log10(together)), good, rows)
    columns[f"tail_{ENSEMBLE}"] = _spread(together, good, rows)
    columns["baseline"] = dictionary_column(_full(baseline, good, rows, -1), BASELINE_NAMES)
    tier = np.zeros(len(good), np.int8)
    for level, threshold_of in enumerate(TIERS, start=1):
        tier[comparable[release.detector] > release.threshold(threshold_of)] = level
    full_tier = _full(tier, good, rows, 0)
    return columns, full_tier, top_bins(release, clean, code, tails, good, full_tier)


def top_bins(
    release: Release,
    clean_MF: FloatNF,
    code_M: np.ndarray,
    tail_M: Mapping[str, FloatN],
    good_M: np.ndarray,
    tier_N: np.ndarray,
) -> pa.Array:
    """The bins with the largest shares of the score, for rows from tier low on; null elsewhere.

    Of an ensemble those of the member that finds the row rarest.
    """
    wanted = np.flatnonzero(tier_N[good_M] > 0)
    count = min(TOP_BINS, clean_MF.shape[1])
    names = list(release.deciding)
    loudest = np.argmin(np.stack([tail_M[name][wanted] for name in names]), axis=0)
    best = np.empty((len(wanted), count), np.int32)
    for place, name in enumerate(names):
        mine = np.flatnonzero(loudest == place)
        shares = release.detectors[name].explain(clean_MF[wanted[mine]], code_M[wanted[mine]])
        best[mine] = np.argsort(-shares, axis=1, kind="stable")[:, :count]
    has = np.zeros(len(tier_N), bool)
    has[good_M[wanted]] = True
    offsets = np.r_[0, np.cumsum(has * count)].astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(best.reshape(-1)), mask=pa.array(~has))


def _summary(alerts: list[dict[str, Any]], days: list[DayScores]) -> ScoreSummary:
    if not days:
        return ScoreSummary(0, 0, 0, 0, None, None)
    machines = {day.machines[code] for day in days for code in np.unique(day.machine)}
    moments = [
        dt.datetime.fromtimestamp(value / 1e6, tz=dt.UTC)
        for value in (min(int(day.time_us.min()) for day in days), max(int(day.time_us.max()) for day in days))
    ]
    rows = sum(len(day.machine) for day in days)
    pages = sum(alert["paged"] is not None for alert in alerts)
    return ScoreSummary(rows, len(machines), pages, sum(int(np.isnan(day.rarity).sum()) for day in days), *moments)


def _files_between(files: list[Path], low_us: int, high_us: int) -> list[Path]:
    """Day files that can hold rows of the span; their names are days."""
    kept = []
    for path in files:
        start = np.datetime64(path.stem, "us").astype(np.int64)
        if start + MICROSECONDS_PER_DAY > low_us and start < high_us:
            kept.append(path)
    return kept


def _full(values_M: np.ndarray, good_M: np.ndarray, rows: int, fill: float) -> np.ndarray:
    full = np.full(rows, fill, values_M.dtype)
    full[good_M] = values_M
    return full


def _spread(values_M: FloatN, good_M: np.ndarray, rows: int) -> pa.Array:
    """Values at the good rows, null elsewhere."""
    if len(good_M) == rows:
        return pa.array(values_M)
    missing = np.ones(rows, bool)
    missing[good_M] = False
    return pa.array(_full(values_M, good_M, rows, 0.0), mask=missing)
