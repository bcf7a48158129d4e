"""Did cleaning help? A quick detector is fitted on the raw and on the cleaned rows, and both are judged on other rows.

Where tune failures are known, by how well each tells their horizons from healthy calibration rows. Else by how well a
threshold holds on machines that trained neither: contamination widens what passes for healthy, and tails no longer fit.

Score contract: float64 of shape (N,), higher is more anomalous. Shape legend: N rows, K failures, M machines, D draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.detectors import BaselineTable, Fitting, TrainingRows, fit_baselines
from pipeline.detectors.linear import PcaDetector
from pipeline.rows import Rows, has_role, load_rows
from pipeline.schema import BoolN, FleetSpec, FloatN, IntN, Role, codes_and_names, times_us
from pipeline.training_rows import sample_hours

DRAWS, CONFIDENCE = 400, 0.9
TIES = {"auroc": 0.002, "tail_instability": 0.05}  # a difference this small says nothing
MIN_POSITIVES, MIN_ROWS = 20, 200
TAIL_PERCENTILE = 99.0
REFERENCE_EVERY = 5  # every fifth training row sets the detector's units, and the tail's threshold
HELD_OUT = 5  # every fifth machine trains neither, where no machine is held out already
TIE_RULE = "a tie keeps the cleaning: what it removed has evidence of its own"


@dataclass(frozen=True)
class Verdict:
    """Both figures, their difference (positive: cleaning helped) with intervals over failures and machines; who won.

    `figure` is `auroc` (higher is better), `tail_instability` (the absolute log of the realised over the nominal rate,
    lower is better), or None where nothing could be judged.
    """

    figure: str | None
    kept: bool
    why: str
    raw: tuple[float, float, float] | None = None  # value, and interval
    cleaned: tuple[float, float, float] | None = None
    difference: tuple[float, float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """For metrics."""
        values = {"raw": self.raw, "cleaned": self.cleaned, "difference": self.difference}
        found = {name: None if value is None else round(value[0], 5) for name, value in values.items()}
        intervals = {
            f"{name}_interval": None if value is None else [round(value[1], 5), round(value[2], 5)]
            for name, value in values.items()
        }
        return {"figure": self.figure, "cleaning_kept": self.kept, "why": self.why, **found, **intervals}


def judge_cleaning(
    data_set: Path,
    split: pa.Table,
    removed_N: BoolN,
    fleet: FleetSpec,
    max_rows: int,
    seed: int,
    *,
    condition_column: str | None,
) -> Verdict:
    """Judge removals (N,) of a split table's rows; no test row is read.

    Args:
        data_set: the snapshot.
        split: SPLIT_SCHEMA.
        removed_N: of its rows.
        fleet: what the numbers mean.
        max_rows: of training rows, and of each kind of judged rows; drawn in whole hours beyond it.
        seed: of the draws.
        condition_column: that names conditions to the quick detector; None: it does not tell them apart.
    """
    train_N = has_role(split, Role.TRAIN)
    if not (removed_N & train_N).any():
        return Verdict(None, True, "No training row was removed: there is nothing to judge.")
    positive_N, negative_N = has_role(split, Role.TUNE), has_role(split, Role.CALIBRATION)
    enough = positive_N.sum() >= MIN_POSITIVES and negative_N.sum() >= MIN_ROWS
    other_N = positive_N | negative_N if enough else has_role(split, Role.BASELINE)
    wanted_N = np.zeros(len(train_N), bool)
    for part_N in (train_N, *((positive_N, negative_N) if enough else (other_N,))):
        wanted_N |= _sampled(split, part_N, max_rows, seed)
    rows = load_rows(data_set, split, wanted_N, fleet.bins, condition_column)
    role_N, removed = rows.column("role"), removed_N[wanted_N]
    log = fleet.kind == "spectrum"
    if enough:
        return _by_failures(rows, role_N, removed, seed, log=log)
    return _by_tails(rows, role_N, removed, seed, log=log)


def _sampled(split: pa.Table, mask_N: BoolN, most: int, seed: int) -> BoolN:
    chosen_N = mask_N.copy()
    if mask_N.sum() > most:
        machine_N, _ = codes_and_names(split["machine_id"])
        chosen_N[mask_N] = sample_hours(machine_N[mask_N], times_us(split["timestamp"])[mask_N], most, seed)
    return chosen_N


def _by_failures(rows: Rows, role_N: npt.NDArray[Any], removed_N: BoolN, seed: int, *, log: bool) -> Verdict:
    train_N, judged_N = role_N == Role.TRAIN, (role_N == Role.TUNE) | (role_N == Role.CALIBRATION)
    if (train_N & ~removed_N).sum() < MIN_ROWS:
        return Verdict(None, True, "Too few training rows are left to judge the cleaning.")
    failure_N = np.unique(rows.column("failure_id"), return_inverse=True)[1]
    fits = (train_N, train_N & ~removed_N)
    tables = [baselines_of(rows, fits_N, log=log) for fits_N in fits]
    judged_N &= tables[1].is_own(tables[1].codes(rows.keys))  # the fleet's baseline would say less
    group_N = np.where(role_N == Role.TUNE, failure_N, rows.machine)[judged_N]
    positive_N = (role_N == Role.TUNE)[judged_N]
    if positive_N.sum() < MIN_POSITIVES or (~positive_N).sum() < MIN_ROWS:
        return Verdict(
            None, True, "No tune failure of a machine with its own baseline: the cleaning cannot be judged, and stands."
        )
    wins = [
        win_table(quick_scores(rows, fits_N, table, judged_N), group_N, positive_N)
        for fits_N, table in zip(fits, tables, strict=True)
    ]
    drawn = drawn_auroc(wins[0], wins[1], seed)
    failures = len(wins[0][1])
    return _verdict("auroc", drawn, 1.0, f"{failures} tune failures against healthy calibration rows")


def _by_tails(rows: Rows, role_N: npt.NDArray[Any], removed_N: BoolN, seed: int, *, log: bool) -> Verdict:
    unused_N = role_N == Role.BASELINE
    if unused_N.sum() < MIN_ROWS:
        names = np.unique(rows.machine)
        unused_N = np.isin(rows.machine, names[::HELD_OUT]) & ~removed_N if len(names) >= HELD_OUT else unused_N
    train_N = (role_N == Role.TRAIN) & ~unused_N & (np.arange(len(rows)) % REFERENCE_EVERY > 0)
    if unused_N.sum() < MIN_ROWS or (train_N & ~removed_N).sum() < MIN_ROWS:
        return Verdict(None, True, "No tune failure and no unused machine: the cleaning cannot be judged, and stands.")
    reference_N = (role_N == Role.TRAIN) & ~unused_N & ~train_N & ~removed_N
    describes_N = unused_N & _first_half(rows, unused_N)
    judged_N = unused_N & ~describes_N
    rates = []
    for fits_N in (train_N, train_N & ~removed_N):
        table = baselines_of(rows, fits_N | describes_N, log=log)
        score_N = quick_scores(rows, fits_N, table, reference_N | judged_N)
        is_reference = reference_N[reference_N | judged_N]
        above_N = score_N[~is_reference] > np.percentile(score_N[is_reference], TAIL_PERCENTILE)
        machine_N = rows.machine[judged_N]
        rates.append((np.bincount(machine_N, above_N).astype(np.float64), np.bincount(machine_N).astype(np.int64)))
    drawn = drawn_instability(rates[0], rates[1], seed)
    return _verdict("tail_instability", drawn, -1.0, f"healthy tails of {len(np.unique(machine_N))} unused machines")


def _verdict(figure: str, drawn: tuple[FloatN, FloatN], better: float, by: str) -> Verdict:
    """From figures of (1 + D,) draws each, the first of all data, to who won."""
    raw, cleaned, difference = (_interval(values) for values in (drawn[0], drawn[1], better * (drawn[1] - drawn[0])))
    tie = TIES[figure]
    kept = difference[0] >= -tie or difference[2] >= 0  # harm has to be shown: beyond a tie, and beyond chance
    helped = difference[0] > tie and difference[1] > 0
    words = "helped" if helped else f"made no clear difference ({TIE_RULE})" if kept else "did harm"
    return Verdict(figure, kept, f"Judged by {by}, cleaning {words}.", raw, cleaned, difference)


def _interval(values: FloatN) -> tuple[float, float, float]:
    low, high = np.percentile(values[1:], [50 - 50 * CONFIDENCE, 50 + 50 * CONFIDENCE])
    return float(values[0]), float(low), float(high)


def _first_half(rows: Rows, among_N: BoolN) -> BoolN:
    """Rows of the first half of the time of their machine's rows among those given."""
    first_N = np.zeros(len(rows), bool)
    for machine in np.unique(rows.machine[among_N]):
        mine = among_N & (rows.machine == machine)
        first_N[mine] = rows.time_us[mine] <= np.median(rows.time_us[mine])
    return first_N


def baselines_of(rows: Rows, describes_N: BoolN, *, log: bool) -> BaselineTable:
    """Baselines per machine, epoch and condition from the rows given; `log`: magnitudes are seen in log."""
    keys = rows.keys.take(np.flatnonzero(describes_N))
    return fit_baselines(rows.spectra[describes_N], keys, rows.time_us[describes_N], log=log)


def quick_scores(rows: Rows, fits_N: BoolN, baselines: BaselineTable, judged_N: BoolN) -> FloatN:
    """Scores of the judged rows by principal components of the fitting rows, in their order.

    Args:
        rows: all rows; each machine has a baseline of each of their conditions.
        fits_N: that fit the components; every fifth sets the units of Q and T squared.
        baselines: that rows are told relative to.
        judged_N: scored.
    """
    code_N = baselines.codes(rows.keys)
    index = np.flatnonzero(fits_N)
    reference, train = index[::REFERENCE_EVERY], np.delete(index, np.s_[::REFERENCE_EVERY])
    detector = PcaDetector(baselines)
    fitted = TrainingRows(rows.spectra[train], code_N[train], rows.spectra[reference], code_N[reference])
    detector.fit(fitted, Fitting(0, torch.device("cpu")))
    return detector.score(rows.spectra[judged_N], code_N[judged_N])


Wins = tuple[FloatN, IntN, IntN]


def win_table(score_N: FloatN, group_N: IntN, positive_N: BoolN) -> Wins:
    """How often a row of each failure scores above a row of each machine (K, M), and the rows of both.

    The AUROC of any set of failures and machines is a weighted mean of this table, so draws need no scores.

    >>> wins, _, _ = win_table(np.array([3.0, 1.0, 2.0]), np.array([0, 0, 1]), np.array([True, True, False]))
    >>> wins.tolist()
    [[0.5]]
    """
    failures, count_K = np.unique(group_N[positive_N], return_counts=True)
    machines, count_M = np.unique(group_N[~positive_N], return_counts=True)
    wins_KM = np.empty((len(failures), len(machines)))
    for column, machine in enumerate(machines):
        healthy = np.sort(score_N[~positive_N & (group_N == machine)])
        for row, failure in enumerate(failures):
            mine = score_N[positive_N & (group_N == failure)]
            below, to = (np.searchsorted(healthy, mine, side=side).mean() for side in ("left", "right"))
            wins_KM[row, column] = (below + to) / 2 / len(healthy)
    return wins_KM, count_K, count_M


def drawn_auroc(raw: Wins, cleaned: Wins, seed: int) -> tuple[FloatN, FloatN]:
    """AUROC (1 + D,) of both, of all data and then of drawn failures and machines, the same for both."""
    rng = np.random.default_rng([seed, 3])
    count_K, count_M = raw[1], raw[2]
    weight_DK = np.concatenate([np.ones((1, len(count_K))), _draws(rng, len(count_K))]) * count_K
    weight_DM = np.concatenate([np.ones((1, len(count_M))), _draws(rng, len(count_M))]) * count_M
    total_D = weight_DK.sum(axis=1) * weight_DM.sum(axis=1)
    both = [np.einsum("dk,km,dm->d", weight_DK, table[0], weight_DM) / total_D for table in (raw, cleaned)]
    return both[0], both[1]


def drawn_instability(raw: tuple[FloatN, IntN], cleaned: tuple[FloatN, IntN], seed: int) -> tuple[FloatN, FloatN]:
    """Absolute log of the realised over the nominal rate (1 + D,) of both, of all and of drawn machines."""
    rng = np.random.default_rng([seed, 4])
    count_M = raw[1]
    weight_DM = np.concatenate([np.ones((1, len(count_M))), _draws(rng, len(count_M))])
    nominal = 1 - TAIL_PERCENTILE / 100
    rows_D = np.maximum(weight_DM @ count_M, 1)
    rates = [np.maximum((weight_DM @ table[0]) / rows_D, 0.1 * nominal) for table in (raw, cleaned)]
    return np.abs(np.log(rates[0] / nominal)), np.abs(np.log(rates[1] / nominal))


def _draws(rng: np.random.Generator, count: int) -> FloatN:
    """How often each of `count` is drawn (D, count), with replacement."""
    return rng.multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(np.float64)
