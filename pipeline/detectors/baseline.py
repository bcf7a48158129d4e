"""Baselines: what each machine sounds like when healthy, per epoch and operating condition, shrunk to the fleet.

Machines, and the conditions they run in, differ more from each other than a fault differs from health, so every
spectrum is first described relative to its own machine in the same condition: the log magnitude minus a robust
location, over a robust scale, per bin. The first rows of the table are the fleet's: row 0 of all conditions, then one
of each condition that enough machines know, each wider by the spread between machines. They serve machines, epochs and
conditions that the table does not know.

Shape legend: N rows, F bins, K keys (machine, epoch, condition), C conditions of the fleet, R = 1 + C + K rows of the
table, G = F + 1 features (the bins, then the total energy).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.rows import Codes, RowKeys
from pipeline.schema import BoolN, FloatN, FloatNF, IntN

FLEET = 0
FLOOR_OF_MEDIAN = 1e-3  # magnitudes below this part of the median bin are silence: log would blow them up
RANGE_OF_NORMAL = 3.92  # distance of the 2.5th and 97.5th percentile in standard deviations
MAX_ROWS_PER_KEY = 5_000  # evenly spaced; a percentile of more changes in the third digit
MIN_MACHINES = 3  # that know a condition, for a fleet's baseline of it: fewer do not tell how machines differ in it


@dataclass(frozen=True)
class BaselineTable:
    """Location and scale (R, G): the fleet's, the fleet's of each of `conditions`, then of each of `keys`.

    `condition_column` is the context column that names conditions; None: conditions make no difference.

    >>> spectra = np.exp(np.random.default_rng(0).normal(size=(200, 4))).astype(np.float32)
    >>> table = fit_baselines(spectra, RowKeys.of(["pump"], np.zeros(200, int), np.zeros(200, int)))
    >>> table.codes(RowKeys.of(["pump", "new"], np.array([0, 1, 0]), np.array([0, 0, 7])))
    array([1, 0, 0], dtype=int32)
    """

    keys: tuple[tuple[str, int, str], ...]
    conditions: tuple[str, ...]
    condition_column: str | None
    location: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    rows: tuple[int, ...]
    floor: float
    log: bool

    @property
    def bins(self) -> int:
        """Number of bins F."""
        return int(self.location.shape[1]) - 1

    def codes(self, keys: RowKeys) -> npt.NDArray[np.int32]:
        """Row of the table (N,) for each row of data; one of the fleet's where its key is not known."""
        keys = keys if self.condition_column is not None else keys.of_one_condition()
        machines = {name: code for code, name in enumerate(keys.machines)}
        conditions = {name: code for code, name in enumerate(keys.conditions)}
        epochs = int(keys.epoch_N.max(initial=0)) + 1
        known, rows = [], []
        for row, (machine, epoch, condition) in enumerate(self.keys, start=1 + len(self.conditions)):
            if machine in machines and condition in conditions and epoch < epochs:
                known.append((machines[machine] * epochs + epoch) * len(conditions) + conditions[condition])
                rows.append(row)
        return _look_up(known, rows, _packed(keys, epochs), self.fleet_codes(keys))

    def fleet_codes(self, keys: RowKeys) -> npt.NDArray[np.int32]:
        """The fleet's row of the table (N,) for each row of data: of its condition where there is one."""
        rows = {name: row for row, name in enumerate(self.conditions, start=1)}
        by_condition = np.array([rows.get(name, FLEET) for name in keys.conditions], np.int32)
        return by_condition[keys.condition_N]

    def is_own(self, code_N: npt.NDArray[np.int32]) -> BoolN:
        """Which rows of data (N,) have a baseline of their own machine, epoch and condition."""
        return np.asarray(code_N > len(self.conditions))

    def features(self, spectra_NF: torch.Tensor) -> torch.Tensor:
        """(N, G): log magnitudes (or the numbers themselves) and the log of the total energy."""
        energy_N1 = torch.linalg.vector_norm(spectra_NF, dim=1, keepdim=True).clamp_min(self.floor).log()
        bins_NF = spectra_NF.clamp_min(self.floor).log() if self.log else spectra_NF
        return torch.cat([bins_NF, energy_N1], dim=1)

    def relative(self, spectra_NF: torch.Tensor, code_N: torch.Tensor, tables: Tables) -> torch.Tensor:
        """(N, G): features in robust standard deviations from the row's baseline."""
        return (self.features(spectra_NF) - tables.location[code_N]) / tables.scale[code_N]

    def tables(self, device: torch.device) -> Tables:
        """Location and scale as tensors on a device."""
        return Tables(torch.from_numpy(self.location).to(device), torch.from_numpy(self.scale).to(device))

    def to_json(self) -> dict[str, Any]:
        """What is not an array."""
        return {
            "keys": [list(key) for key in self.keys],
            "conditions": list(self.conditions),
            "condition_column": self.condition_column,
            "rows": list(self.rows),
            "floor": self.floor,
            "log": self.log,
        }


@dataclass(frozen=True)
class Tables:
    """Location and scale (R, G) as tensors."""

    location: torch.Tensor
    scale: torch.Tensor


def baselines_from(values: dict[str, Any], location: np.ndarray, scale: np.ndarray) -> BaselineTable:
    """The inverse of `to_json` and the two arrays."""
    column = values["condition_column"]
    return BaselineTable(
        keys=tuple((str(machine), int(epoch), str(condition)) for machine, epoch, condition in values["keys"]),
        conditions=tuple(str(name) for name in values["conditions"]),
        condition_column=None if column is None else str(column),
        location=location,
        scale=scale,
        rows=tuple(values["rows"]),
        floor=float(values["floor"]),
        log=bool(values["log"]),
    )


def fit_baselines(
    spectra_NF: FloatNF,
    keys: RowKeys,
    *,
    scope: str = "machine+condition",
    condition_column: str = "condition",
    shrink_rows: float = 30.0,
    min_rows: int = 20,
    log: bool = True,
) -> BaselineTable:
    """Robust location and scale per machine, epoch and condition.

    The location is the median, the scale (q97.5 - q2.5) / 3.92: it spans what a machine does within a condition, which
    an interquartile range would not, and 2 % of wrong rows do not move it. The squared scale is shrunk to the fleet's
    median squared scale in that condition with the weight of `shrink_rows` rows. Keys with fewer than `min_rows` rows
    are left to the fleet's baseline of their condition, or where fewer than three machines know that, of all.

    Args:
        spectra_NF: healthy rows, (N, F), in the sensor's unit.
        keys: machine, epoch and condition of each.
        scope: `machine+condition`; `machine` for one baseline of all conditions, `global` for one of all rows.
        condition_column: the column that conditions come from, kept for those who score.
        shrink_rows: weight of the fleet's scale.
        min_rows: rows below which a key has no baseline of its own.
        log: magnitudes are seen in log (kind `spectrum`).
    """
    keys = keys if scope == "machine+condition" else keys.of_one_condition()
    positive = spectra_NF[:: max(1, len(spectra_NF) // 20_000)]
    positive = positive[positive > 0]
    floor = max(float(np.median(positive)) * FLOOR_OF_MEDIAN if positive.size else 1e-12, 1e-30)
    features_NG = spectra_features(spectra_NF, floor, log)
    own = _fit_keys(features_NG, keys, min_rows)
    fleets: dict[int | None, _Fleet] = {None: _Fleet.of_keys(own) if len(own.rows_K) else _Fleet.of_rows(features_NG)}
    for condition, rows in _shared_conditions(keys, min_rows):
        mine = own.take(own.condition_K == condition)
        many = len(np.unique(mine.machine_K)) >= _enough_machines(keys)
        fleets[condition] = _Fleet.of_keys(mine) if many else _Fleet.of_rows(features_NG[_thinned(rows)])
    own = own.take(slice(0)) if scope == "global" else own
    shrunk_KG = _shrunk(own, fleets, shrink_rows)
    names = [(int(m), int(e), int(c)) for m, e, c in zip(own.machine_K, own.epoch_K, own.condition_K, strict=True)]
    return BaselineTable(
        keys=tuple((str(keys.machines[m]), e, str(keys.conditions[c])) for m, e, c in names),
        conditions=tuple(str(keys.conditions[condition]) for condition in fleets if condition is not None),
        condition_column=condition_column if scope == "machine+condition" else None,
        location=np.vstack([*(fleet.location_G for fleet in fleets.values()), own.location_KG]).astype(np.float32),
        scale=np.vstack([*(fleet.scale_G for fleet in fleets.values()), shrunk_KG]).astype(np.float32),
        rows=tuple(own.rows_K.tolist()),
        floor=floor,
        log=log,
    )


@dataclass(frozen=True)
class _Own:
    """Location, scale (K, G) and rows of each key, before they lean on the fleet."""

    machine_K: IntN
    epoch_K: IntN
    condition_K: IntN
    rows_K: IntN
    location_KG: FloatNF
    scale_KG: FloatNF

    def take(self, chosen: BoolN | slice) -> _Own:
        return _Own(
            self.machine_K[chosen],
            self.epoch_K[chosen],
            self.condition_K[chosen],
            self.rows_K[chosen],
            self.location_KG[chosen],
            self.scale_KG[chosen],
        )


@dataclass(frozen=True)
class _Fleet:
    """The fleet's location, its typical scale within a machine, and the scale that spans its machines too; all (G,)."""

    location_G: FloatN
    within_G: FloatN
    scale_G: FloatN

    @classmethod
    def of_keys(cls, own: _Own) -> _Fleet:
        within_G = _above_zero(np.sqrt(np.median(own.scale_KG**2, axis=0)))
        low, middle, high = np.percentile(own.location_KG, [16.0, 50.0, 84.0], axis=0)
        return cls(middle, within_G, np.sqrt(within_G**2 + ((high - low) / 2) ** 2))

    @classmethod
    def of_rows(cls, features_NG: FloatNF) -> _Fleet:
        """Of machines that are each too short for a baseline of their own."""
        location_G, scale_G = _robust(features_NG)
        within_G = _above_zero(scale_G)
        return cls(location_G, within_G, within_G)


def _above_zero(scale_G: FloatN) -> FloatN:
    return np.maximum(scale_G, max(1e-3 * float(np.median(scale_G)), 1e-4))


def _robust(features_NG: FloatNF) -> tuple[FloatN, FloatN]:
    low, middle, high = np.percentile(features_NG, [2.5, 50.0, 97.5], axis=0)
    return middle, (high - low) / RANGE_OF_NORMAL


def _thinned(rows: IntN) -> IntN:
    return rows[:: max(1, len(rows) // MAX_ROWS_PER_KEY)]


def _fit_keys(features_NG: FloatNF, keys: RowKeys, min_rows: int) -> _Own:
    """Of every key with enough rows; of the only key in any case."""
    epochs, conditions = int(keys.epoch_N.max(initial=0)) + 1, len(keys.conditions)
    groups = _groups(_packed(keys, epochs))
    enough = [(group, rows) for group, rows in groups if len(rows) >= min_rows or len(groups) == 1]
    packed_K = np.array([group for group, _ in enough], np.int64)
    fitted = [_robust(features_NG[_thinned(rows)]) for _, rows in enough]
    shape = (len(enough), features_NG.shape[1])
    return _Own(
        machine_K=packed_K // conditions // epochs,
        epoch_K=packed_K // conditions % epochs,
        condition_K=packed_K % conditions,
        rows_K=np.array([len(rows) for _, rows in enough], np.int64),
        location_KG=np.array([location for location, _ in fitted]).reshape(shape),
        scale_KG=np.array([scale for _, scale in fitted]).reshape(shape),
    )


def _shared_conditions(keys: RowKeys, min_rows: int) -> Iterator[tuple[int, IntN]]:
    """Conditions with enough rows of enough machines, and their rows; none where all rows are of one."""
    groups = _groups(keys.condition_N.astype(np.int64))
    for condition, rows in groups if len(groups) > 1 else []:
        if len(rows) >= min_rows and len(np.unique(keys.machine_N[rows])) >= _enough_machines(keys):
            yield condition, rows


def _enough_machines(keys: RowKeys) -> int:
    return min(MIN_MACHINES, len(np.unique(keys.machine_N)))


def _shrunk(own: _Own, fleets: dict[int | None, _Fleet], shrink_rows: float) -> FloatNF:
    """Scales (K, G) that lean on the fleet's typical one in the same condition, the less the more rows they have."""
    within_KG = own.scale_KG.copy()
    for row, condition in enumerate(own.condition_K.tolist()):
        within_KG[row] = fleets.get(condition, fleets[None]).within_G
    rows_K1 = own.rows_K[:, None].astype(float)
    variance_KG = (rows_K1 * own.scale_KG**2 + shrink_rows * within_KG**2) / (rows_K1 + shrink_rows)
    return np.asarray(np.maximum(np.sqrt(variance_KG), 0.1 * within_KG))


def _packed(keys: RowKeys, epochs: int) -> IntN:
    """One number (N,) per machine, epoch and condition."""
    key_N = (keys.machine_N.astype(np.int64) * epochs + keys.epoch_N) * len(keys.conditions) + keys.condition_N
    return np.asarray(key_N)


def _groups(key_N: IntN) -> list[tuple[int, IntN]]:
    """Each key with its rows, in their order."""
    order = np.argsort(key_N, kind="stable")
    groups, starts = np.unique(key_N[order], return_index=True)
    return list(zip(groups.tolist(), np.split(order, starts[1:]), strict=True)) if len(groups) else []


def _look_up(known: list[int], rows: list[int], key_N: IntN, otherwise_N: Codes) -> npt.NDArray[np.int32]:
    """For each key (N,) the row that belongs to it in `known`."""
    if not known:
        return otherwise_N.astype(np.int32)
    order = np.argsort(known)
    known_K, rows_K = np.array(known, np.int64)[order], np.array(rows, np.int32)[order]
    place_N = np.minimum(np.searchsorted(known_K, key_N), len(known_K) - 1)
    return np.where(known_K[place_N] == key_N, rows_K[place_N], otherwise_N).astype(np.int32)


def spectra_features(spectra_NF: FloatNF, floor: float, log: bool) -> npt.NDArray[np.float32]:
    """(N, G) features of BaselineTable.features, in NumPy, for fitting."""
    energy_N1 = np.log(np.maximum(np.sqrt(np.einsum("nf,nf->n", spectra_NF, spectra_NF)), floor))[:, None]
    bins_NF = np.log(np.maximum(spectra_NF, floor)) if log else spectra_NF
    return np.concatenate([bins_NF, energy_N1], axis=1).astype(np.float32)
