"""Baselines: what each machine sounds like when healthy, per epoch and operating condition, shrunk to the fleet.

Machines, and the conditions they run in, differ more from each other than a fault differs from health, so every
spectrum is first described relative to its own machine in the same condition: the log magnitude minus a robust
location, over a robust scale, per bin. A machine with too short a history in an epoch or condition gets a wider
baseline that leans on what is known of it elsewhere (see `shrinkage`). The first rows of the table are the fleet's: row
0 of all conditions, then one of each condition that enough machines know, each wider by the spread between machines.
They serve machines that the table does not know.

Shape legend: N rows, F bins, K keys (machine, epoch, condition), C conditions of the fleet, R = 1 + C + K rows of the
table, G = F + 1 features (the bins, then the total energy).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.detectors.looks import Stretches, likeness_within
from pipeline.detectors.shrinkage import ANY_EPOCH, Described, Fleet, describe_machines, robust, variance_components
from pipeline.rows import Codes, RowKeys
from pipeline.schema import Baseline, BoolN, FloatNF, IntN

FLEET = 0
FLOOR_OF_MEDIAN = 1e-3  # magnitudes below this part of the median bin are silence: log would blow them up
LARGEST_LOG = 36.0  # of a magnitude that is made: the squares of a million such bins add up to a float32
MAX_ROWS_PER_KEY = 5_000  # evenly spaced; a percentile of more changes in the third digit
MIN_MACHINES = 3  # that know a condition, for a fleet's baseline of it: fewer do not tell how machines differ in it


@dataclass(frozen=True)
class BaselineTable:
    """Location and scale (R, G): the fleet's, the fleet's of each of `conditions`, then of each of `keys`.

    The first `own` keys were looked at often enough to stand for themselves; the others are shrunk, and wider, some of
    them for epochs that no row has shown yet (see `shrinkage`). `condition_column` is the context column that names
    conditions; None: conditions make no difference.

    >>> spectra = np.exp(np.random.default_rng(0).normal(size=(200, 4))).astype(np.float32)
    >>> table = fit_baselines(spectra, RowKeys.of(["pump"], np.zeros(200, int), np.zeros(200, int)))
    >>> codes = table.codes(RowKeys.of(["pump", "new"], np.array([0, 1, 0]), np.array([0, 0, 7])))
    >>> codes, [Baseline(state).name for state in table.states(codes)]
    (array([1, 0, 2], dtype=int32), ['OWN', 'FLEET', 'SHRUNK'])
    """

    keys: tuple[tuple[str, int, str], ...]
    conditions: tuple[str, ...]
    condition_column: str | None
    location: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    rows: tuple[int, ...]
    floor: float
    log: bool
    own: int = 0

    @property
    def bins(self) -> int:
        """Number of bins F."""
        return int(self.location.shape[1]) - 1

    def codes(self, keys: RowKeys) -> npt.NDArray[np.int32]:
        """Row of the table (N,) for each row of data: its key's, else its machine's for any epoch, else the fleet's."""
        keys = keys if self.condition_column is not None else keys.of_one_condition()
        machines = {name: code for code, name in enumerate(keys.machines)}
        conditions = {name: code for code, name in enumerate(keys.conditions)}
        epochs = int(keys.epoch_N.max(initial=0)) + 1
        known: dict[int, int] = {}
        for row, (machine, epoch, condition) in enumerate(self.keys, start=1 + len(self.conditions)):
            if machine in machines and condition in conditions and epoch < epochs:
                known[_place(machines[machine], epoch, epochs, conditions[condition], len(conditions))] = row
        code_N = self.fleet_codes(keys)
        for epoch_N in (np.full(len(keys), ANY_EPOCH), keys.epoch_N):
            place_N = _place(keys.machine_N.astype(np.int64), epoch_N, epochs, keys.condition_N, len(conditions))
            code_N = _look_up(known, np.asarray(place_N), code_N)
        return code_N

    def next_epoch_codes(self, keys: RowKeys) -> npt.NDArray[np.int32]:
        """Row of the table (N,) that would describe each row of data, had its machine just begun a new epoch."""
        unknown = max((epoch for _, epoch, _ in self.keys), default=0) + 1
        return self.codes(replace(keys, epoch_N=np.full(len(keys), unknown)))

    def fleet_codes(self, keys: RowKeys) -> npt.NDArray[np.int32]:
        """The fleet's row of the table (N,) for each row of data: of its condition where there is one."""
        by_condition = np.array([self._fleet_row(name) for name in keys.conditions], np.int32)
        return np.asarray(by_condition[keys.condition_N])

    def fleet_rows(self) -> npt.NDArray[np.int32]:
        """For each row of the table (R,) the fleet's row of the same condition."""
        first = np.arange(1 + len(self.conditions))
        of_keys = [self._fleet_row(condition) for _, _, condition in self.keys]
        return np.concatenate([first, np.array(of_keys, np.int64)]).astype(np.int32)

    def _fleet_row(self, condition: str) -> int:
        return 1 + self.conditions.index(condition) if condition in self.conditions else FLEET

    def states(self, code_N: npt.NDArray[np.int32]) -> npt.NDArray[np.int8]:
        """Whose baseline describes each row of data (N,), as `Baseline`."""
        first = 1 + len(self.conditions)
        state_N = np.where(code_N < first + self.own, Baseline.OWN, Baseline.SHRUNK)
        return np.where(code_N < first, Baseline.FLEET, state_N).astype(np.int8)

    def is_own(self, code_N: npt.NDArray[np.int32]) -> BoolN:
        """Which rows of data (N,) have a baseline of their own machine, epoch and condition, of looks enough."""
        return np.asarray(self.states(code_N) == Baseline.OWN)

    def features(self, spectra_NF: torch.Tensor) -> torch.Tensor:
        """(N, G): log magnitudes (or the numbers themselves) and the log of the total energy."""
        energy_N1 = torch.linalg.vector_norm(spectra_NF, dim=1, keepdim=True)
        if self.log:
            return torch.cat([spectra_NF, energy_N1], dim=1).clamp_min_(self.floor).log_()
        return torch.cat([spectra_NF, energy_N1.clamp_min_(self.floor).log_()], dim=1)

    def relative(self, spectra_NF: torch.Tensor, code_N: torch.Tensor, tables: Tables) -> torch.Tensor:
        """(N, G): features in robust standard deviations from the row's baseline."""
        location_NG, scale_NG = (table.index_select(0, code_N) for table in (tables.location, tables.scale))
        return self.features(spectra_NF).sub_(location_NG).div_(scale_NG)

    def magnitudes(self, relative_NF: torch.Tensor, code_N: torch.Tensor, tables: Tables) -> torch.Tensor:
        """(N, F) spectra in the sensor's unit: the inverse of `relative` for the bins, except below the floor.

        Magnitudes beyond e to the LARGEST_LOG are held there: their energy must stay a float32.
        """
        location_NF, scale_NF = (table.index_select(0, code_N)[:, :-1] for table in (tables.location, tables.scale))
        level_NF = relative_NF * scale_NF + location_NF
        return level_NF.clamp_(max=LARGEST_LOG).exp_() if self.log else level_NF

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
            "own": self.own,
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
        own=int(values["own"]),
    )


def fit_baselines(
    spectra_NF: FloatNF,
    keys: RowKeys,
    time_us_N: IntN | None = None,
    *,
    scope: str = "machine+condition",
    condition_column: str = "condition",
    shrink_rows: float = 30.0,
    min_rows: int = 20,
    log: bool = True,
) -> BaselineTable:
    """Robust location and scale per machine, epoch and condition.

    The location is the median, the scale (q97.5 - q2.5) / 3.92: it spans what a machine does within a condition, which
    an interquartile range would not, and 2 % of wrong rows do not move it. Neighbours in time say much the same: what
    counts is the number of independent looks that the rows of a key are worth (see `looks`). The squared scale leans on
    that of other rows in the condition with the weight of `shrink_rows` looks. Keys with fewer than `min_rows` looks,
    epochs that are not known and conditions that a machine was not seen in lean in their location too on what the
    machine does elsewhere and on the fleet (see `shrinkage`), are wider by what is uncertain about it, and are not
    `own`.

    Args:
        spectra_NF: healthy rows, (N, F), in the sensor's unit.
        keys: machine, epoch and condition of each.
        time_us_N: microseconds since 1970 of each; None: each row is a look of its own.
        scope: `machine+condition`; `machine` for one baseline of all conditions, `global` for one of all rows.
        condition_column: the column that conditions come from, kept for those who score.
        shrink_rows: rows that count as one independent look at a machine's level, or more where those of an hour are
            alike; and the weight of the fleet's scale, in looks.
        min_rows: independent looks below which a key has no baseline of its own.
        log: magnitudes are seen in log (kind `spectrum`).
    """
    keys = keys if scope == "machine+condition" else keys.of_one_condition()
    positive = spectra_NF[:: max(1, len(spectra_NF) // 20_000)]
    positive = positive[positive > 0]
    floor = max(float(np.median(positive)) * FLOOR_OF_MEDIAN if positive.size else 1e-12, 1e-30)
    features_NG = spectra_features(spectra_NF, floor, log)
    seen = _describe_keys(features_NG, keys, time_us_N)
    enough = seen if len(seen.rows_K) == 1 else _that_tell_of_fleets(seen, keys, min_rows)
    fleets: dict[int | None, Fleet] = {
        None: Fleet.of_keys(enough) if len(enough.rows_K) else Fleet.of_rows(features_NG)
    }
    for condition, rows in _shared_conditions(keys, seen, min_rows):
        mine = _that_tell_of_fleets(seen.take(seen.condition_K == condition), keys, min_rows)
        many = len(np.unique(mine.machine_K)) >= _enough_machines(keys)
        fleets[condition] = Fleet.of_keys(mine) if many else Fleet.of_rows(features_NG[_thinned(rows)])
    seen = seen.take(slice(0)) if scope == "global" else seen
    components = variance_components(enough, fleets)
    own, shrunk = describe_machines(seen, fleets, components, shrink_rows, min_rows)
    described = [*own.names(), *shrunk.names()]
    return BaselineTable(
        keys=tuple((str(keys.machines[m]), e, str(keys.conditions[c])) for m, e, c in described),
        conditions=tuple(str(keys.conditions[condition]) for condition in fleets if condition is not None),
        condition_column=condition_column if scope == "machine+condition" else None,
        location=_stacked(*(fleet.location_G for fleet in fleets.values()), own.location_KG, shrunk.location_KG),
        scale=_stacked(*(fleet.scale_G for fleet in fleets.values()), own.scale_KG, shrunk.scale_KG),
        rows=(*own.rows_K.tolist(), *shrunk.rows_K.tolist()),
        floor=floor,
        log=log,
        own=len(own.rows_K),
    )


def _stacked(*parts: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.vstack(parts).astype(np.float32)


def _thinned(rows: IntN) -> IntN:
    return rows[:: max(1, len(rows) // MAX_ROWS_PER_KEY)]


def _describe_keys(features_NG: FloatNF, keys: RowKeys, time_us_N: IntN | None) -> Described:
    """Every key that has a row, as its own rows describe it."""
    epochs, conditions = int(keys.epoch_N.max(initial=0)) + 1, len(keys.conditions)
    packed_N = (keys.machine_N.astype(np.int64) * epochs + keys.epoch_N) * conditions + keys.condition_N
    groups = _groups(packed_N)
    packed_K = np.array([group for group, _ in groups], np.int64)
    fitted = [robust(features_NG[_thinned(rows)]) for _, rows in groups]
    shape = (len(groups), features_NG.shape[1])
    location_KG = np.array([location for location, _ in fitted]).reshape(shape)
    scale_KG = np.array([scale for _, scale in fitted]).reshape(shape)
    rows_K = np.array([len(rows) for _, rows in groups], np.int64)
    looks_K = rows_K.astype(np.float64)
    if time_us_N is not None and len(groups):
        key_N = np.searchsorted(packed_K, packed_N)
        stretches = Stretches.of(key_N, time_us_N)
        likeness = likeness_within(features_NG, stretches, location_KG, scale_KG)
        fair_N = stretches.fair_N(likeness)
        kept = stretches if fair_N.all() else Stretches.of(key_N[fair_N], time_us_N[fair_N])
        looks_K = kept.looks_K(likeness)
        for key in np.unique(key_N[~fair_N]).tolist():
            mine = groups[key][1]
            location_KG[key], scale_KG[key] = robust(features_NG[_thinned(mine[fair_N[mine]])])
    return Described(
        machine_K=packed_K // conditions // epochs,
        epoch_K=packed_K // conditions % epochs,
        condition_K=packed_K % conditions,
        rows_K=rows_K,
        looks_K=looks_K,
        location_KG=location_KG,
        scale_KG=scale_KG,
    )


def _that_tell_of_fleets(seen: Described, keys: RowKeys, min_rows: int) -> Described:
    """Keys of looks enough; of rows enough where those are of too few machines: machines differ more than hours do."""
    enough = seen.take(seen.looks_K >= min_rows)
    many = len(np.unique(enough.machine_K)) >= _enough_machines(keys)
    return enough if many else seen.take(seen.rows_K >= min_rows)


def _shared_conditions(keys: RowKeys, seen: Described, min_rows: int) -> Iterator[tuple[int, IntN]]:
    """Conditions with enough looks at enough machines, and their rows; none where all rows are of one."""
    groups = _groups(keys.condition_N.astype(np.int64))
    for condition, rows in groups if len(groups) > 1 else []:
        looks = seen.looks_K[seen.condition_K == condition].sum()
        if looks >= min_rows and len(np.unique(keys.machine_N[rows])) >= _enough_machines(keys):
            yield condition, rows


def _enough_machines(keys: RowKeys) -> int:
    return min(MIN_MACHINES, len(np.unique(keys.machine_N)))


def _place(machine: Any, epoch: Any, epochs: int, condition: Any, conditions: int) -> Any:
    """One number per machine, epoch (ANY_EPOCH and on) and condition; of codes or of arrays of them."""
    return (machine * (epochs + 1) + epoch - ANY_EPOCH) * conditions + condition


def _groups(key_N: IntN) -> list[tuple[int, IntN]]:
    """Each key with its rows, in their order."""
    order = np.argsort(key_N, kind="stable")
    groups, starts = np.unique(key_N[order], return_index=True)
    return list(zip(groups.tolist(), np.split(order, starts[1:]), strict=True)) if len(groups) else []


def _look_up(known: dict[int, int], key_N: IntN, otherwise_N: Codes) -> npt.NDArray[np.int32]:
    """For each key (N,) its value in `known`."""
    if not known:
        return otherwise_N.astype(np.int32)
    known_K = np.array(sorted(known), np.int64)
    rows_K = np.array([known[key] for key in known_K.tolist()], np.int32)
    place_N = np.minimum(np.searchsorted(known_K, key_N), len(known_K) - 1)
    return np.where(known_K[place_N] == key_N, rows_K[place_N], otherwise_N).astype(np.int32)


def spectra_features(spectra_NF: FloatNF, floor: float, log: bool) -> npt.NDArray[np.float32]:
    """(N, G) features of BaselineTable.features, in NumPy, for fitting."""
    energy_N1 = np.log(np.maximum(np.sqrt(np.einsum("nf,nf->n", spectra_NF, spectra_NF)), floor))[:, None]
    bins_NF = np.log(np.maximum(spectra_NF, floor)) if log else spectra_NF
    return np.concatenate([bins_NF, energy_N1], axis=1).astype(np.float32)
