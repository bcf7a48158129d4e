"""Stage `calibrate`: from scores of healthy calibration rows to tail tables, tiers, and an alert policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.alerts import AlertPolicy, Timeline
from pipeline.detectors import Detector
from pipeline.ensemble import EnsembleRule, TailTables, load_tails
from pipeline.errors import ContractError, run_reporting_errors
from pipeline.intervals import rate_with_interval
from pipeline.levels import baseline_levels, group_levels
from pipeline.measure import Measured, Scored, condition_column, load_detectors, measure, measure_rows, scores_table
from pipeline.params import CalibrateParams, EnsembleParams, Params, load_params
from pipeline.pareto import TailFit, fit_tail, rows_needed, tier_threshold
from pipeline.policy_choice import PolicyChoice, ScoredRows, TuneFailureRows, choose_policy
from pipeline.rows import Rows, has_role, rows_without_spectra, spectra_pieces
from pipeline.schema import (
    ENSEMBLE,
    FAILURE_SCHEMA,
    MICROSECONDS_PER_DAY,
    BoolN,
    FloatN,
    IntN,
    Role,
    load_fleet_spec,
    times_us,
)
from pipeline.store import atomic_folder, read_json, read_table, write_json, write_table
from pipeline.tails import ScoreScale, TailTable
from pipeline.train import use_threads
from pipeline.tuning_figures import tuning_figures

TIERS = ("low", "page")
MATCHED = np.r_[np.linspace(0, 99, 100), 99.5, 99.8]  # percentiles at which scores of two baselines are matched
MIN_ROWS = 20
FEW_ROWS = 100
HALVES_MACHINES = 4  # fewer cannot calibrate an ensemble on other machines than its members
BASES = {"pareto": "Pareto tail", "exponential": "exponential tail", "none": "largest scores"}  # of a threshold


def matched_scale(wider_M3: npt.NDArray[np.floating[Any]]) -> ScoreScale:
    """What matches scores of wider baselines; without such scores all stay as they are."""
    if not len(wider_M3):
        return ScoreScale()
    return ScoreScale(*(np.asarray(np.percentile(scores_M, MATCHED)) for scores_M in wider_M3.T))


def score_scale(name: str, healthy: Measured, by: str) -> ScoreScale:
    """What brings a detector's scores to one scale: matches of wider baselines, then levels of machines or conditions.

    Args:
        name: of the detector.
        healthy: calibration rows.
        by: whose levels: `fleet` (none), `condition` or `machine`.
    """
    raw_N, wider_M3 = healthy.raw[name], healthy.wider[name]
    _refuse_broken(name, raw_N, wider_M3)
    scale = matched_scale(wider_M3)
    if by == "fleet":
        return scale
    rows, comparable_N = healthy.rows, scale.comparable(raw_N, healthy.baseline, healthy.code)
    group_N, names, order_N = rows.machine, rows.machines, rows.time_us
    if by == "condition":  # one machine after the other: its halves are different machines
        group_N, names = rows.condition, rows.conditions
        order_N = np.argsort(np.lexsort((rows.time_us, rows.machine)))
    levels = group_levels(comparable_N, group_N.astype(np.int64), order_N)
    if not levels:
        return scale
    level_R = baseline_levels(healthy.baselines, by, names, levels)
    return ScoreScale(scale.fleet_from, scale.shrunk_from, scale.own_to, level_R)


def _refuse_broken(name: str, raw_N: FloatN, wider_M3: npt.NDArray[np.floating[Any]]) -> None:
    if len(raw_N) < MIN_ROWS:
        expected = f"at least {MIN_ROWS} healthy rows"
        raise ContractError.of("calibration rows", got=len(raw_N), expected=expected, where="role calibration")
    broken = int((~np.isfinite(raw_N)).sum()) + int((~np.isfinite(wider_M3)).sum())
    if broken:
        got = f"{broken} that are no finite numbers"
        raise ContractError.of(f"scores of {name}", got=got, expected="finite scores", where="calibration")


def tail_table(
    name: str, comparable_N: FloatN, machine_day_N: IntN, scale: ScoreScale | None = None
) -> tuple[TailTable, TailFit]:
    """The tail table of healthy comparable calibration scores (N,), and its tail.

    Args:
        name: of the detector.
        comparable_N: scores.
        machine_day_N: code of each row's machine and day.
        scale: what made the scores comparable.

    Raises:
        ContractError: too few calibration rows, scores that are not finite, or all equal.
    """
    _refuse_broken(name, comparable_N, np.empty((0, 3)))
    if comparable_N.min() == comparable_N.max():
        got = f"{len(comparable_N)} scores, all {comparable_N[0]:g}"
        raise ContractError.of(f"scores of {name}", got=got, expected="scores that differ", where="calibration")
    fit = fit_tail(comparable_N, machine_day_N)
    return TailTable.of(comparable_N, scale, fit.tail), fit


def crossed_statistic(
    rule: EnsembleRule, comparable: Mapping[str, FloatN], machine_N: npt.NDArray[Any], machine_day_N: IntN
) -> FloatN | None:
    """The ensemble's statistic (N,) of calibration rows, by tail tables that their machine has no part in.

    Machines are divided into two halves, in turns by their code; each half's tables give the other's probabilities.

    Returns:
        None where there are too few machines for two halves.
    """
    machines, index_N = np.unique(machine_N, return_inverse=True)
    if len(machines) < HALVES_MACHINES:
        return None
    statistic_N = np.empty(len(machine_N))
    for half in (0, 1):
        judged = index_N % 2 == half
        tables = {
            name: TailTable.of(scores[~judged], tail=fit_tail(scores[~judged], machine_day_N[~judged]).tail)
            for name, scores in comparable.items()
            if name in rule.members
        }
        probability = {name: table.probability(comparable[name][judged]) for name, table in tables.items()}
        statistic_N[judged] = rule.statistic(probability)
    return statistic_N


def calibrate_detector(
    fit: TailFit,
    comparable_N: FloatN,
    rows: Rows,
    tune: TuneRows,
    tune_scores_M: FloatN,
    params: CalibrateParams,
    seed: int,
) -> dict[str, Any]:
    """Threshold, interval of the rate it really has, what it rests on, and tune failures caught.

    For each tier, and under `percentiles` for each further percentile that the parameters ask for.
    """
    blocks = (rows.machine, rows.time_us // MICROSECONDS_PER_DAY)

    def figures_at(percentile: float) -> dict[str, Any]:
        interval = rate_with_interval(
            comparable_N, blocks, comparable_N, blocks, percentile,
            draws=params.draws, confidence=params.confidence, seed=seed, tail=fit,
        )  # fmt: skip
        above = comparable_N > interval.threshold
        caught = tune.caught(tune_scores_M > interval.threshold)
        return {
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

    asked = (params.low_percentile, params.page_percentile)
    tiers: dict[str, Any] = {tier: figures_at(percentile) for tier, percentile in zip(TIERS, asked, strict=True)}
    tiers["percentiles"] = [figures_at(percentile) for percentile in sorted(params.more_percentiles)]
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


@dataclass(frozen=True)
class Calibration:
    """Tables and figures of every detector and of the ensemble, and the policy."""

    tails: TailTables
    detectors: dict[str, Any]
    choice: PolicyChoice
    chosen_for: str  # the detector whose scores the policy was chosen on
    healthy: Scored
    tune: Scored
    notes: list[str]

    @property
    def policy(self) -> AlertPolicy:
        """The chosen alert policy."""
        return self.choice.policy

    def to_json(self) -> dict[str, Any]:
        """calibration.json."""
        rows, rule = self.healthy.rows, self.tails.rule
        return {
            "detectors": self.detectors,
            "ensemble": None if rule is None else {"members": list(rule.members), "agree": rule.agree},
            "policy": self.policy.to_json(),
            "choice": {"detector": self.chosen_for} | self.choice.to_json(),
            "rows": len(rows),
            "machines": len(np.unique(rows.machine)),
            "notes": self.notes,
        }


def calibrate(
    detectors: Mapping[str, Detector],
    healthy: Rows,
    tune: Rows,
    params: Params,
    failed_us: Mapping[str, int] | None = None,
) -> Calibration:
    """Calibrate every detector on healthy rows that are later than all that fitted it, and choose the alert policy.

    Args:
        detectors: fitted.
        healthy: rows of role calibration, with their spectra.
        tune: rows of role tune (may be empty), with their spectra.
        params: sections `calibrate`, `evaluate` (the budget) and `release` (the detector that the policy is for), seed.
        failed_us: when each tune failure failed; None: at its last row.
    """
    return calibrate_measured(measure_rows(detectors, healthy), measure_rows(detectors, tune), params, failed_us)


def calibrate_measured(
    healthy: Measured, tune: Measured, params: Params, failed_us: Mapping[str, int] | None = None
) -> Calibration:
    """Calibrate every detector whose scores are there, and their ensemble; see `calibrate`.

    Raises:
        ContractError: too few calibration rows, scores that are not finite, or all equal.
    """
    rows = healthy.rows
    days, settings = machine_days(rows), params.calibrate
    tables, fits, scores = {}, {}, {}
    for name, raw_N in healthy.raw.items():
        scale = score_scale(name, healthy, settings.levels)
        scores[name] = scale.comparable(raw_N, healthy.baseline, healthy.code)
        tables[name], fits[name] = tail_table(name, scores[name], days, scale)
    tails, notes = TailTables(tables), []
    rule = ensemble_rule(settings.ensemble, tuple(healthy.raw))
    if rule is not None:
        statistic_N = crossed_statistic(rule, scores, rows.machine, days)
        if statistic_N is None:
            members = {name: tables[name].probability(scores[name]) for name in rule.members}
            statistic_N = rule.statistic(members)
            notes.append(f"The ensemble is calibrated on its members' own machines: fewer than {HALVES_MACHINES}.")
        table, fits[ENSEMBLE] = tail_table(ENSEMBLE, statistic_N, days)
        tails, scores[ENSEMBLE] = TailTables(tables, rule, table), statistic_N
    scored = Scored(rows, scores, healthy.raw, healthy.baseline, healthy.code)
    tune_scored = tune.comparable(tails)
    decides = params.release.detector if params.release.detector in scores else next(iter(scores))
    choice = choose_policy(
        ScoredRows(rows.machine, rows.time_us, scores[decides]),
        TuneFailureRows(
            tune.rows.column("failure_id"), tune.rows.time_us, tune_scored.scores[decides], failed_us or {}
        ),
        lambda percentile: tier_threshold(scores[decides], percentile, fits[decides].tail),
        settings.choice,
        settings.policy,
        low_percentile=settings.low_percentile,
        page_percentile=settings.page_percentile,
        budget=params.evaluate.false_episodes_per_machine_day,
        confidence=settings.confidence,
    )
    tune_rows = TuneRows.of(tune.rows, choice.policy)
    chosen = choice.settings(settings)
    figures = {
        name: calibrate_detector(
            fits[name], scores[name], rows, tune_rows, tune_scored.scores[name], chosen, params.seed
        )
        for name in tails.names
    }
    notes += [*choice.policy.notes, *choice.notes, *_notes(len(rows), figures)]
    return Calibration(tails, figures, choice, decides, scored, tune_scored, notes)


def ensemble_rule(params: EnsembleParams, detectors: tuple[str, ...]) -> EnsembleRule | None:
    """The ensemble of those of its members that there are; None where there are fewer than two.

    >>> ensemble_rule(EnsembleParams(), ("pca", "vae"))
    EnsembleRule(members=('pca', 'vae'), agree=1)
    """
    members = params.heard(detectors)
    return EnsembleRule(members, min(params.agree, len(members))) if len(members) > 1 else None


def _notes(rows: int, figures: Mapping[str, Any]) -> list[str]:
    """What a person must know of the calibration rows."""
    notes = []
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


def load_calibration(folder: Path, names: tuple[str, ...]) -> tuple[TailTables, dict[str, Any]]:
    """Tail tables and calibration.json."""
    figures = read_json(folder / "calibration.json")
    return load_tails(folder, names, figures), figures


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
    failures = read_table(raw / "failures.parquet", schema=FAILURE_SCHEMA)
    taught = split.filter(pa.array(has_role(split, Role.TEACH)))["failure_id"].cast(pa.string()).unique()
    tunes = pc.equal(failures["role"].cast(pa.string()), str(Role.TUNE))
    tuned = failures.filter(pc.and_not(tunes, pc.is_in(failures["failure_id"], value_set=taught)))
    failed_us = dict(zip(tuned["failure_id"].to_pylist(), times_us(tuned["time"]).tolist(), strict=True))
    calibration = calibrate_measured(healthy, tune, params, failed_us)
    with atomic_folder(root / "data/calibration") as folder:
        calibration.tails.save(folder)
        write_json(folder / "calibration.json", calibration.to_json())
        write_table(folder / "scores.parquet", scores_table(calibration.healthy))
    histories = {name: read_json(root / f"data/models/{name}/history.json") for name in params.detectors}
    healthy_scores, tune_scores = calibration.healthy.scores, calibration.tune.scores
    chosen_by = tuning_figures(healthy_scores, tune_scores, calibration.detectors, histories)
    write_json(root / "metrics/tuning.json", chosen_by)


if __name__ == "__main__":
    run_reporting_errors(main)
