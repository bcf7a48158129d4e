"""Stage `calibrate`: from scores of healthy calibration rows to tail tables, tiers, and an alert policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from pipeline.rows import Rows, has_role, load_rows
from pipeline.schema import (
    BASELINES,
    MICROSECONDS_PER_DAY,
    Baseline,
    BoolN,
    FloatN,
    Role,
    dictionary_column,
    load_fleet_spec,
)
from pipeline.store import atomic_folder, read_json, read_table, write_json, write_table
from pipeline.tails import NO_QUANTILES, TailTable
from pipeline.train import use_threads

TIERS = ("low", "page")
MATCHED = np.r_[np.linspace(0, 99, 100), 99.5, 99.8]  # percentiles at which scores of two baselines are matched
MATCHED_ROWS = 50_000
MIN_ROWS = 20


@dataclass(frozen=True)
class Scored:
    """Rows and their comparable scores per detector, in the rows' order."""

    rows: Rows
    scores: Mapping[str, FloatN]
    raw: Mapping[str, FloatN]
    baseline: npt.NDArray[np.int8]  # as `Baseline`


def load_detectors(root: Path, names: tuple[str, ...], device: str) -> dict[str, Detector]:
    """Every detector of params.yaml from `data/models`."""
    return {name: load_detector(root / "data/models" / name, choose_device(device)) for name in names}


def condition_column(detectors: Mapping[str, Detector]) -> str | None:
    """Where the detectors of one build take conditions from: all from the same column, or none."""
    return next(iter(detectors.values())).condition_column


def tail_table(detector: Detector, rows: Rows, raw_N: FloatN, baseline_N: npt.NDArray[np.int8]) -> TailTable:
    """The tail table of a detector's healthy calibration scores, with the matches for wider baselines than a row's own.

    Rows that know the narrowest baseline tell what they would score against the wider ones.

    Raises:
        ContractError: too few calibration rows, or scores that are all equal.
    """
    if len(raw_N) < MIN_ROWS:
        expected = f"at least {MIN_ROWS} healthy rows"
        raise ContractError.of("calibration rows", got=len(raw_N), expected=expected, where="role calibration")
    matches = [NO_QUANTILES] * 3
    if detector.matched and detector.baselines.keys:
        told = np.flatnonzero(baseline_N == baseline_N.max())
        told = told[:: max(1, len(told) // MATCHED_ROWS)]
        keys, spectra = rows.keys.take(told), rows.spectra[told]
        wider = (detector.baselines.fleet_codes(keys), detector.baselines.next_epoch_codes(keys))
        scores = [*(detector.score(spectra, code) for code in wider), raw_N[told]]
        matches = [np.asarray(np.percentile(each, MATCHED)) for each in scores]
    table = TailTable.of(raw_N, *matches)
    comparable_N = table.comparable(raw_N, baseline_N)
    if comparable_N.min() == comparable_N.max():
        got = f"{len(comparable_N)} scores, all {comparable_N[0]:g}"
        raise ContractError.of(
            f"scores of {detector.name}", got=got, expected="scores that differ", where="calibration"
        )
    return TailTable.of(comparable_N, *matches)


def calibrate_detector(
    table: TailTable,
    comparable_N: FloatN,
    rows: Rows,
    tune: TuneRows,
    tune_scores_M: FloatN,
    params: CalibrateParams,
    seed: int,
) -> dict[str, Any]:
    """Threshold, interval of the rate it really has, and tune failures caught, for each tier."""
    tiers: dict[str, Any] = {}
    blocks = (rows.machine, rows.time_us // MICROSECONDS_PER_DAY)
    for tier, percentile in zip(TIERS, (params.low_percentile, params.page_percentile), strict=True):
        threshold = float(np.percentile(comparable_N, percentile, method="higher"))
        interval = rate_with_interval(
            comparable_N, blocks, comparable_N, blocks, percentile,
            draws=params.draws, confidence=params.confidence, seed=seed,
        )  # fmt: skip
        caught = tune.caught(tune_scores_M > threshold)
        tiers[tier] = {
            "percentile": percentile,
            "threshold": threshold,
            "rate_low": interval.low,
            "rate_high": interval.high,
            "note": interval.note,
            "tune_caught": sorted(caught),
            "tune_failures": len(tune.failures),
            "rows_needed": int(np.ceil(10 / (1 - percentile / 100))),
        }
    return tiers | {"rows": table.rows}


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


def score_rows(detectors: Mapping[str, Detector], rows: Rows, tables: Mapping[str, TailTable] | None) -> Scored:
    """Score rows by every detector; without tables the comparable scores are left empty."""
    raw, comparable, baseline = {}, {}, np.full(len(rows), Baseline.OWN, np.int8)
    for name, detector in detectors.items():
        code = detector.baselines.codes(rows.keys)
        baseline = detector.baselines.states(code)
        raw[name] = detector.score(rows.spectra, code)
        if tables is not None:
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
        healthy: rows of role calibration.
        tune: rows of role tune (may be empty).
        params: section `calibrate`.
        seed: of the bootstrap.
    """
    policy = AlertPolicy.fitted_to(params.policy, typical_interval_us(healthy.machine, healthy.time_us))
    notes = list(policy.notes)
    if not len(tune):
        notes.append("There is no tune failure: tiers stand on the percentiles alone, and nothing could be tuned.")
    first = score_rows(detectors, healthy, None)
    tables = {
        name: tail_table(detector, healthy, first.raw[name], first.baseline) for name, detector in detectors.items()
    }
    scored = score_rows_again(first, tables)
    tune_scored = score_rows(detectors, tune, tables)
    tune_rows = TuneRows.of(tune, policy)
    figures = {
        name: calibrate_detector(
            tables[name], scored.scores[name], healthy, tune_rows, tune_scored.scores[name], params, seed
        )
        for name in detectors
    }
    tail = 1 - params.page_percentile / 100
    if len(healthy) * tail < 10:
        notes.append(
            f"The page tier's percentile {params.page_percentile} rests on {len(healthy) * tail:.1f} expected "
            f"exceedances of {len(healthy):,} calibration rows: its threshold is close to the largest score."
        )
    return Calibration(tables, figures, policy, scored, notes)


def score_rows_again(scored: Scored, tables: Mapping[str, TailTable]) -> Scored:
    """The same rows with comparable scores, from raw scores that are there."""
    comparable = {name: tables[name].comparable(raw, scored.baseline) for name, raw in scored.raw.items()}
    return Scored(scored.rows, comparable, scored.raw, scored.baseline)


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
    healthy, tune = (
        load_rows(root / "data/raw", split, has_role(split, role), fleet.bins, condition_column(detectors))
        for role in (Role.CALIBRATION, Role.TUNE)
    )
    print(f"progress calibrate: {len(healthy):,} healthy rows, {len(tune):,} rows before tune failures", flush=True)
    calibration = calibrate(detectors, healthy, tune, params.calibrate, params.seed)
    with atomic_folder(root / "data/calibration") as folder:
        for name, table in calibration.tables.items():
            table.save(folder / f"{name}.safetensors")
        write_json(folder / "calibration.json", calibration.to_json())
        write_table(folder / "scores.parquet", scores_table(calibration.healthy))


if __name__ == "__main__":
    run_reporting_errors(main)
