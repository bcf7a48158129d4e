"""Who moved, and who moved together: each machine against its own past, all machines against each other.

After the consensus of Rognvaldsson and others 2018 (Data Mining and Knowledge Discovery 32:344): the fleet itself is
the model of what is normal, and a machine that leaves its peers is a fault. A machine's shift is, per condition and
column, how far its mean of some rows lies from its reference's, in standard deviations of what its healthy stretches of
time do; these lean on the fleet's where it has few. Machines moved together where their shifts point the same way.

Shape legend: N rows, M machines, K conditions, B blocks of time, D columns of `SHAPE`; cells are machine and condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.drift.columns import Heard
from pipeline.rows import Codes
from pipeline.schema import MICROSECONDS_PER_DAY, BoolN, FloatN, IntN

MIN_CELL_ROWS = 3  # of a machine in a condition, below which its mean says nothing
MIN_MACHINE_ROWS = 10  # of the reference, below which a machine cannot be compared with itself
CLIP = 12.0  # robust standard deviations: a shock, or a sensor's nonsense, counts so much and no more
PRIOR_BLOCKS = 4.0  # with whose weight a cell's variation between blocks leans on the fleet's
MOST_SHIFT = 10.0  # beyond, a shift is large: one condition that is always the same must not drown the others
MIN_VOTERS = 3  # fewer have no consensus
UNSURE = 1.0  # variance: the scale of a wider baseline holds what is not known of its location
LEAST_SPREAD = 0.1  # of a row's: smaller movements of a mean are nobody's business
SAME_WAY = 0.5  # cosine to the common shift
SAME_TIME = 0.5  # of the common shift, which a machine that moved earlier had made already

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """Rows, sums and sums of squares of cells: (..., K), (..., K, D) and (..., K, D)."""

    rows: Array
    total: Array
    squares: Array

    @property
    def mean(self) -> Array:
        """NaN where a cell has too few rows."""
        rows = np.where(self.rows >= MIN_CELL_ROWS, self.rows, np.nan)
        return np.asarray(self.total / rows[..., None])


@dataclass(frozen=True)
class Usual:
    """What the machines of a reference do: means (M, K, D), and variances of one row and between blocks (M, K, D)."""

    centre_D: FloatN
    spread_D: FloatN  # of a row, robust
    sums: Sums  # per machine
    within_MKD: Array
    between_MKD: Array
    blocks_MK: Array

    @classmethod
    def of(cls, values_ND: Array, machine_N: Codes, condition_N: Codes, block_N: IntN, shape: tuple[int, int]) -> Usual:
        """Of reference rows; `shape` is (M, K), `block_N` numbers the blocks of time from 0."""
        low_D, centre_D, high_D = np.quantile(values_ND, [0.025, 0.5, 0.975], axis=0)
        spread_D = np.maximum((high_D - low_D) / 3.92, 1e-9)
        standard_ND = np.clip((values_ND - centre_D) / spread_D, -CLIP, CLIP)
        blocks = int(block_N.max(initial=0)) + 1
        of_blocks = sums_of(standard_ND, (block_N, machine_N, condition_N), (blocks, *shape))
        every = Sums(*(part.sum(axis=0) for part in (of_blocks.rows, of_blocks.total, of_blocks.squares)))
        return cls(centre_D, spread_D, every, *_variances(of_blocks))

    @classmethod
    def with_blocks(
        cls, values_ND: Array, machine_N: Codes, condition_N: Codes, block_N: IntN, shape: tuple[int, int]
    ) -> tuple[Usual, Sums]:
        """As `of`, and the sums of each block (B, M, K)."""
        usual = cls.of(values_ND, machine_N, condition_N, block_N, shape)
        blocks = int(block_N.max(initial=0)) + 1
        return usual, sums_of(usual.standard(values_ND), (block_N, machine_N, condition_N), (blocks, *shape))

    def standard(self, values_ND: Array) -> Array:
        """Values in robust standard deviations of one row of the fleet."""
        return np.asarray(np.clip((values_ND - self.centre_D) / self.spread_D, -CLIP, CLIP))

    def shifts(self, now: Sums, known: Sums | None = None, unsure: Array | float = 0.0) -> Array:
        """How far means of rows lie from the reference's (M, K, D), in standard deviations of what is healthy.

        Args:
            now: of the rows, (M, K).
            known: of the reference rows that they are compared with; None: all.
            unsure: more variance, of the baselines that the rows are told by.

        NaN where either side has too few rows.
        """
        known = known or self.sums
        with np.errstate(invalid="ignore", divide="ignore"):
            rows, past = (np.maximum(sums.rows, 1)[..., None] for sums in (now, known))
            noise = self.within_MKD * (1 / rows + 1 / past)
            lasting = self.between_MKD * (1 + 1 / np.maximum(self.blocks_MK, 1)[..., None])
            spread = np.sqrt(noise + lasting + LEAST_SPREAD**2 + unsure)
            return np.asarray(np.clip((now.mean - known.mean) / spread, -MOST_SHIFT, MOST_SHIFT))

    def take(self, machines: IntN) -> Usual:
        """Some of its machines."""
        sums = Sums(self.sums.rows[machines], self.sums.total[machines], self.sums.squares[machines])
        parts = (self.within_MKD[machines], self.between_MKD[machines], self.blocks_MK[machines])
        return Usual(self.centre_D, self.spread_D, sums, *parts)

    def lasting_spread(self) -> Array:
        """Standard deviation between healthy blocks (M, K, D), without the chance of rows."""
        return np.asarray(np.sqrt(self.between_MKD + LEAST_SPREAD**2))


def sums_of(standard_ND: Array, codes: Sequence[Codes], shape: tuple[int, ...]) -> Sums:
    """Sums of rows by cell."""
    cell_N = np.ravel_multi_index(tuple(np.asarray(code, np.int64) for code in codes), shape)
    cells, columns = int(np.prod(shape)), standard_ND.shape[1]
    rows = np.bincount(cell_N, minlength=cells).astype(np.float64)
    total, squares = np.empty((2, cells, columns))
    for column in range(columns):
        total[:, column] = np.bincount(cell_N, standard_ND[:, column], cells)
        squares[:, column] = np.bincount(cell_N, standard_ND[:, column] ** 2, cells)
    return Sums(rows.reshape(shape), total.reshape(*shape, columns), squares.reshape(*shape, columns))


def _variances(blocks: Sums) -> tuple[Array, Array, Array]:
    """Variance of a row in its block and between blocks (M, K, D), each leaning on the fleet's; and blocks (M, K)."""
    enough_BMK = blocks.rows >= MIN_CELL_ROWS
    rows_BMK1 = np.where(enough_BMK, blocks.rows, 1.0)[..., None]
    mean_BMKD = blocks.total / rows_BMK1
    inside_BMKD = np.where(enough_BMK[..., None], np.maximum(blocks.squares - mean_BMKD * blocks.total, 0), 0)
    free_MK = np.where(enough_BMK, blocks.rows - 1, 0).sum(axis=0)
    inside_MKD = inside_BMKD.sum(axis=0)
    fleet_KD = inside_MKD.sum(axis=0) / np.maximum(free_MK.sum(axis=0), 1)[:, None]
    within_MKD = (inside_MKD + 30 * fleet_KD) / (free_MK + 30)[..., None]
    count_MK = enough_BMK.sum(axis=0).astype(np.float64)
    centre_MKD = np.where(enough_BMK[..., None], mean_BMKD, 0).sum(axis=0) / np.maximum(count_MK, 1)[..., None]
    apart_BMKD = np.where(enough_BMK[..., None], (mean_BMKD - centre_MKD) ** 2 - within_MKD / rows_BMK1, 0)
    free = np.maximum(count_MK - 1, 0)[..., None]
    own_MKD = np.maximum(apart_BMKD.sum(axis=0), 0)  # of `free` degrees of freedom
    with np.errstate(invalid="ignore"):
        pooled_KD = own_MKD.sum(axis=0) / np.maximum(free.sum(axis=0), 1)
    return within_MKD, (own_MKD + PRIOR_BLOCKS * pooled_KD) / (free + PRIOR_BLOCKS), count_MK


def moved_by(shift_MKD: Array) -> FloatN:
    """One number per machine (M,): the root mean square of its shift; NaN without a cell that can be compared."""
    cells = np.isfinite(shift_MKD)
    count_M = cells.sum(axis=(-2, -1))
    squares_M = np.where(cells, shift_MKD, 0.0) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.sqrt(squares_M.sum(axis=(-2, -1)) / np.where(count_M, count_M, np.nan)))


def common_shift(shift_MKD: Array) -> Array:
    """What most machines share (K, D): the median over machines; 0 where fewer than half of them can be compared."""
    known_KD = np.isfinite(shift_MKD).sum(axis=0)
    enough_KD = known_KD >= max(2, len(shift_MKD) / 4)
    filled = np.where(enough_KD, shift_MKD, 0.0)
    return np.asarray(np.nan_to_num(np.nanmedian(filled, axis=0))) if len(shift_MKD) else np.zeros(shift_MKD.shape[1:])


def size_of(shift_KD: Array) -> float:
    """Root mean square of a common shift over the cells that have one."""
    told = shift_KD != 0
    return float(np.sqrt((shift_KD**2).sum() / max(1, told.sum())))


def cosines(shift_MKD: Array, common_KD: Array) -> FloatN:
    """Cosine (M,) of each machine's shift to a common one, over the cells that it has; 0 without any."""
    filled = np.where(np.isfinite(shift_MKD), shift_MKD, 0.0)
    seen = np.where(np.isfinite(shift_MKD), common_KD, 0.0)
    product_M = (filled * seen).sum(axis=(1, 2))
    norm_M = np.sqrt((filled**2).sum(axis=(1, 2)) * (seen**2).sum(axis=(1, 2)))
    return np.asarray(product_M / np.where(norm_M > 0, norm_M, np.inf))


def lengths_along(shift_MKD: Array, common_KD: Array) -> FloatN:
    """How much of a common shift each machine (M,) has made: 1 is all of it."""
    filled = np.where(np.isfinite(shift_MKD), shift_MKD, 0.0)
    seen = np.where(np.isfinite(shift_MKD), common_KD, 0.0)
    norm_M = (seen**2).sum(axis=(1, 2))
    return np.asarray((filled * seen).sum(axis=(1, 2)) / np.where(norm_M > 0, norm_M, np.inf))


def together(shift_MKD: Array, moved_M: BoolN) -> BoolN:
    """The largest set of moved machines (M,) whose shifts point the same way; empty where no two do.

    It grows from the machine with the most companions; its direction is the mean of the members' directions.
    """
    places = np.flatnonzero(moved_M)
    none_M = np.zeros(len(moved_M), bool)
    if len(places) < 2:
        return none_M
    shift = shift_MKD[places]
    unit = np.where(np.isfinite(shift), shift, 0.0)
    unit /= np.maximum(np.sqrt((unit**2).sum(axis=(1, 2), keepdims=True)), 1e-12)
    companions = np.stack([cosines(shift, one) >= SAME_WAY for one in unit])
    members = companions[int(companions.sum(axis=1).argmax())]
    for _ in range(5):
        again = cosines(shift, unit[members].mean(axis=0)) >= SAME_WAY
        if not again.any() or np.array_equal(again, members):
            break
        members = again
    if members.sum() < 2:
        return none_M
    none_M[places[members]] = True
    return none_M


@dataclass(frozen=True)
class Compared:
    """A window beside the reference: shifts (M, K, D) of the machines `machine_M` that can be compared.

    `usual_of` names for each machine of `now` its place in `usual`, -1: none.
    """

    usual: Usual
    usual_of: IntN
    now: Heard  # in the codes of the reference
    machine_M: IntN
    shift_MKD: Array
    apart_MKD: Array  # the same in standard deviations of a row: what a condition does by chance is left out of it
    standard_ND: Array  # of the window's rows

    @property
    def names(self) -> tuple[str, ...]:
        """Of the machines compared."""
        return tuple(self.now.machines[code] for code in self.machine_M.tolist())


def with_a_past(reference: Heard) -> tuple[IntN, Heard]:
    """Codes of the machines with reference rows enough, and their rows with codes into these."""
    known_M = np.bincount(reference.machine_N, minlength=len(reference.machines)) >= MIN_MACHINE_ROWS
    codes = np.flatnonzero(known_M)
    place = np.full(len(known_M), -1, np.int64)
    place[codes] = np.arange(len(codes))
    kept = reference.take(known_M[reference.machine_N])
    names = tuple(reference.machines[code] for code in codes.tolist())
    return codes, replace(kept, machines=names, machine_N=place[kept.machine_N])


def compare(current: Heard, reference: Heard, days: float) -> Compared:
    """Shifts of the machines of a window, each against the reference rows of the same baseline epoch.

    A machine in an epoch that the reference has not heard (new, mended, another sensor) has nothing to be compared with
    and does not vote; unless fewer than three can: then every machine stands against the fleet's past.

    Args:
        current: rows of the window.
        reference: rows of the release's reference.
        days: length of a block of time.
    """
    now = current.in_codes_of(reference)
    heard_N, lived_N = same_epochs(now, reference)
    codes, past = with_a_past(reference.take(lived_N))
    machines = len(now.machines)
    rows_M = np.bincount(now.machine_N, minlength=machines)
    heard_M = np.bincount(now.machine_N[heard_N], minlength=machines)
    known_M = (heard_M > 0) & (heard_M >= rows_M / 2)
    votes = codes[known_M[codes]]
    if len(votes) >= MIN_VOTERS:
        usual_of = np.full(machines, -1, np.int64)
        usual_of[codes] = np.arange(len(codes))
        shape = (len(codes), len(past.conditions))
        block_N = blocks_of(past.time_us_N, days)
        usual = Usual.of(past.shape(), past.machine_N, past.condition_N, block_N, shape)
        compared = _compared(now, usual, usual_of, votes, heard_N, 0.0)
        if len(compared.machine_M) >= MIN_VOTERS:
            return compared
    block_N = blocks_of(reference.time_us_N, days)
    block_N = reference.machine_N.astype(np.int64) * (int(block_N.max(initial=0)) + 1) + block_N
    block_N = np.asarray(np.unique(block_N, return_inverse=True)[1], np.int64)
    nobody_N = np.zeros(len(reference), np.int64)
    shape = (1, len(reference.conditions))
    usual = Usual.of(reference.shape(), nobody_N, reference.condition_N, block_N, shape)
    unsure = np.where(known_M, 0.0, UNSURE)[:, None, None]
    # machines differ, so that little counts as moved
    everything_N = np.ones(len(now), bool)
    return _compared(now, usual, np.zeros(machines, np.int64), np.flatnonzero(rows_M), everything_N, unsure)


def same_epochs(now: Heard, reference: Heard) -> tuple[BoolN, BoolN]:
    """Rows of a window in epochs that the reference holds enough of, and reference rows in epochs of the window."""
    epochs = int(max(now.epoch_N.max(initial=0), reference.epoch_N.max(initial=0))) + 1
    size = max(len(now.machines), len(reference.machines)) * epochs
    now_N, past_N = (rows.machine_N.astype(np.int64) * epochs + rows.epoch_N for rows in (now, reference))
    heard = np.bincount(past_N, minlength=size) >= MIN_MACHINE_ROWS
    lived = np.bincount(now_N, minlength=size) > 0
    return heard[now_N], lived[past_N]


def _compared(now: Heard, usual: Usual, usual_of: IntN, votes: IntN, heard_N: BoolN, unsure: Array | float) -> Compared:
    """Shifts of some machines from what is usual of each; conditions that nobody has heard tell nothing."""
    standard_ND = usual.standard(now.shape())
    place = np.full(len(now.machines), -1, np.int64)
    place[votes] = np.arange(len(votes))
    conditions = usual.within_MKD.shape[1]
    known_N = heard_N & (place[now.machine_N] >= 0) & (now.condition_N < conditions)
    codes = (place[now.machine_N[known_N]], now.condition_N[known_N])
    sums = sums_of(standard_ND[known_N], codes, (len(votes), conditions))
    mine = usual.take(usual_of[votes])
    unsure = unsure[votes] if isinstance(unsure, np.ndarray) else unsure
    shift_MKD, apart_MKD = mine.shifts(sums, unsure=unsure), sums.mean - mine.sums.mean
    told = np.flatnonzero(np.isfinite(shift_MKD).any(axis=(1, 2)))
    return Compared(usual, usual_of, now, votes[told], shift_MKD[told], apart_MKD[told], standard_ND)


def blocks_of(time_us_N: IntN, days: float) -> IntN:
    """Number of each row's block of time, from 0 in the order of time; blocks without rows have no number."""
    block_N = time_us_N // max(1, round(days * MICROSECONDS_PER_DAY))
    return np.asarray(np.unique(block_N, return_inverse=True)[1], np.int64)
