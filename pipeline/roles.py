"""Who plays which part: the cut in time, the machines held out as never seen, the roles of rows.

The shares of `split` cut the whole span. Where the fleet changed, they cut the time after the change: what is before it
trains and describes its own epoch, and of its failures each tunes or judges, but none of its rows says what is healthy
now.

Shape legend: N rows, M machines, K failures.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.log_status import IntegerN, LogStatus
from pipeline.moments import microseconds
from pipeline.params import SplitParams
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR, BoolN, IntN, Role

ROLES = tuple(str(role) for role in Role)
ROLE = {role: np.int8(code) for code, role in enumerate(Role)}
MAX_PURGE_SHARE = 0.1  # of the span, for each of the two gaps
FIRST_TUNE_SHARE = 0.1  # of the span: before it a machine has no baseline worth the name
TRAIN, CALIBRATION, TEST = 0, 2, 4  # phases; the odd ones are the gaps


@dataclass(frozen=True)
class Boundaries:
    """Microseconds since 1970, (M,) each: a machine's span and the edges inside it.

    `cut_from` is where the part begins that the shares are of: the change of the fleet, or `start` where there is none.
    """

    start: IntN
    cut_from: IntN
    train_end: IntN
    calibration_start: IntN
    calibration_end: IntN
    test_start: IntN
    end: IntN

    @property
    def purge_hours(self) -> float:
        """The longest gap of any machine."""
        return float(np.max(self.calibration_start - self.train_end, initial=0) / MICROSECONDS_PER_HOUR)

    def phase(self, machine_N: IntegerN, time_us_N: IntN) -> npt.NDArray[np.int8]:
        """0 train span, 1 gap, 2 calibration, 3 gap, 4 test; an edge belongs to what is before it."""
        phase_N = np.zeros(len(time_us_N), np.int8)
        for edge_M in (self.train_end, self.calibration_start, self.calibration_end, self.test_start):
            phase_N += time_us_N > edge_M[machine_N]
        return phase_N


def boundaries_of(machine_N: IntegerN, time_us_N: IntN, usable_N: BoolN, count: int, params: SplitParams) -> Boundaries:
    """The spans of the usable rows, one for all machines or one for each, and the edges inside them.

    A machine without rows after the change of the fleet has nothing but a train span.
    """
    latest, earliest = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    start, end = np.full(count, latest), np.full(count, earliest)
    if params.boundaries == "machine":
        np.minimum.at(start, machine_N[usable_N], time_us_N[usable_N])
        np.maximum.at(end, machine_N[usable_N], time_us_N[usable_N])
        start, end = np.where(start > end, 0, start), np.where(start > end, 0, end)
    else:
        start[:], end[:] = time_us_N[usable_N].min(), time_us_N[usable_N].max()
    change = np.iinfo(np.int64).min if params.changed_at is None else microseconds(params.changed_at)
    cut_from, shares = np.maximum(start, change), params.shares
    span = np.maximum(end - cut_from, 0)
    # a third of what train and calibration leave stays for the test, however short the data
    gap_share = min(MAX_PURGE_SHARE, (1 - shares.train_share - shares.calibration_share) / 3)
    purge = np.minimum(round(params.purge * MICROSECONDS_PER_HOUR), (gap_share * span).astype(np.int64))
    train_end = cut_from + (shares.train_share * span).astype(np.int64)
    calibration_start = train_end + purge
    calibration_end = calibration_start + (shares.calibration_share * span).astype(np.int64)
    return Boundaries(start, cut_from, train_end, calibration_start, calibration_end, calibration_end + purge, end)


def unseen_machines(machines: Sequence[str], share: float) -> BoolN:
    """Which machines (M,) are held out, by the SHA-256 of the name; none where the hash would take all.

    >>> unseen_machines(["m1", "m2", "m3"], 0.0)
    array([False, False, False])
    """
    unseen_M = np.array([_head(name) < share * 2**64 for name in machines], bool)
    return unseen_M if not unseen_M.all() else np.zeros_like(unseen_M)


def teaching(failures: pa.Table, share: float) -> BoolN:
    """Which failures (K,) teach networks their mode: about a share of those that tune and have one, by their ids.

    An id decides for ever: a failure that has taught a network chooses no policy for it later.

    >>> known = {"failure_id": ["a", "b", "c"], "failure_mode": ["imbalance", "imbalance", None], "role": ["tune"] * 3}
    >>> teaching(pa.table(known), 1.0), teaching(pa.table(known), 0.0)
    (array([ True,  True, False]), array([False, False, False]))
    """
    rows = zip(*(failures[name].to_pylist() for name in ("failure_id", "failure_mode", "role")), strict=True)
    return np.array(
        [role == Role.TUNE and bool(mode) and _head(key + "teach") < share * 2**64 for key, mode, role in rows], bool
    )


def _head(text: str) -> int:
    """The first 64 bits of the SHA-256 of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass(frozen=True)
class StatusRows:
    """N rows with what the log says of them, before they have roles."""

    machine_N: IntegerN
    time_us_N: IntN
    status_N: npt.NDArray[np.int8]  # LogStatus
    owner_N: npt.NDArray[np.int32]  # the failure whose horizon the row lies in; -1
    healthy_N: BoolN  # as far as the log knows
    trusted_N: BoolN  # the sensor is not suspect
    phase_N: npt.NDArray[np.int8]
    edges: Boundaries
    unseen_M: BoolN
    open_N: BoolN  # in an alert that nobody has answered: neither trains, validates nor describes its machine
    changed: bool  # the fleet or a group of it changed within the span

    @cached_property
    def fit_N(self) -> BoolN:
        """What may fit, calibrate or describe a machine."""
        return np.asarray(self.healthy_N & self.trusted_N)


def validation_rows(
    time_us_N: IntN, start_us_N: IntN, span_us_N: IntN, eligible_N: BoolN, share: float
) -> tuple[BoolN, bool]:
    """Which of the eligible rows of the train span validate: whole days, spread evenly, about `share` of them.

    Where the span is too short for two such days, the blocks are shorter. Returns also whether the blocks left train or
    validation empty and the latest rows were taken instead.
    """
    block_N = np.clip(span_us_N // (2 * math.ceil(1 / share)), 1, MICROSECONDS_PER_DAY)
    number_N = (time_us_N - start_us_N) // block_N
    chosen_N = eligible_N & (np.floor((number_N + 1) * share + 0.5) > np.floor(number_N * share + 0.5))
    chosen, eligible = int(chosen_N.sum()), int(eligible_N.sum())
    if 0 < chosen < eligible or eligible < 2:
        return (chosen_N if 0 < chosen < eligible else np.zeros_like(eligible_N)), eligible < 2
    rows = np.flatnonzero(eligible_N)
    count = min(max(1, round(share * eligible)), eligible - 1)
    latest_N = np.zeros_like(eligible_N)
    latest_N[rows[np.argsort(time_us_N[rows], kind="stable")[-count:]]] = True
    return latest_N, True


def roles_of(
    rows: StatusRows, tunes_K: BoolN, validation_share: float, teaches_K: BoolN | None = None
) -> tuple[npt.NDArray[np.int8], bool]:
    """Role codes (N,) and whether the latest train rows validate because there are no two whole days.

    Args:
        rows: with log status and phase.
        tunes_K: failures that tune; the others test.
        validation_share: of the train span.
        teaches_K: those of them that teach networks instead; None: no failure does.
    """
    phase_N, edges = rows.phase_N, rows.edges
    unseen_N = rows.unseen_M[rows.machine_N]
    fits_N = rows.fit_N & (phase_N == TRAIN) & ~rows.open_N
    train_N = fits_N & ~unseen_N
    # days are dealt before and after a change apart: the hours after it would fall into one of them
    new_N = rows.time_us_N >= edges.cut_from[rows.machine_N]
    begin_N = np.where(new_N, edges.cut_from[rows.machine_N], edges.start[rows.machine_N])
    end_N = np.where(new_N, edges.train_end[rows.machine_N], edges.cut_from[rows.machine_N])
    validation_N, recut = validation_rows(rows.time_us_N, begin_N, end_N - begin_N, train_N, validation_share)
    judged_N = np.isin(rows.status_N, [LogStatus.HEALTHY, LogStatus.UNCONFIRMED])
    horizon_N = rows.owner_N >= 0
    tune_N = horizon_N & (tunes_K[rows.owner_N] if len(tunes_K) else False) & ~unseen_N
    teach_N = tune_N & (teaches_K[rows.owner_N] if teaches_K is not None and len(teaches_K) else False)
    first_M = edges.start + (FIRST_TUNE_SHARE * (edges.end - edges.start)).astype(np.int64)
    old_enough_N = rows.time_us_N > first_M[rows.machine_N]
    later_N = (phase_N == TEST) | (unseen_N & (phase_N > TRAIN))
    if rows.changed:  # few failures come after a change: the older ones judge too, each in its own epoch
        later_N |= old_enough_N
    role_N = np.full(len(phase_N), ROLE[Role.NONE], np.int8)
    for role, mask_N in (
        (Role.TRAIN, train_N),
        (Role.VALIDATION, validation_N),
        (Role.BASELINE, fits_N & unseen_N),
        (Role.CALIBRATION, rows.fit_N & (phase_N == CALIBRATION) & ~unseen_N),
        (Role.TEST, judged_N & (phase_N == TEST)),
        (Role.TUNE, tune_N & ~teach_N & old_enough_N),
        (Role.TEACH, teach_N & rows.trusted_N & old_enough_N),  # nothing is learned from a suspect sensor
        (Role.TEST, horizon_N & ~tune_N & later_N),
    ):
        role_N[mask_N] = ROLE[role]
    return role_N, recut
