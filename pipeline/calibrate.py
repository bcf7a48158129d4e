"""Stage `calibrate`: from scores of healthy calibration rows to tail tables, tiers, and an alert policy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.alerts import AlertPolicy, Timeline, typical_interval_us
from pipeline.detectors import Detector, choose_device, load_detector
from pipeline.errors import ContractError, run_reporting_errors
from pipeline.intervals import rate_with_interval
from pipeline.params import CalibrateParams, load_params
from pipeline.pareto import TailFit, fit_tail, rows_needed
from pipeline.rows import Rows, has_role, load_conditions
from pipeline.schema import (
    BASELINES,
    MICROSECONDS_PER_DAY,
    Baseline,
    BoolN,
    FloatN,
    FloatNF,
    IntN,
    Role,
    codes_and_names,
    dictionary_column,
    load_fleet_spec,
    times_us,
)
from pipeline.store import atomic_folder, read_json, read_spectra, read_table, write_json, write_table
from pipeline.tails import NO_QUANTILES, TailTable
from pipeline.train import use_threads

TIERS = ("low", "page")
MATCHED = np.r_[np.linspace(0, 99, 100), 99.5, 99.8]  # percentiles at which scores of two baselines are matched
MATCHED_ROWS = 50_000
MIN_ROWS = 20
FEW_ROWS = 100
BASES = {"pareto": "Pareto tail", "exponential": "exponential tail", "none": "largest scores"}  # of a threshold
PIECE_ROWS = 200_000  # spectra held at once, rounded up to whole day files
Pieces = Iterable[tuple[slice, FloatNF]]


@dataclass(frozen=True)
class Scored:
    """Rows and their comparable scores per detector, in the rows' order."""

    rows: Rows
    scores: Mapping[str, FloatN]
    raw: Mapping[str, FloatN]
    baseline: npt.NDArray[np.int8]  # as `Baseline`


@dataclass(frozen=True)
class Measured:
    """Rows without their spectra, their raw scores per detector, and some of them scored on wider baselines.

    `baseline` says which `Baseline` each row was scored against. `wider` (M, 3) holds scores of the same M rows against
    the fleet's baseline, their machine's as if it had just begun an epoch, and their own; empty for a detector whose
    scores need no match.
    """

    rows: Rows
    raw: Mapping[str, FloatN]
    baseline: npt.NDArray[np.int8]
    wider: Mapping[str, FloatNF]

    def comparable(self, tables: Mapping[str, TailTable]) -> Scored:
        """The rows with comparable scores."""
        scores = {name: tables[name].comparable(raw, self.baseline) for name, raw in self.raw.items()}
        return Scored(self.rows, scores, self.raw, self.baseline)


def load_detectors(root: Path, names: tuple[str, ...], device: str) -> dict[str, Detector]:
    """Every detector of params.yaml from `data/models`."""
    return {name: load_detector(root / "data/models" / name, choose_device(device)) for name in names}


def condition_column(detectors: Mapping[str, Detector]) -> str | None:
    """Where the detectors of one build take conditions from: all from the same column, or none."""
    return next(iter(detectors.values())).condition_column


def rows_without_spectra(data_set: Path, status: pa.Table, selected_N: BoolN, column: str | None) -> Rows:
    """The selected rows of a status table with spectra of no bins: for what is scored piece by piece."""
    kept = status.filter(pa.array(selected_N))
    machine, machines = codes_and_names(kept["machine_id"])
    condition, conditions = load_conditions(data_set, status, selected_N, column)
    return Rows(
        spectra=np.empty((len(kept), 0), np.float32),
        machine=machine,
        machines=machines,
        epoch=kept["epoch"].to_numpy(),
        condition=condition,
        conditions=conditions,
        time_us=times_us(kept["timestamp"]),
        status=kept,
    )


def spectra_pieces(
    data_set: Path, status: pa.Table, selected_N: BoolN, bins: int, piece_rows: int = PIECE_ROWS
) -> Iterator[tuple[slice, FloatNF]]:
    """The spectra of the selected rows in pieces of whole day files, each with its place among those rows."""
    file_N, _ = codes_and_names(status["file"])
    ends = [*(np.flatnonzero(np.diff(file_N)) + 1).tolist(), len(file_N)]
    begin = done = 0
    for end in ends:
        rows = int(selected_N[begin:end].sum())
        if rows >= piece_rows or (rows and end == len(file_N)):
            part = read_spectra(data_set, status.slice(begin, end - begin), selected_N[begin:end], bins)
            yield slice(done, done + rows), part
            begin, done = end, done + rows


def measure(detectors: Mapping[str, Detector], rows: Rows, pieces: Pieces) -> Measured:
    """Score rows piece by piece; at most MATCHED_ROWS of them also against wider baselines than their own.

    Rows that know the narrowest baseline tell what they would score against the wider ones.

    Args:
        detectors: fitted.
        rows: their spectra are not looked at.
        pieces: the spectra, each piece with its place among the rows.
    """
    raw = {name: np.empty(len(rows)) for name in detectors}
    wider: dict[str, list[FloatNF]] = {name: [] for name in detectors}
    baselines = next(iter(detectors.values())).baselines  # those of one build are all the same
    state_N = baselines.states(baselines.codes(rows.keys))
    told = np.flatnonzero(state_N == state_N.max(initial=0))
    told = told[:: max(1, len(told) // MATCHED_ROWS)]
    for place, spectra in pieces:
        keys = rows.keys.take(place)
        sampled = told[slice(*np.searchsorted(told, [place.start, place.stop]))] - place.start
        few = keys.take(sampled)
        for name, detector in detectors.items():
            table = detector.baselines
            raw[name][place] = detector.score(spectra, table.codes(keys))
            if detector.matched and table.keys and len(sampled):
                codes = (table.fleet_codes(few), table.next_epoch_codes(few))
                scores = [*(detector.score(spectra[sampled], code) for code in codes), raw[name][place][sampled]]
                wider[name].append(np.stack(scores, axis=1))
    matched = {name: np.concatenate([np.empty((0, 3)), *parts]) for name, parts in wider.items()}
    return Measured(replace(rows, spectra=np.empty((len(rows), 0), np.float32)), raw, state_N, matched)


def tail_table(
    name: str, raw_N: FloatN, baseline_N: npt.NDArray[np.int8], wider_M3: FloatNF, machine_day_N: IntN
) -> tuple[TailTable, TailFit]:
    """The tail table of a detector's healthy calibration scores, with the matches for wider baselines, and its tail.

    Args:
        name: of the detector.
        raw_N: scores.
        baseline_N: which `Baseline` each row was scored against.
        wider_M3: some rows' scores against the fleet's baseline, their machine's as if it had just begun an epoch, and
            their own; none: raw scores are comparable as they are.
        machine_day_N: code of each row's machine and day.

    Raises:
        ContractError: too few calibration rows, scores that are not finite, or all equal.
    """
    if len(raw_N) < MIN_ROWS:
        expected = f"at least {MIN_ROWS} healthy rows"
        raise ContractError.of("calibration rows", got=len(raw_N), expected=expected, where="role calibration")
    broken = int((~np.isfinite(raw_N)).sum()) + int((~np.isfinite(wider_M3)).sum())
    if broken:
        got = f"{broken} that are no finite numbers"
        raise ContractError.of(f"scores of {name}", got=got, expected="finite scores", where="calibration")
    fleet, shrunk, own = [NO_QUANTILES] * 3
    if len(wider_M3):
        fleet, shrunk, own = (np.asarray(np.percentile(scores_M, MATCHED)) for scores_M in wider_M3.T)
    comparable_N = TailTable.of(raw_N, fleet, shrunk, own).comparable(raw_N, baseline_N)
    if comparable_N.min() == comparable_N.max():
        got = f"{len(comparable_N)} scores, all {comparable_N[0]:g}"
        raise ContractError.of(f"scores of {name}", got=got, expected="scores that differ", where="calibration")
    fit = fit_tail(comparable_N, machine_day_N)
    return TailTable.of(comparable_N, fleet, shrunk, own, fit.tail), fit


def calibrate_detector(
    fit: TailFit,
    comparable_N: FloatN,
    rows: Rows,
    tune: TuneRows,
    tune_scores_M: FloatN,
    params: CalibrateParams,
    seed: int,
) -> dict[str, Any]:
    """Threshold, interval of the rate it really has, what it rests on, and tune failures caught, for each tier."""
    tiers: dict[str, Any] = {}
    blocks = (rows.machine, rows.time_us // MICROSECONDS_PER_DAY)
    for tier, percentile in zip(TIERS, (params.low_percentile, params.page_percentile), strict=True):
        interval = rate_with_interval(
            comparable_N, blocks, comparable_N, blocks, percentile,
            draws=params.draws, confidence=params.confidence, seed=seed, tail=fit,
        )  # fmt: skip
        above = comparable_N > interval.threshold
        caught = tune.caught(tune_scores_M > interval.threshold)
        tiers[tier] = {
            "percentile": percentile,
            "threshold": interval.threshold,
            "rate_low": interval.low,
            "rate_high": interval.high,
            "note": interval.note,
            "tune_caught": sorted(caught),
            "tune_failures": len(tune.failures),
            "rows_needed": rows_needed(percentile),
            "rows_above": int(above.sum()),
            "machine_days_above": len(np.unique(machine_days(rows)[above])),
            "basis": "rows" if interval.tail is None else BASES[interval.tail.kind],
        }
    return tiers | {"rows": len(comparable_N), "tail": fit.to_json()}


def machine_days(rows: Rows) -> IntN:
    """A code (N,) of each row's machine and day."""
    day_N = rows.time_us // MICROSECONDS_PER_DAY
    first = int(day_N.min(initial=0))
    return np.asarray(rows.machine.astype(np.int64) * (int(day_N.max(initial=0)) - first + 1) + day_N - first)


@dataclass(frozen=True)
class TuneRows:
    """Rows before tune failures, ready for the alert policy."""

    line: Timeline
    failure_M: np.ndarray  # failure id of each row, in the caller's order
    failures: tuple[str, ...]

    @classmethod
    def of(cls, rows: Rows, policy: AlertPolicy) -> TuneRows:
        """Each failure's horizon is a sequence of its own."""
        ids = rows.column("failure_id")
        names, codes = np.unique(ids.astype(str), return_inverse=True)
        line = Timeline.of(codes.astype(np.int32), rows.time_us, policy)
        return cls(line, ids, tuple(str(name) for name in names))

    def caught(self, exceeds_M: BoolN) -> list[str]:
        """Failures before which the policy opens an alert."""
        if not len(self.failure_M):
            return []
        alerts = self.line.alert_rows(exceeds_M)
        return sorted({str(name) for name in self.failure_M[self.line.order][alerts]})


def score_rows(detectors: Mapping[str, Detector], rows: Rows, tables: Mapping[str, TailTable]) -> Scored:
    """Rows, whose spectra are there, with the comparable scores of every detector."""
    raw, comparable, baseline = {}, {}, np.full(len(rows), Baseline.OWN, np.int8)
    for name, detector in detectors.items():
        code = detector.baselines.codes(rows.keys)
        baseline = detector.baselines.states(code)
        raw[name] = detector.score(rows.spectra, code)
        comparable[name] = tables[name].comparable(raw[name], baseline)
    return Scored(rows, comparable, raw, baseline)


@dataclass(frozen=True)
class Calibration:
    """Tables and figures of every detector, and the policy."""

    tables: dict[str, TailTable]
    detectors: dict[str, Any]
    policy: AlertPolicy
    healthy: Scored
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """calibration.json."""
        rows = self.healthy.rows
        return {
            "detectors": self.detectors,
            "policy": self.policy.to_json(),
            "rows": len(rows),
            "machines": len(np.unique(rows.machine)),
            "notes": self.notes,
        }


def calibrate(
    detectors: Mapping[str, Detector], healthy: Rows, tune: Rows, params: CalibrateParams, seed: int
) -> Calibration:
    """Calibrate every detector on healthy rows that are later than all that fitted it.

    Args:
        detectors: fitted.
        healthy: rows of role calibration, with their spectra.
        tune: rows of role tune (may be empty), with their spectra.
        params: section `calibrate`.
        seed: of the bootstrap.
    """
    of_healthy, of_tune = (measure(detectors, rows, [(slice(0, len(rows)), rows.spectra)]) for rows in (healthy, tune))
    return calibrate_measured(of_healthy, of_tune, params, seed)


def calibrate_measured(healthy: Measured, tune: Measured, params: CalibrateParams, seed: int) -> Calibration:
    """Calibrate every detector whose scores are there; see `calibrate`.

    Raises:
        ContractError: see `tail_table`.
    """
    rows = healthy.rows
    policy = AlertPolicy.fitted_to(params.policy, typical_interval_us(rows.machine, rows.time_us))
    days = machine_days(rows)
    tables, fits = {}, {}
    for name, raw in healthy.raw.items():
        tables[name], fits[name] = tail_table(name, raw, healthy.baseline, healthy.wider[name], days)
    scored, tune_scored = healthy.comparable(tables), tune.comparable(tables)
    tune_rows = TuneRows.of(tune.rows, policy)
    figures = {
        name: calibrate_detector(
            fits[name], scored.scores[name], rows, tune_rows, tune_scored.scores[name], params, seed
        )
        for name in tables
    }
    notes = [*policy.notes, *_notes(len(rows), len(tune.rows), figures)]
    return Calibration(tables, figures, policy, scored, notes)


def _notes(rows: int, tune_rows: int, figures: Mapping[str, Any]) -> list[str]:
    """What a person must know of the calibration rows."""
    notes = []
    if not tune_rows:
        notes.append("There is no tune failure: tiers stand on the percentiles alone, and nothing could be tuned.")
    if rows < FEW_ROWS:
        notes.append(f"There are {rows} calibration rows, fewer than {FEW_ROWS}: no threshold here can be relied on.")
    for tier in TIERS:
        by_basis: dict[str, list[str]] = {}
        for name, tiers in figures.items():
            by_basis.setdefault(tiers[tier]["basis"], []).append(name)
        first = next(iter(figures.values()))[tier]
        told = f"The {tier} tier's percentile {first['percentile']:g} needs {first['rows_needed']:,} calibration rows"
        for basis, names in by_basis.items():
            if basis == "largest scores":
                missing = "no tail holds: its threshold is among the largest scores"
                notes.append(f"{told}, there are {rows:,}, and {missing} ({', '.join(names)}).")
            elif basis != "rows":
                notes.append(
                    f"{told}, there are {rows:,}: its threshold is extrapolated, {basis} ({', '.join(names)})."
                )
    return notes


def scores_table(scored: Scored) -> pa.Table:
    """Keys, role, label, failure and the comparable score of every detector."""
    names = ["file", "row", "machine_id", "timestamp", "epoch", "role", "label", "failure_id"]
    table = scored.rows.status.select(names).append_column("baseline", dictionary_column(scored.baseline, BASELINES))
    for name, values in scored.scores.items():
        table = table.append_column(f"score_{name}", pa.array(values))
    return table


def load_calibration(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, TailTable], dict[str, Any]]:
    """Tail tables and calibration.json."""
    tables = {name: TailTable.load(folder / f"{name}.safetensors") for name in names}
    return tables, read_json(folder / "calibration.json")


def main() -> None:
    """Command line of the stage."""
    params, root = load_params(), Path()
    use_threads(params.train.threads)
    fleet = load_fleet_spec(root / "data/raw/fleet.yaml")
    split = read_table(root / "data/status/split.parquet")
    detectors = load_detectors(root, params.detectors, params.train.device)
    column, raw = condition_column(detectors), root / "data/raw"
    measured = []
    for role, what in ((Role.CALIBRATION, "healthy rows"), (Role.TUNE, "rows before tune failures")):
        selected = has_role(split, role)
        print(f"progress calibrate: {int(selected.sum()):,} {what}", flush=True)
        rows = rows_without_spectra(raw, split, selected, column)
        measured.append(measure(detectors, rows, spectra_pieces(raw, split, selected, fleet.bins)))
    healthy, tune = measured
    calibration = calibrate_measured(healthy, tune, params.calibrate, params.seed)
    with atomic_folder(root / "data/calibration") as folder:
        for name, table in calibration.tables.items():
            table.save(folder / f"{name}.safetensors")
        write_json(folder / "calibration.json", calibration.to_json())
        write_table(folder / "scores.parquet", scores_table(calibration.healthy))


if __name__ == "__main__":
    run_reporting_errors(main)
