"""Episodes of a machine and the mean spectrum of each in each regime: all that the statistics of cleaning look at.

A faint fault hides in the noise of one row, not in the mean of an episode's rows: with n rows the noise is sqrt(n)
times smaller. And a machine that idles is compared with itself idling. The rows are read in blocks, however many.

Shape legend: N rows (those looked at), E episodes (machine, epoch, block of hours), V vectors (an episode in a regime),
R machine regimes (machine, epoch, condition), C conditions, G = F + 1 features (the bins, then the total energy).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipeline.cleaning.regimes import MAX_CONDITIONS, Levels, fit_levels
from pipeline.detectors.baseline import FLOOR_OF_MEDIAN, spectra_features
from pipeline.errors import ContractError
from pipeline.schema import MICROSECONDS_PER_HOUR, BoolN, FloatNF, IntN, codes_and_names, spectra_view
from pipeline.store import column_names, context_text, read_batches

FIT_ROWS = 200_000  # rows of whole episodes from which limits, noise and regimes are learned
FIT_FILES = 12  # day files that they come from, where there are twice as many or more
CLIP = 5.0  # robust deviations: a shock of one row must not carry the mean of an episode
THREADS = 2
BATCH_ROWS = 32_768
MAD_OF_NORMAL = 1.4826
MIN_SCALE = 1e-3  # of a log magnitude

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Selection:
    """The rows looked at, as columns of the split table: where each stands, whose it is, and its episode."""

    file_N: Int32
    files: Sequence[str]
    row_N: Int32
    machine_N: Int32
    machines: Sequence[str]
    epoch_N: Int32
    time_us_N: IntN
    episode_N: Int32
    machine_E: Int32
    epoch_E: Int32
    block_E: IntN  # number of the block of hours since 1970

    def __len__(self) -> int:
        return len(self.row_N)

    @property
    def rows_E(self) -> IntN:
        """Rows of each episode."""
        return np.bincount(self.episode_N, minlength=len(self.block_E))

    def span(self, index: int) -> tuple[int, int]:
        """First and past-the-last selected row of a day file: tables of rows are in the order of files."""
        low, high = np.searchsorted(self.file_N, [index, index + 1])
        return int(low), int(high)


def select(split: pa.Table, looked_at_N: BoolN, times: IntN, episode_hours: float) -> Selection:
    """The rows of a split table that cleaning looks at, cut into episodes.

    Args:
        split: SPLIT_SCHEMA, in the order of file and row.
        looked_at_N: which of its rows.
        times: their times in microseconds, of all rows of the table.
        episode_hours: length of an episode.

    Raises:
        ContractError: the table is not in the order of files.
    """
    file_N, files = codes_and_names(split["file"])
    if np.any(np.diff(file_N) < 0):
        where = "data/status/split.parquet"
        raise ContractError.of("rows", got="unsorted files", expected="order of file and row", where=where)
    machine_N, machines = codes_and_names(split["machine_id"])
    machine_N, epoch_N = machine_N[looked_at_N], split["epoch"].to_numpy()[looked_at_N]
    time_N = times[looked_at_N]
    block_N = time_N // max(1, round(episode_hours * MICROSECONDS_PER_HOUR))
    first, epochs = int(block_N.min()), int(epoch_N.max()) + 1
    blocks = int(block_N.max()) - first + 1
    key_N = (machine_N.astype(np.int64) * epochs + epoch_N) * blocks + (block_N - first)
    episode_N, key_E = pd.factorize(key_N, sort=True)  # a sort of all rows would take ten times as long
    return Selection(
        file_N=file_N[looked_at_N],
        files=files,
        row_N=split["row"].to_numpy()[looked_at_N],
        machine_N=machine_N,
        machines=machines,
        epoch_N=epoch_N,
        time_us_N=time_N,
        episode_N=episode_N.astype(np.int32),
        machine_E=(key_E // blocks // epochs).astype(np.int32),
        epoch_E=(key_E // blocks % epochs).astype(np.int32),
        block_E=key_E % blocks + first,
    )


@dataclass(frozen=True)
class Vectors:
    """V mean log spectra, each of the rows of one episode in one regime; sorted by episode."""

    mean_VG: Float32
    rows_V: Int32
    episode_V: Int32
    regime_V: Int32
    condition_R: Int32
    conditions: Sequence[str]
    within_CG: Float32  # variance of a row around its episode's mean
    regime_source: str  # the column, or how the regimes were found
    floor: float

    @property
    def condition_V(self) -> Int32:
        """Condition of each vector."""
        return np.asarray(self.condition_R[self.regime_V])


def episode_vectors(
    data_set: Path, rows: Selection, bins: int, *, condition_column: str, log: bool, seed: int
) -> Vectors:
    """Read the selected rows, in blocks on two threads, and average them by episode and regime.

    Before, limits of each bin are learned from a sample of episodes: a row counts at most CLIP robust deviations from
    its own machine's normal, so that a shock stays one row's matter. Regimes come from `condition_column`; where no
    file has it, or it tells none apart, they are levels of the spectrum.

    Raises:
        ContractError: a day file is missing, damaged, or has another number of bins; the column is no plain value.
    """
    reader = Reader(data_set, rows, bins, condition_column, log)
    chosen_N = sampled_episodes(rows, FIT_ROWS, seed)
    sample = [part for index in range(len(rows.files)) for part in reader.file_rows(index, chosen_N)]
    if not sample:
        raise ContractError.of("rows to clean", got=0, expected="at least one", where=data_set)
    position_N = np.concatenate([part.position_N for part in sample])
    spectra_NF = np.concatenate([part.spectra_NF for part in sample])
    positive = spectra_NF[spectra_NF > 0] if log else np.abs(spectra_NF)
    reader.floor = max(float(np.median(positive)) * FLOOR_OF_MEDIAN if positive.size else 0.0, 1e-30)
    feature_NG = spectra_features(spectra_NF, reader.floor, log)
    condition_N = np.concatenate([part.condition_N for part in sample])
    if not reader.usable_conditions(rows.machine_N[position_N], condition_N):
        day_N = rows.block_E[rows.episode_N[position_N]] // 4
        reader.levels = fit_levels(feature_NG, rows.machine_N[position_N], day_N, len(rows.machines))
        condition_N = reader.levels.codes(feature_NG, rows.machine_N[position_N])
    reader.limits = _limits(feature_NG, rows, position_N, condition_N)
    reader.limits.clip(feature_NG, rows, position_N, condition_N)
    within_CG = _within(feature_NG, rows.episode_N[position_N], condition_N)
    with ThreadPoolExecutor(THREADS) as pool:
        parts = [part for found in pool.map(reader.file_sums, range(len(rows.files))) for part in found]
    return _merged(parts, rows, reader, within_CG)


def sampled_episodes(rows: Selection, wanted: int, seed: int) -> BoolN:
    """Which rows (N,) belong to a sample of episodes, evenly spread over each machine, of about `wanted` rows.

    A day file is decoded whole, however few of its rows are wanted. So the sample comes from one file of every few,
    drawn at random: every seventh would always be a Sunday's.
    """
    if len(rows) <= wanted:
        return np.ones(len(rows), bool)
    rng = np.random.default_rng(seed)
    files = np.unique(rows.file_N)
    every = max(1, min(len(files) // FIT_FILES, len(rows) // wanted))
    starts = np.arange(0, len(files), every)
    drawn = files[np.minimum(starts + rng.integers(every, size=len(starts)), len(files) - 1)]
    read_N = np.isin(rows.file_N, drawn, kind="table")
    read_E = np.bincount(rows.episode_N, read_N, len(rows.block_E)) > 0
    step = -(-int(read_N.sum()) // wanted)
    start_M = rng.integers(step, size=len(rows.machines))
    chosen_E = read_E & ((np.cumsum(read_E) + start_M[rows.machine_E]) % step == 0)
    return np.asarray(chosen_E[rows.episode_N] & read_N)


@dataclass(frozen=True)
class _Part:
    """Selected rows of one batch: positions in the selection, spectra, codes of the condition column."""

    position_N: IntN
    spectra_NF: FloatNF
    condition_N: Int32


@dataclass(frozen=True)
class _Sums:
    """Sums of clipped features by slot: an episode in a condition."""

    slot_S: IntN
    rows_S: IntN
    sum_SG: Float32


@dataclass(frozen=True)
class _Limits:
    """Between which values a feature of a machine regime counts; without limits where the sample knows none."""

    key_R: IntN
    low_RG: Float32
    high_RG: Float32

    def clip(self, feature_NG: Float32, rows: Selection, position_N: IntN, condition_N: Int32) -> None:
        """Hold features within their limits, in place, run by run: limits for each row would be twice the memory."""
        key_N = regime_keys(rows.machine_N[position_N], rows.epoch_N[position_N], condition_N)
        bounds = [0, *(np.flatnonzero(np.diff(key_N)) + 1).tolist(), len(key_N)]
        index_S = np.searchsorted(self.key_R, key_N[bounds[:-1]])
        for (begin, end), index in zip(pairwise(bounds), index_S.tolist(), strict=True):
            if index < len(self.key_R) and self.key_R[index] == key_N[begin]:
                part = feature_NG[begin:end]
                np.clip(part, self.low_RG[index], self.high_RG[index], out=part)


@dataclass
class Reader:
    """Reads the selected rows of day files; what it must know of conditions and limits is learned from a sample."""

    data_set: Path
    rows: Selection
    bins: int
    condition_column: str
    log: bool
    floor: float = 1e-30
    levels: Levels | None = None
    limits: _Limits | None = None
    names: dict[str, int] = field(default_factory=dict)
    with_column: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    def usable_conditions(self, machine_N: Int32, condition_N: Int32) -> bool:
        """Whether the condition column tells regimes of a machine: a handful, and more than one of some machine."""
        pairs = np.unique(machine_N.astype(np.int64) * MAX_CONDITIONS**2 + np.minimum(condition_N, MAX_CONDITIONS))
        several = len(pairs) > len(np.unique(machine_N))
        self.with_column = several and len(self.names) <= MAX_CONDITIONS // 2
        return self.with_column

    def file_rows(self, index: int, chosen_N: BoolN | None = None) -> Iterator[_Part]:
        """The selected rows of one day file, batch by batch; of them those chosen."""
        low, high = self.rows.span(index)
        wanted = self.rows.row_N[low:high]
        position = np.arange(low, high)
        if chosen_N is not None:
            wanted, position = wanted[chosen_N[low:high]], position[chosen_N[low:high]]
        if not len(wanted):
            return
        path, column = self.data_set / "spectra" / self.rows.files[index], self.condition_column
        wanted_too = [column] if self.with_column and column in column_names(path) else []
        begin = 0
        for table in read_batches(path, ["spectrum", *wanted_too], BATCH_ROWS):
            end = begin + table.num_rows
            first, last = np.searchsorted(wanted, [begin, end])
            if first < last:
                taken = wanted[first:last] - begin
                view = spectra_view(table["spectrum"], self.bins, path)
                codes = self._codes(table, path)[taken] if self.with_column else np.zeros(len(taken), np.int32)
                spectra = view if len(taken) == len(view) else view[taken]
                yield _Part(position[first:last], spectra, codes)
            begin = end
        if wanted[-1] >= begin:
            raise ContractError.of("rows", got=begin, expected=f"more than {wanted[-1]}", where=path)

    def _codes(self, table: pa.Table, path: Path) -> Int32:
        """Codes of a table's conditions that mean the same in every file; none at all is a condition of its own."""
        code_N, names = codes_and_names(context_text(table, self.condition_column, path))
        with self.lock:
            lookup = [self.names.setdefault(name, len(self.names)) for name in names]
        return np.asarray(lookup, np.int32)[code_N]

    def file_sums(self, index: int) -> list[_Sums]:
        """Sums by slot of one day file."""
        found = []
        for part in self.file_rows(index):
            feature_NG = spectra_features(part.spectra_NF, self.floor, self.log)
            condition_N = part.condition_N
            if self.levels is not None:
                condition_N = self.levels.codes(feature_NG, self.rows.machine_N[part.position_N])
            condition_N = np.minimum(condition_N, MAX_CONDITIONS - 1)
            position_N = part.position_N
            slot_N = self.rows.episode_N[position_N].astype(np.int64) * MAX_CONDITIONS + condition_N
            if np.any(slot_N[1:] < slot_N[:-1]):  # rows of a file stand by machine and time, not by condition
                order = np.argsort(slot_N, kind="stable")
                slot_N, position_N, condition_N = slot_N[order], position_N[order], condition_N[order]
                feature_NG = feature_NG[order]
            if self.limits is not None:
                self.limits.clip(feature_NG, self.rows, position_N, condition_N)
            slot_S, first_S, rows_S = np.unique(slot_N, return_index=True, return_counts=True)
            found.append(_Sums(slot_S, rows_S, np.add.reduceat(feature_NG, first_S, axis=0)))
        return found


def regime_keys(machine_N: npt.NDArray[np.integer], epoch_N: npt.NDArray[np.integer], condition_N: Int32) -> IntN:
    """One number for each machine, epoch and condition."""
    return (machine_N.astype(np.int64) << 32) + epoch_N.astype(np.int64) * MAX_CONDITIONS + condition_N


def _limits(feature_NG: Float32, rows: Selection, position_N: IntN, condition_N: Int32) -> _Limits:
    key_N = regime_keys(rows.machine_N[position_N], rows.epoch_N[position_N], condition_N)
    order = np.argsort(key_N, kind="stable")
    key_R, first_R = np.unique(key_N[order], return_index=True)
    location_RG, scale_RG = (np.empty((len(key_R), feature_NG.shape[1]), np.float32) for _ in range(2))
    for index, group in enumerate(np.split(order, first_R[1:])):
        location_RG[index] = np.median(feature_NG[group], axis=0)
        scale_RG[index] = MAD_OF_NORMAL * np.median(np.abs(feature_NG[group] - location_RG[index]), axis=0)
    condition_R = key_R % MAX_CONDITIONS
    for code in np.unique(condition_R):  # a machine with few rows has the noise of the fleet
        mine = condition_R == code
        scale_RG[mine] = np.maximum(scale_RG[mine], np.median(scale_RG[mine], axis=0))
    reach_RG = CLIP * np.maximum(scale_RG, MIN_SCALE)
    low_RG, high_RG = location_RG - reach_RG, location_RG + reach_RG
    return _Limits(key_R, low_RG.astype(np.float32), high_RG.astype(np.float32))


def _within(feature_NG: Float32, episode_N: Int32, condition_N: Int32) -> Float32:
    """Variance of rows around the mean of their episode and condition, per condition (C, G)."""
    count = int(condition_N.max()) + 1
    slot_N = episode_N.astype(np.int64) * MAX_CONDITIONS + condition_N
    order = np.argsort(slot_N, kind="stable")
    slot_S, first_S, rows_S = np.unique(slot_N[order], return_index=True, return_counts=True)
    ordered = feature_NG[order]
    mean_SG = np.add.reduceat(ordered, first_S, axis=0) / rows_S[:, None]
    square_SG = np.add.reduceat(np.square(ordered - np.repeat(mean_SG, rows_S, axis=0)), first_S, axis=0)
    within_CG = np.full((count, feature_NG.shape[1]), MIN_SCALE**2, np.float32)
    freedom_S, code_S = rows_S - 1, slot_S % MAX_CONDITIONS
    everywhere = square_SG.sum(axis=0) / max(1, int(freedom_S.sum()))
    for code in range(count):
        mine = code_S == code
        freedom = int(freedom_S[mine].sum())
        value = square_SG[mine].sum(axis=0) / freedom if freedom >= 10 else everywhere
        within_CG[code] = np.maximum(value, MIN_SCALE**2)
    return within_CG


def _merged(parts: Sequence[_Sums], rows: Selection, reader: Reader, within_CG: Float32) -> Vectors:
    slot_P = np.concatenate([part.slot_S for part in parts])
    order = np.argsort(slot_P, kind="stable")
    slot_V, first_V = np.unique(slot_P[order], return_index=True)
    rows_V = np.add.reduceat(np.concatenate([part.rows_S for part in parts])[order], first_V)
    sum_VG = np.add.reduceat(np.concatenate([part.sum_SG for part in parts])[order], first_V, axis=0)
    episode_V = (slot_V // MAX_CONDITIONS).astype(np.int32)
    condition_V = (slot_V % MAX_CONDITIONS).astype(np.int32)
    key_V = regime_keys(rows.machine_E[episode_V], rows.epoch_E[episode_V], condition_V)
    key_R, regime_V = np.unique(key_V, return_inverse=True)
    count = int(condition_V.max()) + 1
    if count > len(within_CG):  # a condition that the sample has not seen: the noise of all
        rest = np.broadcast_to(np.median(within_CG, axis=0), (count - len(within_CG), within_CG.shape[1]))
        within_CG = np.concatenate([within_CG, rest], dtype=np.float32)
    names = sorted(reader.names, key=lambda name: reader.names[name])
    if reader.levels is not None:
        names = [f"level {code}" for code in range(count)]
    return Vectors(
        mean_VG=(sum_VG / rows_V[:, None]).astype(np.float32),
        rows_V=rows_V.astype(np.int32),
        episode_V=episode_V,
        regime_V=regime_V.astype(np.int32),
        condition_R=(key_R % MAX_CONDITIONS).astype(np.int32),
        conditions=[*names, *("" for _ in range(count - len(names)))][:count] or [""],
        within_CG=within_CG.astype(np.float32),
        regime_source=reader.condition_column if reader.levels is None else "levels of the spectrum",
        floor=reader.floor,
    )
