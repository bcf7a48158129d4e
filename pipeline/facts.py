"""A few numbers per spectrum, so that checks run on a few columns and not on every bin.

One vectorised pass: a suite of 128 checks on 64 bin columns takes 149 s per million rows, the same checks on facts 1 s.

Shape legend: N rows, F frequency bins, R runs of rows of one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schema import MICROSECONDS_PER_HOUR, BoolN, FloatNF, IntN, codes_and_names, times_us
from pipeline.store import read_table, row_count

Columns = dict[str, npt.NDArray[np.generic]]
FloatRF = npt.NDArray[np.float32]
SPECTRUM_FACTS = {
    "nonfinite": np.int32,
    "negative": np.int32,
    "energy": np.float32,
    "peak": np.float32,
    "centroid": np.float32,
    "top_share": np.float32,
    "relative_range": np.float32,
    "clipped": np.int32,
}
MICROSECONDS = 1e6
BLOCK_VALUES = 131_072  # numbers in a block: half a megabyte, which a core's own cache holds
PEAK_TOLERANCE = 1e-6  # relative: bins this close to the largest are at one level
LOG_FLOOR = np.float32(1e-12)  # a bin that is always zero has a log too
STRAY_SHARE = 0.01  # of the rows: more of them beyond a gap are no fault of a clock


def spectrum_facts(spectra_NF: FloatNF) -> Columns:
    """Facts of each spectrum on its own: counts int32 (N,), the rest float32 (N,).

    `clipped` counts the bins that share the largest magnitude, where more than one does and not all do. A row with a
    bin that is no finite number has NaN for all but the counts; a row of zeros has relative range 0, and with one bin
    only there is none (NaN).

    >>> facts = spectrum_facts(np.array([[0, 3, 4, 0], [1, np.nan, -1, 0], [1, 9, 9, 2]], np.float32))
    >>> facts["energy"][:2].tolist(), facts["centroid"][:2].tolist()
    ([5.0, nan], [1.5714285373687744, nan])
    >>> facts["nonfinite"].tolist(), facts["negative"].tolist(), facts["clipped"].tolist()
    ([0, 1, 0], [0, 1, 0], [0, 0, 2])
    """
    return facts_and_log_sums(spectra_NF, None)[0]


def facts_and_log_sums(
    spectra_NF: FloatNF, starts_R: npt.NDArray[np.integer] | None
) -> tuple[Columns, FloatRF, npt.NDArray[np.int64]]:
    """Facts of each spectrum, and per run of rows the sum of log spectra (R, F) with the rows in it (R,).

    One pass: a block of rows is turned so that bins stand in rows (every reduction then runs over whole cache lines, 5
    times as fast as along 64 bins), and all facts are taken while it is in the cache. Rows of zeros, of negative or of
    infinite numbers have no log spectrum and are left out of the sums.

    Args:
        spectra_NF: in any order.
        starts_R: first row of each run, the first 0; None: no sums.
    """
    count, bins = spectra_NF.shape
    facts: Columns = {name: np.empty(count, kind) for name, kind in SPECTRUM_FACTS.items()}
    runs = 0 if starts_R is None else len(starts_R)
    sums_RF, rows_R = np.zeros((runs, bins), np.float32), np.zeros(runs, np.int64)
    step = max(1, BLOCK_VALUES // bins)
    with np.errstate(all="ignore"):  # what is not finite is a fact here, not a surprise
        for begin in range(0, count, step):
            block_FN = np.array(spectra_NF[begin : begin + step].T, order="C")  # a copy, also of a single row
            end = begin + block_FN.shape[1]
            good_N = _block_facts(block_FN, {name: values[begin:end] for name, values in facts.items()})
            if starts_R is not None:
                first, last = np.searchsorted(starts_R, [begin, end], side="left")
                first -= int(first == runs or starts_R[first] > begin)  # a run that began before this block
                inside_R = np.maximum(starts_R[first:last] - begin, 0)
                np.maximum(block_FN, LOG_FLOOR, out=block_FN)
                np.log(block_FN, out=block_FN)
                if not good_N.all():
                    block_FN[:, ~good_N] = 0
                sums_RF[first:last] += np.add.reduceat(block_FN, inside_R, axis=1).T
                rows_R[first:last] += np.add.reduceat(good_N.astype(np.int64), inside_R)
    return facts, sums_RF, rows_R


def _block_facts(block_FN: FloatNF, out: Columns) -> BoolN:
    """Write the facts of one block of spectra, bins by rows, and say which rows have a log spectrum."""
    bins = len(block_FN)
    high_N, low_N = block_FN.max(axis=0), block_FN.min(axis=0)
    peak_N = np.maximum(high_N, -low_N)
    energy_N = np.sqrt(np.einsum("fn,fn->n", block_FN, block_FN))
    broken_N = ~np.isfinite(energy_N)  # also where float32 cannot hold the energy; told apart below
    out["nonfinite"][:] = out["negative"][:] = 0
    magnitude_FN = block_FN
    if broken_N.any():
        nonfinite_N = bins - np.isfinite(block_FN).sum(axis=0)
        out["nonfinite"][:], broken_N = nonfinite_N, nonfinite_N > 0
        out["negative"][broken_N] = (block_FN[:, broken_N] < 0).sum(axis=0)
    below_N = low_N < 0
    if below_N.any():
        out["negative"][below_N] = (block_FN[:, below_N] < 0).sum(axis=0)
    if below_N.any() or broken_N.any():
        magnitude_FN = np.abs(block_FN)
    sum_N = magnitude_FN.sum(axis=0)
    moment_N = np.einsum("f,fn->n", np.arange(bins, dtype=np.float32), magnitude_FN)
    at_peak_FN = magnitude_FN >= peak_N * np.float32(1 - PEAK_TOLERANCE)
    at_peak_N = at_peak_FN.view(np.uint8).sum(axis=0, dtype=np.uint8 if bins < 256 else np.int32)
    out["clipped"][:] = np.where((at_peak_N > 1) & (at_peak_N < bins), at_peak_N, 0)
    out["energy"][:], out["peak"][:] = energy_N, peak_N
    out["centroid"][:] = moment_N / sum_N
    out["top_share"][:] = peak_N / sum_N
    out["relative_range"][:] = np.where(peak_N > 0, (high_N - low_N) / peak_N, 0.0) if bins > 1 else np.nan
    if broken_N.any():
        for values in out.values():
            if values.dtype.kind == "f":
                values[broken_N] = np.nan
    return np.asarray(~broken_N & np.isfinite(energy_N) & ~below_N & (high_N > 0))


@dataclass
class _Last:
    """A machine's newest row so far."""

    time_us: int
    spectrum_F: FloatNF
    repeats: int


@dataclass(frozen=True)
class Links:
    """What the rows of a batch say of the row before: made where the spectra are, read where the order is known."""

    equal_N: BoolN  # bin by bin equal to the row before, of the same machine
    starts_R: IntN  # first row of each run of rows of one machine
    first_RF: FloatNF
    last_RF: FloatNF

    @classmethod
    def of(cls, machine_N: npt.NDArray[np.integer], spectra_NF: FloatNF) -> Links:
        """Links of N rows."""
        first_N = np.r_[len(machine_N) > 0, machine_N[1:] != machine_N[:-1]][: len(machine_N)]
        starts_R = np.flatnonzero(first_N)
        equal_N = _equal_to_previous(spectra_NF) & ~first_N
        ends_R = np.r_[starts_R[1:], len(machine_N)][: len(starts_R)] - 1
        return cls(equal_N, starts_R, spectra_NF[starts_R], spectra_NF[ends_R])


class History:
    """Facts that need the row before, carried from batch to batch and from file to file.

    >>> history = History()
    >>> spectra = np.array([[1, 2], [1, 2], [1, 3]], np.float32)
    >>> times, pumps = np.array([0, 5_000_000, 5_000_000]), np.zeros(3, int)
    >>> facts = history.facts(pumps, ["pump"], times, Links.of(pumps, spectra))
    >>> facts["repeats"].tolist(), facts["seconds_since_previous"].tolist()
    ([0, 1, 0], [nan, 5.0, 0.0])
    """

    def __init__(self) -> None:
        self._last: dict[str, _Last] = {}

    def facts(
        self, machine_N: npt.NDArray[np.integer], machines: Sequence[str], time_us_N: IntN, links: Links
    ) -> Columns:
        """`repeats` int32 (N,) and `seconds_since_previous` float64 (N,), NaN for a machine's first row.

        Rows stand in the order of machine and time, as in a day file; `machine_N` are codes into `machines`.
        """
        count = len(machine_N)
        if not count:
            return {"repeats": np.empty(0, np.int32), "seconds_since_previous": np.empty(0)}
        seconds_N = np.empty(count)
        seconds_N[1:] = np.diff(time_us_N) / MICROSECONDS
        carried_N = np.zeros(count, np.int64)
        starts = links.starts_R.tolist()
        # the last row of each run that differs from the one before it
        still_R = np.maximum.reduceat(np.where(links.equal_N, 0, np.arange(count)), links.starts_R)
        for run, (start, end) in enumerate(zip(starts, [*starts[1:], count], strict=True)):
            name = machines[machine_N[start]]
            last = self._last.get(name)
            seconds_N[start] = np.nan if last is None else (time_us_N[start] - last.time_us) / MICROSECONDS
            if last is not None and np.array_equal(last.spectrum_F, links.first_RF[run]):
                carried_N[start] = last.repeats + 1
            still = int(still_R[run])
            repeats = end - 1 - still + int(carried_N[still])
            self._last[name] = _Last(int(time_us_N[end - 1]), links.last_RF[run], repeats)
        position_N = np.arange(count)
        reset_N = np.maximum.accumulate(np.where(links.equal_N, 0, position_N))
        repeats_N = position_N - reset_N + carried_N[reset_N]
        return {"repeats": repeats_N.astype(np.int32), "seconds_since_previous": seconds_N}


def _equal_to_previous(spectra_NF: FloatNF) -> BoolN:
    """Which rows (N,) are bin by bin equal to the row before; NaN equals nothing."""
    equal_N = np.zeros(len(spectra_NF), bool)
    # the first bin tells almost all rows apart: 64 times less to compare
    likely = np.flatnonzero(spectra_NF[1:, 0] == spectra_NF[:-1, 0]) + 1
    equal_N[likely] = (spectra_NF[likely] == spectra_NF[likely - 1]).all(axis=1)
    return equal_N


def newest_of_the_fleet(machine_N: npt.NDArray[np.integer], time_us_N: IntN, gap_hours: float) -> int:
    """The newest time (microseconds) before rows that only a wrong clock explains.

    Such rows come after a gap longer than `gap_hours`, are at most 1 % of all, and are of fewer than half of the
    machines, unless the gap is longer than all that lies before it.

    >>> hours = np.array([0, 1, 2] * 50 + [900]) * 3_600_000_000
    >>> newest_of_the_fleet(np.r_[np.zeros(75, int), np.ones(76, int)], hours, 24.0) // 3_600_000_000
    2
    """
    order = np.argsort(time_us_N, kind="stable")
    times = time_us_N[order]
    count = len(times)
    for gap in (np.flatnonzero(np.diff(times) > gap_hours * MICROSECONDS_PER_HOUR) + 1).tolist():
        few_rows = count - gap <= STRAY_SHARE * count
        beyond, machines = np.unique(machine_N[order[gap:]]), len(np.unique(machine_N)) if few_rows else 0
        if few_rows and (2 * len(beyond) < machines or times[gap] - times[gap - 1] > times[gap - 1] - times[0]):
            return int(times[gap - 1])
    return int(times[-1]) if count else 0


def newest_of_files(files: Sequence[Path], gap_hours: float) -> int:
    """The newest trustworthy time of day files, from their keys alone; see `newest_of_the_fleet`.

    Rows of a wrong clock are few and last, so only the last files are looked at, unless there is a gap among them.
    """
    rows = [row_count(path) for path in files]
    tail = len(files)
    while tail and sum(rows[tail:]) <= STRAY_SHARE * sum(rows):
        tail -= 1
    times = np.sort(np.concatenate([times_us(read_table(path, ["timestamp"])["timestamp"]) for path in files[tail:]]))
    if not len(times) or (np.diff(times) <= gap_hours * MICROSECONDS_PER_HOUR).all():
        return int(times[-1]) if len(times) else 0
    keys = pa.concat_tables([read_table(path, ["machine_id", "timestamp"]) for path in files])
    machine_N, _ = codes_and_names(keys["machine_id"])
    return newest_of_the_fleet(machine_N, times_us(keys["timestamp"]), gap_hours)
