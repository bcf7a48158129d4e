"""Which rows train, validate and describe machines, chosen by their keys alone; then only those are read.

Shape legend: N rows of the roles train, validation and baseline, n rows of one part, F bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.detectors import TaughtRows
from pipeline.engine.rows import fits_in_memory, scratch_array
from pipeline.errors import ContractError
from pipeline.params import TrainParams
from pipeline.rows import RowKeys, Rows, has_role, rows_without_spectra, spectra_pieces
from pipeline.schema import MICROSECONDS_PER_HOUR, BoolN, FloatNF, IntN, Role, codes_and_names
from pipeline.store import read_spectra

MIN_TRAINING_ROWS = 10
DESCRIBING_ROWS = 5_000  # of a machine, epoch and condition at most, evenly spaced: a percentile of more hardly moves
VALIDATION_PART = 4  # as many times fewer validation rows than training rows at most
LESSON_ROWS = 2_000  # of a failure that teaches, at most: neighbours say much the same
COPIES = 4  # of the training rows at once where all is in memory: spectra, features, and what detectors make of them


@dataclass(frozen=True)
class Parts:
    """What each of N rows does; a row may describe its machine and train."""

    describes_N: BoolN
    train_N: BoolN
    validation_N: BoolN


@dataclass(frozen=True)
class Material:
    """Keys and times of N rows, what each is for, and how to read the spectra (n, F) of some of them."""

    keys: RowKeys
    time_us_N: IntN
    parts: Parts
    read: Callable[[BoolN], FloatNF]

    @property
    def train_hour(self) -> IntN:
        """A number (n,) per training row, equal for neighbours of one machine and hour."""
        chosen = self.parts.train_N
        hour = self.time_us_N[chosen] // MICROSECONDS_PER_HOUR
        return np.asarray(hour * max(1, len(self.keys.machines)) + self.keys.machine_N[chosen])


def sample_hours(machine_N: npt.NDArray[np.integer], time_us_N: IntN, max_rows: int, seed: int) -> BoolN:
    """Which rows to keep so that at most about `max_rows` remain: whole machine-hours, never single rows.

    >>> hours = np.repeat(np.arange(100), 6) * MICROSECONDS_PER_HOUR
    >>> kept = sample_hours(np.zeros(600, int), hours, 300, seed=1)
    >>> 200 < kept.sum() < 400 and set(np.add.reduceat(kept, np.arange(0, 600, 6))) == {0, 6}
    True
    """
    if len(machine_N) <= max_rows:
        return np.ones(len(machine_N), bool)
    hour_N = time_us_N // MICROSECONDS_PER_HOUR
    key_N = (hour_N.astype(np.uint64) * np.uint64(1_000_003) + machine_N.astype(np.uint64)) ^ np.uint64(seed)
    mixed_N = key_N * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing (Knuth, TAOCP 3, 6.4)
    mixed_N ^= mixed_N >> np.uint64(32)
    share_N = (mixed_N * np.uint64(0xD6E8FEB86659FD93) >> np.uint64(40)).astype(np.float64) / 2**24
    return np.asarray(share_N < max_rows / len(machine_N))


def divide(keys: RowKeys, time_us_N: IntN, role_N: npt.NDArray[np.object_], params: TrainParams, seed: int) -> Parts:
    """Choose rows: at most about `params.max_rows` that train, as many that describe, a quarter that validate.

    Args:
        keys: of all N rows.
        time_us_N: microseconds since 1970.
        role_N: role of each.
        params: section `train`.
        seed: of the sample.

    Raises:
        ContractError: too few training rows.
    """
    is_train, is_validation = role_N == Role.TRAIN, role_N == Role.VALIDATION
    if not is_train.any():
        raise ContractError.of("training rows", got=0, expected="at least one healthy row", where="role train")
    # a machine with rows that only describe it is described by those alone, as its test rows will be
    is_baseline = role_N == Role.BASELINE
    described = np.bincount(keys.machine_N[is_baseline], minlength=len(keys.machines)) >= params.baseline.min_rows
    describes = np.where(described[keys.machine_N], is_baseline, is_train | is_baseline)
    describes = _thinned(keys, describes, params.max_rows, params.baseline.min_rows)
    train = _sampled(keys, time_us_N, is_train, params.max_rows, seed)
    validation = _sampled(keys, time_us_N, is_validation, max(1, params.max_rows // VALIDATION_PART), seed)
    if not validation.any():  # too short to set days apart: the last tenth of the training rows, in time
        late = np.argsort(np.where(train, time_us_N, np.iinfo(np.int64).min), kind="stable")
        validation[late[-max(1, int(train.sum()) // 10) :]] = True
        if train.sum() > validation.sum():
            train &= ~validation
    if train.sum() < MIN_TRAINING_ROWS:
        expected = f"at least {MIN_TRAINING_ROWS} healthy rows"
        raise ContractError.of("training rows", got=int(train.sum()), expected=expected, where="role train")
    return Parts(describes, train, validation)


def _sampled(keys: RowKeys, time_us_N: IntN, mask_N: BoolN, most: int, seed: int) -> BoolN:
    chosen_N = mask_N.copy()
    chosen_N[mask_N] = sample_hours(keys.machine_N[mask_N], time_us_N[mask_N], most, seed)
    return chosen_N


def _thinned(keys: RowKeys, mask_N: BoolN, most: int, least: int) -> BoolN:
    """At most DESCRIBING_ROWS of each machine, epoch and condition, evenly spaced; fewer where that exceeds `most`."""
    index = np.flatnonzero(mask_N)
    epochs = int(keys.epoch_N.max(initial=0)) + 1
    key_n = (keys.machine_N.astype(np.int64) * epochs + keys.epoch_N) * len(keys.conditions) + keys.condition_N
    _, key_n, count_K = np.unique(key_n[index], return_inverse=True, return_counts=True)
    limit = DESCRIBING_ROWS
    while limit // 2 >= least and np.minimum(count_K, limit).sum() > most:
        limit //= 2
    order = np.argsort(key_n, kind="stable")
    count_n = np.repeat(count_K, count_K)
    place_n = np.arange(len(index)) - np.repeat(np.cumsum(count_K) - count_K, count_K)
    kept_n = (count_n <= limit) | (place_n * limit // count_n != (place_n - 1) * limit // count_n)
    chosen_N = np.zeros(len(mask_N), bool)
    chosen_N[index[order[kept_n]]] = True
    return chosen_N


@dataclass(frozen=True)
class Teaching:
    """Rows (n,) before failures that teach networks their mode, and how to read their spectra (n, F).

    `failure_n` are codes of failures, `mode_n` codes into `modes`.
    """

    keys: RowKeys
    failure_n: IntN
    mode_n: IntN
    modes: tuple[str, ...]
    read: Callable[[], FloatNF]

    def taught(self, code_n: npt.NDArray[np.int32]) -> TaughtRows:
        """The rows with theirs of the baseline table."""
        return TaughtRows(self.read(), code_n, self.failure_n, self.mode_n, self.modes)


def teaching_in(
    data_set: Path, split: pa.Table, failures: pa.Table, bins: int, condition_column: str | None
) -> Teaching | None:
    """Rows of the role `teach` of a snapshot, of each failure LESSON_ROWS evenly spaced ones at most; None: no rows.

    Args:
        data_set: the snapshot.
        split: SPLIT_SCHEMA.
        failures: FAILURE_SCHEMA, with their modes.
        bins: F.
        condition_column: that names operating conditions.
    """
    index = np.flatnonzero(has_role(split, Role.TEACH))
    if not len(index):
        return None
    failure_N, names = codes_and_names(split["failure_id"].take(pa.array(index)))
    order = np.argsort(failure_N, kind="stable")
    count_K = np.bincount(failure_N, minlength=len(names))
    place_n = np.arange(len(index)) - np.repeat(np.cumsum(count_K) - count_K, count_K)
    step_n = np.repeat(-(-count_K // LESSON_ROWS), count_K)
    chosen_N = np.zeros(split.num_rows, bool)
    chosen_N[index[order[place_n % np.maximum(step_n, 1) == 0]]] = True
    rows = rows_without_spectra(data_set, split, chosen_N, condition_column)
    code_n, known = codes_and_names(rows.status["failure_id"])
    used, failure_n = np.unique(code_n, return_inverse=True)  # the column knows failures of other roles too
    names = [known[code] for code in used]
    mode_of = dict(zip(failures["failure_id"].to_pylist(), failures["failure_mode"].to_pylist(), strict=True))
    modes = sorted({mode_of[name] for name in names})
    mode_K = np.array([modes.index(mode_of[name]) for name in names])
    return Teaching(
        rows.keys,
        failure_n,
        mode_K[failure_n],
        tuple(modes),
        lambda: read_spectra(data_set, split, chosen_N, bins),
    )


def material_of(rows: Rows, parts: Parts) -> Material:
    """Of rows that are in memory."""
    return Material(rows.keys, rows.time_us, parts, lambda mask_N: rows.spectra[mask_N])


def material_in(
    data_set: Path,
    status: pa.Table,
    selected_N: BoolN,
    bins: int,
    keys: RowKeys,
    time_us_N: IntN,
    parts: Parts,
    scratch: Path,
) -> Material:
    """Of a snapshot, read when it is needed.

    Args:
        data_set: the snapshot.
        status: a status table with `file` and `row`.
        selected_N: the rows of it that `keys`, `time_us_N` and `parts` are about.
        bins: F.
        keys: see `divide`.
        time_us_N: see `divide`.
        parts: from `divide`.
        scratch: folder for the files of what does not fit into memory.
    """
    index = np.flatnonzero(selected_N)

    def read(mask_N: BoolN) -> FloatNF:
        chosen_N = np.zeros(len(selected_N), bool)
        chosen_N[index[mask_N]] = True
        return read_bounded(data_set, status, chosen_N, bins, scratch)

    return Material(keys, time_us_N, parts, read)


def read_bounded(data_set: Path, status: pa.Table, chosen_N: BoolN, bins: int, scratch: Path) -> FloatNF:
    """As read_spectra; where COPIES of the rows would not fit into memory, they lie in the map of a scratch file."""
    rows = int(chosen_N.sum())
    if fits_in_memory(COPIES * rows * bins * 4, torch.device("cpu")):
        return read_spectra(data_set, status, chosen_N, bins)
    return spooled(data_set, status, chosen_N, bins, scratch)


def spooled(data_set: Path, status: pa.Table, chosen_N: BoolN, bins: int, scratch: Path) -> FloatNF:
    """As read_spectra, into the memory map of a scratch file; memory is that of one day file's rows."""
    spectra_NF = scratch_array(scratch, int(chosen_N.sum()), bins)
    for place, part in spectra_pieces(data_set, status, chosen_N, bins, piece_rows=1):
        spectra_NF[place] = part
    return spectra_NF
