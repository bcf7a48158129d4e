"""A machine against its peers: what its own baseline hides, because it was never well.

Every row is described relative to the other machines in the same condition: their median location, and a scale that
spans them. Healthy machines differ from each other in ways that hang together (a gain, a mounting, a resonance), so the
distance is Mahalanobis' with the covariance of the machines' locations: what no other machine does counts most.

Shape legend: B rows of a batch, F bins, G = F + 1, R rows of the baseline table, M machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.detectors.base import Arrays, Detector, Fitting, TrainingRows
from pipeline.detectors.baseline import BaselineTable
from pipeline.schema import BoolN, FloatN

LEAST_PEERS = 2  # fewer machines in a condition tell no spread: the fleet's row serves as it is
FEW_MACHINES = 50  # up to as many, a machine is left out of what it is compared with; among more it makes no difference
CLIPPED = 2.0  # deviations of a machine that count in the covariance: a faulty one must not make its fault usual
MACHINES_A_FACTOR, MOST_FACTORS = 8, 16  # ways to differ that machines share: one is not learnt from fewer machines,
SHARED_BY = 3.0  # and is shared by so many in effect: else it is one machine's own way, which is what is looked for
FAR = 3.5  # robust deviations of a machine's log distance (Iglewicz and Hoaglin 1993): named in the history,
NAMED_FROM = 15  # where so many machines tell what is usual
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Peers:
    """Machines that have a baseline of their own in one condition: location (M, G) of each, scale (G,) within them."""

    machines: tuple[str, ...]
    location_MG: Floats
    within_G: Floats

    def row(self, chosen_M: BoolN) -> tuple[Floats, Floats]:
        """Location and scale (G,) of the chosen machines; the scale is that of a further machine's rows."""
        low, middle, high = np.percentile(self.location_MG[chosen_M], [16.0, 50.0, 84.0], axis=0)
        count = int(chosen_M.sum())
        spread_G = (high - low) / 2 * np.sqrt((count + 1) / (count - 1))
        return middle, np.sqrt(self.within_G**2 + spread_G**2)


class FleetRelativeDetector(Detector):
    """Squared Mahalanobis distance from the peers, d' C^-1 d, with d in their robust deviations.

    C is a factor model: the first principal components of the machines' locations, what they leave over in each bin,
    and what rows vary within a machine. The baselines of the detector are those of the peers, so that a row needs
    nothing but its own place in the table.
    """

    name = "fleet_relative"
    matched = False
    root: torch.Tensor  # (F, F) symmetric root of C^-1: its image of a row has one share per bin, none negative

    def fit(self, rows: TrainingRows, fitting: Fitting) -> dict[str, Any]:  # noqa: ARG002
        """The peers of every row of the baseline table, and how machines differ; names machines that stand apart."""
        own, bins = self.baselines, self.baselines.bins
        peers = peers_of(own)
        self.baselines = against_peers(own, peers)
        self._tables = self.baselines.tables(self.device)
        apart_KF, within_KF, machines = _apart(own, self.baselines, peers)
        counted = len(set(machines))
        total_FF, factors = factor_covariance(apart_KF, machines)
        total_FF += np.diag(np.median(within_KF, axis=0) if len(within_KF) else np.ones(bins))
        values, vectors = np.linalg.eigh(total_FF)
        root_FF = vectors / np.sqrt(np.maximum(values, 1e-6 * values.max())) @ vectors.T
        self.root = torch.from_numpy(root_FF.astype(np.float32)).to(self.device)
        far = far_from_peers(machines, np.square(apart_KF @ root_FF).sum(1))
        history: dict[str, Any] = {"machines": counted, "factors": factors, "far_from_peers": far}
        if counted <= LEAST_PEERS:
            history["warnings"] = [f"{counted} machines share a condition: too few to say what is usual among peers"]
        elif far:
            named = ", ".join(far)
            history["warnings"] = [f"far from their peers, perhaps never well: {named}"]
        return history

    def score_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:
        """Sum of the shares."""
        return self.explain_batch(spectra_BF, relative_BG).sum(1)

    def explain_batch(self, spectra_BF: torch.Tensor, relative_BG: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Squares per bin after the symmetric root."""
        return (relative_BG[:, :-1] @ self.root).double().square()

    def arrays(self) -> Arrays:
        """The root; the peers stand in the baselines."""
        return {"root": self.root.cpu().numpy()}

    def restore(self, arrays: Arrays, settings: dict[str, Any]) -> None:  # noqa: ARG002
        """Load arrays."""
        self.root = torch.from_numpy(np.array(arrays["root"])).to(self.device)


def peers_of(baselines: BaselineTable) -> dict[str, Peers]:
    """The peers in each condition in which machines have baselines of their own; epochs of a machine are averaged."""
    first = len(baselines.location) - len(baselines.keys)
    found: dict[str, dict[str, list[int]]] = {}
    for row, (machine, _, condition) in enumerate(baselines.keys[: baselines.own], start=first):
        found.setdefault(condition, {}).setdefault(machine, []).append(row)
    peers = {}
    for condition, rows in found.items():
        location_MG = np.stack([baselines.location[each].mean(axis=0) for each in rows.values()])
        every = [row for each in rows.values() for row in each]
        within_G = np.sqrt(np.median(np.square(baselines.scale[every]), axis=0))
        peers[condition] = Peers(tuple(rows), location_MG, within_G)
    return peers


def against_peers(baselines: BaselineTable, peers: Mapping[str, Peers]) -> BaselineTable:
    """The table with the location and scale of each key's peers in place of its own.

    >>> rows = np.array([[0.0, 0], [1, 1], [2, 2], [9, 9]], np.float32)
    >>> keys = tuple((name, 0, "") for name in "abc")
    >>> table = BaselineTable(keys, (), None, rows, np.ones_like(rows), (50,) * 3, 1e-9, True, own=3)
    >>> against_peers(table, peers_of(table)).location[:, 0].tolist()
    [0.0, 5.5, 5.0, 1.5]
    """
    first = len(baselines.location) - len(baselines.keys)
    fleet_R = baselines.fleet_rows()
    location_RG, scale_RG = baselines.location[fleet_R].copy(), baselines.scale[fleet_R].copy()
    kept: dict[tuple[str, str | None], tuple[Floats, Floats]] = {}
    for row, (machine, _, condition) in enumerate(baselines.keys, start=first):
        mine = peers.get(condition)
        if mine is None:
            continue
        chosen_M = np.array([name != machine for name in mine.machines])
        chosen_M |= len(chosen_M) > FEW_MACHINES
        if chosen_M.sum() < LEAST_PEERS:
            continue
        place = condition, None if chosen_M.all() else machine
        if place not in kept:
            kept[place] = mine.row(chosen_M)
        location_RG[row], scale_RG[row] = kept[place]
    return replace(baselines, location=location_RG, scale=scale_RG)


def _apart(
    own: BaselineTable, peers_table: BaselineTable, peers: Mapping[str, Peers]
) -> tuple[FloatN, FloatN, tuple[str, ...]]:
    """Each own key's location (K, F) and variance of rows relative to its peers, and its machine."""
    first = len(own.location) - len(own.keys)
    rows = [
        row for row, key in enumerate(own.keys[: own.own], start=first) if len(peers[key[2]].machines) > LEAST_PEERS
    ]
    scale_KF = peers_table.scale[rows, :-1].astype(np.float64)
    apart_KF = (own.location[rows, :-1] - peers_table.location[rows, :-1]) / scale_KF
    return apart_KF, np.square(own.scale[rows, :-1] / scale_KF), tuple(own.keys[row - first][0] for row in rows)


def factor_covariance(apart_KF: FloatN, machines: tuple[str, ...]) -> tuple[FloatN, int]:
    """Covariance (F, F) of machines about their peers, as a factor model; and the number of its factors.

    Every machine has the same weight, but one that is farther from its peers than most has no more of it than they:
    its clipped deviations are scaled down to the median length. Nothing to learn from gives no covariance.
    """
    bins = apart_KF.shape[1]
    names, code_K, count_M = np.unique(np.array(machines, dtype=object), return_inverse=True, return_counts=True)
    if len(names) <= LEAST_PEERS:
        return np.zeros((bins, bins)), 0
    clipped_KF = np.clip(apart_KF, -CLIPPED, CLIPPED)
    length_K = np.maximum(np.square(clipped_KF).sum(1), 1e-12)
    weight_K = np.minimum(1.0, np.median(length_K) / length_K) / (len(names) * count_M[code_K])
    covariance_FF = (clipped_KF * weight_K[:, None]).T @ clipped_KF
    most = min(max(1, len(names) // MACHINES_A_FACTOR), MOST_FACTORS, bins - 1)
    values, vectors = np.linalg.eigh(covariance_FF)
    power_ML = np.zeros((len(names), most))  # of each machine along each of the first components
    np.add.at(power_ML, code_K, np.square(clipped_KF @ vectors[:, bins - most :]) * weight_K[:, None])
    shared_L = np.square(power_ML.sum(0)) / np.maximum(np.square(power_ML).sum(0), 1e-300) >= SHARED_BY
    loadings_FL = (vectors[:, bins - most :] * np.sqrt(np.maximum(values[bins - most :], 0.0)))[:, shared_L]
    shared_FF = loadings_FL @ loadings_FL.T
    rest_F = np.maximum(np.diag(covariance_FF - shared_FF), 0.0)
    return shared_FF + np.diag(rest_F), int(shared_L.sum())


def far_from_peers(machines: tuple[str, ...], distance_K: FloatN) -> list[str]:
    """Machines whose distance no healthy spread of machines explains, the farthest first.

    >>> far_from_peers(tuple("abcdefghijklmnop"), np.r_[np.linspace(60.0, 70, 15), 900])
    ['p']
    """
    names = sorted(set(machines))
    if len(names) < NAMED_FROM:
        return []
    log_M = np.array([np.log(np.median(distance_K[[name == each for each in machines]]) + 1e-12) for name in names])
    middle = np.median(log_M)
    deviation = max(1.4826 * float(np.median(np.abs(log_M - middle))), 0.1)
    order = np.argsort(-log_M, kind="stable")
    return [names[place] for place in order if log_M[place] - middle > FAR * deviation]
