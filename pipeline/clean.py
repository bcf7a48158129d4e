"""Stage `clean`: what the log calls healthy and the statistics do not is removed, in train and validation rows only.

Contaminated rows pull a model towards the fault. Episodes are compared with their machine's others in the same regime
(pipeline/cleaning); a gate then asks whether the removal helps, and people have the last word. Calibration and test
rows are never touched, or the rate of false alarms would be flattered.

Shape legend: N rows of the split table, L rows looked at, E episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from threadpoolctl import threadpool_limits

from pipeline.answers import CORRECTIONS, Correction, read_corrections
from pipeline.cleaning.episodes import Selection, episode_vectors, select
from pipeline.cleaning.figures import (
    CORRECTION,
    RESIDUAL,
    Interval,
    counts,
    heat_maps,
    intervals_of,
    listed,
    removed_csv,
)
from pipeline.cleaning.gate import Verdict, judge_cleaning
from pipeline.cleaning.refinement import Refinement, refine
from pipeline.errors import ContractError, run_reporting_errors
from pipeline.moments import iso_exact
from pipeline.params import BaselineParams, CleanParams, load_params
from pipeline.rows import has_role
from pipeline.schema import (
    CLEAN_SCHEMA,
    KEY_FIELDS,
    SPLIT_SCHEMA,
    BoolN,
    FleetSpec,
    FloatN,
    Role,
    dictionary_column,
    load_fleet_spec,
    times_us,
)
from pipeline.store import read_table, write_json, write_table, write_text

REASONS = ("", RESIDUAL, CORRECTION)
MOST_SAID = 5  # corrections without a row that are named
COLUMNS = (*(field.name for field in KEY_FIELDS), "epoch", "role", "failure_id")


@dataclass(frozen=True)
class Cleaning:
    """CLEAN_SCHEMA in the rows and order of `split`, metrics/cleaning.json, removed intervals and heat maps."""

    table: pa.Table
    metrics: dict[str, Any]
    intervals: list[Interval]
    worst: list[dict[str, Any]]


def clean(
    data_set: Path, split: pa.Table, fleet: FleetSpec, params: CleanParams, seed: int, baseline: BaselineParams
) -> Cleaning:
    """Look at every train and validation row once, and say which are removed and why.

    Args:
        data_set: the snapshot; its corrections.csv, where it has one, is applied last.
        split: COLUMNS of SPLIT_SCHEMA.
        fleet: what the numbers mean.
        params: clean section.
        seed: of samples, groups and draws.
        baseline: train.baseline section. Its condition column tells cleaning the regimes, whatever the scope: an idling
            machine is compared with itself idling. The gate's detector sees conditions as the trained ones will.

    Raises:
        ContractError: no training row; more contaminated than `max_removed_share`; a correction of an unknown machine.
    """
    looked_at_N = has_role(split, Role.TRAIN, Role.VALIDATION)
    if not looked_at_N.any():
        where = "data/status/split.parquet"
        raise ContractError.of("train rows", got="none", expected="at least one", where=where)
    rows = select(split, looked_at_N, times_us(split["timestamp"]), params.episode_hours)
    corrections = read_corrections(data_set, rows.machines)
    found, regimes = _refined(data_set, rows, fleet, params, seed, baseline.condition_column)
    meant_L = found.removed_E[rows.episode_N]
    _check_share(meant_L, found, params)
    verdict = judge_cleaning(
        data_set,
        split,
        _spread(meant_L, looked_at_N),
        fleet,
        params.gate_rows,
        seed,
        condition_column=baseline.conditions_from,
    )
    removed_L = meant_L.copy() if verdict.kept else np.zeros_like(meant_L)
    reason_L = removed_L.astype(np.int8)
    asked_L, idle = correct(rows, corrections, removed_L, reason_L)
    intervals = intervals_of(rows, meant_L & ~asked_L, removed_L, RESIDUAL, found.evidence_E)
    intervals += intervals_of(rows, asked_L, removed_L, CORRECTION, found.evidence_E)
    metrics = counts(rows, removed_L, reason_L, REASONS) | {
        "method": params.method,
        "model": params.model,
        "regimes": regimes,
        "episodes": len(rows.block_E),
        "removed_episodes": int(found.removed_E.sum()),
        "contaminated_share_estimate": found.contaminated_share,
        "rounds": list(found.rounds),
        "gate": verdict.to_json(),
        "corrections": len(corrections),
        "worst_episodes": listed(intervals),
        "notes": _notes(verdict, corrections, idle),
        "warnings": [*found.warnings, *_emptied(rows, removed_L)],
    }
    worst = heat_maps(data_set, split, looked_at_N, rows, removed_L, intervals, fleet)
    return Cleaning(_table(split, looked_at_N, rows, found, removed_L, reason_L), metrics, intervals, worst)


def _refined(
    data_set: Path, rows: Selection, fleet: FleetSpec, params: CleanParams, seed: int, condition_column: str
) -> tuple[Refinement, str | None]:
    if params.method == "none":
        episodes = len(rows.block_E)
        return Refinement(np.full(episodes, np.nan), np.zeros(episodes, bool), (), 0.0), None
    log = fleet.kind == "spectrum"
    vectors = episode_vectors(data_set, rows, fleet.bins, condition_column=condition_column, log=log, seed=seed)
    return refine(rows, vectors, params, seed), vectors.regime_source


def _check_share(meant_L: BoolN, found: Refinement, params: CleanParams) -> None:
    share = float(meant_L.mean())
    if share <= params.max_removed_share:
        return
    got = (
        f"{share:.1%} of {len(meant_L):,} train and validation rows look contaminated "
        f"({int(found.removed_E.sum()):,} of {len(found.removed_E):,} episodes)"
    )
    expected = (
        f"at most clean.max_removed_share = {params.max_removed_share:.1%}; look at the maintenance log and "
        "split.horizon_hours first, then raise clean.max_removed_share or clean.remove_above, or set clean.method: none"
    )
    raise ContractError.of("contaminated rows", got=got, expected=expected, where="params.yaml, clean")


def correct(
    rows: Selection, corrections: Sequence[Correction], removed_L: BoolN, reason_L: npt.NDArray[np.int8]
) -> tuple[BoolN, list[Correction]]:
    """Apply corrections to `removed_L` and `reason_L` (in place).

    Returns:
        The rows (L,) that a person had removed, and the corrections that meet no row.
    """
    asked_L, idle = np.zeros(len(rows), bool), list[Correction]()
    codes = {name: code for code, name in enumerate(rows.machines)}
    for each in corrections:
        inside_L = (rows.machine_N == codes[each.machine]) & (rows.time_us_N >= each.start_us)
        inside_L &= rows.time_us_N <= each.end_us
        if not inside_L.any():
            idle.append(each)
        removed_L[inside_L] = not each.keep
        asked_L[inside_L] = not each.keep
        reason_L[inside_L] = 0 if each.keep else REASONS.index(CORRECTION)
    return asked_L, idle


def _notes(verdict: Verdict, corrections: Sequence[Correction], idle: Sequence[Correction]) -> list[str]:
    found = [
        verdict.why
        if verdict.kept
        else f"{verdict.why} The raw rows stay, and nothing that the statistics found is removed."
    ]
    kept = sum(each.keep for each in corrections)
    if corrections:
        found.append(f"{CORRECTIONS} keeps {kept} and removes {len(corrections) - kept} intervals.")
    for each in idle[:MOST_SAID]:
        span = f"{iso_exact(each.start_us)} to {iso_exact(each.end_us)}"
        nothing = f"{each.machine} has no train or validation row from {span}"
        found.append(f"{CORRECTIONS}, {each.place}: {nothing}: there is nothing to {each.action}.")
    if len(idle) > MOST_SAID:
        found.append(f"{CORRECTIONS}: {len(idle) - MOST_SAID} more of its lines meet no train or validation row.")
    return found


def _emptied(rows: Selection, removed_L: BoolN) -> list[str]:
    left_M = np.bincount(rows.machine_N[~removed_L], minlength=len(rows.machines))
    had_M = np.bincount(rows.machine_N, minlength=len(rows.machines))
    return [
        f"{rows.machines[code]}: all of its train and validation rows are removed; it has no baseline of its own."
        for code in np.flatnonzero((had_M > 0) & (left_M == 0)).tolist()
    ]


def _spread(mask_L: BoolN, looked_at_N: BoolN) -> BoolN:
    mask_N = np.zeros(len(looked_at_N), bool)
    mask_N[looked_at_N] = mask_L
    return mask_N


def _table(
    split: pa.Table,
    looked_at_N: BoolN,
    rows: Selection,
    found: Refinement,
    removed_L: BoolN,
    reason_L: npt.NDArray[np.int8],
) -> pa.Table:
    evidence_E: FloatN = found.evidence_E
    evidence_N = np.full(split.num_rows, np.nan, np.float32)
    evidence_N[looked_at_N] = evidence_E[rows.episode_N]
    reason_N = np.zeros(split.num_rows, np.int8)
    reason_N[looked_at_N] = reason_L
    columns = [
        *(split[field.name] for field in KEY_FIELDS),
        pa.array(evidence_N, mask=np.isnan(evidence_N)),
        pa.array(_spread(removed_L, looked_at_N)),
        dictionary_column(reason_N, REASONS),
    ]
    return pa.Table.from_arrays(columns, schema=CLEAN_SCHEMA)


def main() -> None:
    """Read data/raw and the split; write data/status/clean.parquet, data/cleaning and metrics/cleaning.json."""
    raw, params = Path("data/raw"), load_params()
    schema = pa.schema([SPLIT_SCHEMA.field(name) for name in COLUMNS])
    split = read_table("data/status/split.parquet", schema=schema)
    fleet = load_fleet_spec(raw / "fleet.yaml")
    # matrices are small: two threads share nothing but waiting, ten times as long where another process has a core
    with threadpool_limits(1, user_api="blas"):
        found = clean(raw, split, fleet, params.clean, params.seed, params.train.baseline)
    write_table("data/status/clean.parquet", found.table)
    write_text("data/cleaning/removed.csv", removed_csv(found.intervals))
    write_json("data/cleaning/worst.json", found.worst)
    write_json("metrics/cleaning.json", found.metrics)


if __name__ == "__main__":
    run_reporting_errors(main)
