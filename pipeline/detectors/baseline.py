"""Machine baselines: what each machine sounds like when healthy, per epoch, shrunk to the fleet.

Machines differ more from each other than a fault differs from health, so every spectrum is first described relative to
its own machine: the log magnitude minus a robust location, over a robust scale, per bin. Row 0 of the table is the
fleet's baseline, wider by the spread between machines; it serves machines and epochs that the table does not know.

Shape legend: N rows, F bins, K keys (machine, epoch), G = F + 1 features (the bins, then the total energy).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.schema import FloatNF

FLEET = 0
FLOOR_OF_MEDIAN = 1e-3  # magnitudes below this part of the median bin are silence: log would blow them up
RANGE_OF_NORMAL = 3.92  # distance of the 2.5th and 97.5th percentile in standard deviations
MAX_ROWS_PER_KEY = 5_000  # evenly spaced; a percentile of more changes in the third digit


@dataclass(frozen=True)
class BaselineTable:
    """Location and scale (K + 1, G) of each (machine, epoch); row 0 is the fleet's.

    >>> spectra = np.exp(np.random.default_rng(0).normal(size=(200, 4))).astype(np.float32)
    >>> table = fit_baselines(spectra, np.zeros(200, int), ["pump"], np.zeros(200, int))
    >>> table.codes(["pump", "new"], np.array([0, 1, 0]), np.array([0, 0, 7]))
    array([1, 0, 0], dtype=int32)
    """

    keys: tuple[tuple[str, int], ...]
    location: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    rows: tuple[int, ...]
    floor: float
    log: bool

    @property
    def bins(self) -> int:
        """Number of bins F."""
        return int(self.location.shape[1]) - 1

    def codes(self, machines: Sequence[str], machine_N: np.ndarray, epoch_N: np.ndarray) -> npt.NDArray[np.int32]:
        """Row of the table for each (machine, epoch); 0, the fleet's, where it is not known."""
        if not len(machine_N):
            return np.empty(0, np.int32)
        known = {key: index + 1 for index, key in enumerate(self.keys)}
        epochs = int(epoch_N.max()) + 1
        lookup = np.zeros((len(machines), epochs), np.int32)
        for code, machine in enumerate(machines):
            for epoch in range(epochs):
                lookup[code, epoch] = known.get((machine, epoch), FLEET)
        return np.asarray(lookup[machine_N, epoch_N], dtype=np.int32)

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
        keys = [[machine, epoch] for machine, epoch in self.keys]
        return {"keys": keys, "rows": list(self.rows), "floor": self.floor, "log": self.log}


@dataclass(frozen=True)
class Tables:
    """Location and scale (K + 1, G) as tensors."""

    location: torch.Tensor
    scale: torch.Tensor


def baselines_from(values: dict[str, Any], location: np.ndarray, scale: np.ndarray) -> BaselineTable:
    """The inverse of `to_json` and the two arrays."""
    keys = tuple((str(machine), int(epoch)) for machine, epoch in values["keys"])
    return BaselineTable(keys, location, scale, tuple(values["rows"]), float(values["floor"]), bool(values["log"]))


def fit_baselines(
    spectra_NF: FloatNF,
    machine_N: np.ndarray,
    machines: Sequence[str],
    epoch_N: np.ndarray,
    *,
    scope: str = "machine",
    shrink_rows: float = 30.0,
    min_rows: int = 20,
    log: bool = True,
) -> BaselineTable:
    """Robust location and scale per machine and epoch.

    The location is the median, the scale (q97.5 - q2.5) / 3.92: it spans the machine's regimes, which an interquartile
    range would not, and 2 % of wrong rows do not move it. The squared scale is shrunk to the fleet's median squared
    scale with the weight of `shrink_rows` rows. Keys with fewer than `min_rows` rows are left to the fleet's baseline.

    Args:
        spectra_NF: healthy rows, (N, F), in the sensor's unit.
        machine_N: codes into `machines`.
        machines: names.
        epoch_N: epoch of each row.
        scope: `machine`, or `global` for one baseline of all.
        shrink_rows: weight of the fleet's scale.
        min_rows: rows below which a key has no baseline of its own.
        log: magnitudes are seen in log (kind `spectrum`).
    """
    positive = spectra_NF[:: max(1, len(spectra_NF) // 20_000)]
    positive = positive[positive > 0]
    floor = float(np.median(positive)) * FLOOR_OF_MEDIAN if positive.size else 1e-12
    features = spectra_features(spectra_NF, max(floor, 1e-30), log)
    group_N = machine_N.astype(np.int64) * (int(epoch_N.max(initial=0)) + 1) + epoch_N
    order = np.argsort(group_N, kind="stable")
    groups, starts, counts = np.unique(group_N[order], return_index=True, return_counts=True)
    keys, locations, scales, rows = [], [], [], []
    epochs = int(epoch_N.max(initial=0)) + 1
    for group, start, count in zip(groups, starts, counts, strict=True):
        if count < min_rows and len(groups) > 1:
            continue
        picked = order[start : start + count][:: max(1, count // MAX_ROWS_PER_KEY)]
        low, middle, high = np.percentile(features[picked], [2.5, 50.0, 97.5], axis=0)
        keys.append((machines[int(group // epochs)], int(group % epochs)))
        locations.append(middle)
        scales.append((high - low) / RANGE_OF_NORMAL)
        rows.append(int(count))
    if not keys:  # every machine is shorter than min_rows: one baseline of all
        low, middle, high = np.percentile(features, [2.5, 50.0, 97.5], axis=0)
        locations, scales = [middle], [(high - low) / RANGE_OF_NORMAL]
    location_KG, scale_KG = np.asarray(locations), np.asarray(scales)
    within_G = np.sqrt(np.median(scale_KG**2, axis=0))
    within_G = np.maximum(within_G, max(1e-3 * float(np.median(within_G)), 1e-4))
    low, middle, high = np.percentile(location_KG, [16.0, 50.0, 84.0], axis=0)
    fleet_scale_G = np.sqrt(within_G**2 + ((high - low) / 2) ** 2)
    if scope == "global" or not keys:
        keys, rows = [], []
        location_KG, scale_KG = location_KG[:0], scale_KG[:0]
    else:
        weight_K1 = np.asarray(rows, float)[:, None]
        variance = (weight_K1 * scale_KG**2 + shrink_rows * within_G**2) / (weight_K1 + shrink_rows)
        scale_KG = np.maximum(np.sqrt(variance), 0.1 * within_G)
    return BaselineTable(
        tuple(keys),
        np.vstack([middle[None], location_KG]).astype(np.float32),
        np.vstack([fleet_scale_G[None], scale_KG]).astype(np.float32),
        tuple(rows),
        max(floor, 1e-30),
        log,
    )


def spectra_features(spectra_NF: FloatNF, floor: float, log: bool) -> npt.NDArray[np.float32]:
    """(N, G) features of BaselineTable.features, in NumPy, for fitting."""
    energy_N1 = np.log(np.maximum(np.sqrt(np.einsum("nf,nf->n", spectra_NF, spectra_NF)), floor))[:, None]
    bins_NF = np.log(np.maximum(spectra_NF, floor)) if log else spectra_NF
    return np.concatenate([bins_NF, energy_N1], axis=1).astype(np.float32)
