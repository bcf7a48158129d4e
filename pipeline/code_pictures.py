"""What a report draws of the networks' codes: failures among healthy rows, samples, ways from one spectrum to another.

Bounded whatever the data, and seeded: a sample of test rows, and wide spectra in groups of neighbouring bins.
Shape legend: N test rows, P rows that are drawn, H healthy ones of them, F bins, L numbers of a code, S groups of bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.detectors import Detector, NeuralDetector
from pipeline.detectors.latent import code_statistics
from pipeline.detectors.linear import PcaDetector
from pipeline.detectors.neural import VaeDetector
from pipeline.detectors.objectives import INPUT_LIMIT
from pipeline.evidence import SPECTRUM_BINS, Groups, evenly
from pipeline.judging.judged import Judgement
from pipeline.measure import Scored
from pipeline.moments import iso, to_us
from pipeline.schema import MICROSECONDS_PER_HOUR, BoolN, FleetSpec, FloatN, FloatNF, IntN, Label

HEALTHY_ROWS, ROWS_A_FAILURE, FAILURE_ROWS = 1500, 60, 3000
SAMPLES, MEASURED_SAMPLES, BAND_ROWS, FEW_ROWS = 6, 500, 2000, 20
STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a way between two codes
DEVIATIONS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # of healthy codes, along one of their dimensions
LEAST_SPREAD = 0.1  # of the largest: a number of the code that healthy rows hardly move says nothing
MANY_SHARE = 0.5
NO_MODE = "not recorded"


@dataclass(frozen=True)
class DrawnRows:
    """The test rows that stand for all: places among them (P,), the failure (-1: healthy), and who failed how."""

    place_P: IntN
    failure_P: IntN
    failures: Sequence[Mapping[str, Any]]

    @property
    def healthy_P(self) -> BoolN:
        """Which are healthy."""
        return np.asarray(self.failure_P < 0)

    @property
    def modes(self) -> list[str]:
        """The modes of the failures, most rows first."""
        modes = [mode_of(failure) for failure in self.failures]
        rows = np.bincount(self.failure_P[~self.healthy_P], minlength=len(modes))
        total = {mode: sum(int(n) for n, own in zip(rows, modes, strict=True) if own == mode) for mode in modes}
        return sorted((mode for mode in total if total[mode]), key=lambda mode: (-total[mode], mode))


def mode_of(failure: Mapping[str, Any]) -> str:
    """The failure mode that the log tells."""
    return str(failure.get("failure_mode") or NO_MODE)


def drawn_rows(scored: Scored, judgement: Judgement, seed: int) -> DrawnRows:
    """A sample of healthy test rows, and rows evenly over each judged failure's time before it."""
    rows = scored.rows
    healthy = np.flatnonzero(rows.column("label") == Label.HEALTHY)
    if len(healthy) > HEALTHY_ROWS:
        healthy = np.sort(np.random.default_rng(seed).choice(healthy, HEALTHY_ROWS, replace=False))
    before = (rows.column("label") == Label.FAULTY, rows.column("failure_id"))
    chosen, events = [healthy], judgement.events
    most = min(ROWS_A_FAILURE, FAILURE_ROWS // max(1, len(events)))
    for event in events:
        mine = np.flatnonzero(before[0] & (before[1] == event["failure_id"]))
        mine = mine[rows.time_us[mine] >= to_us(event["window_start"])]
        chosen.append(evenly(mine[np.argsort(rows.time_us[mine], kind="stable")], most))
    failure_P = np.repeat(np.arange(-1, len(events)), [len(part) for part in chosen])
    return DrawnRows(np.concatenate(chosen).astype(np.int64), failure_P, events)


def code_pictures(
    detectors: Mapping[str, Detector], scored: Scored, judgement: Judgement, fleet: FleetSpec, seed: int
) -> dict[str, Any]:
    """Everything that the report draws of codes, as JSON; empty where no network was judged or no row is healthy.

    Args:
        detectors: all of the build: its networks, and PCA beside them.
        scored: test rows with their spectra.
        judgement: its failures.
        fleet: names of the bins.
        seed: of the sample of healthy rows and of the codes that are drawn at random.
    """
    single_rows = {name: each for name, each in detectors.items() if each.rows_seen == 1}
    networks = {name: each for name, each in single_rows.items() if isinstance(each, NeuralDetector)}
    drawn = drawn_rows(scored, judgement, seed)
    if not networks or drawn.healthy_P.sum() < FEW_ROWS:
        return {}
    spaces = {name: _coordinates(network, scored, drawn) for name, network in networks.items()}
    pca = next((each for each in detectors.values() if isinstance(each, PcaDetector)), None)
    if pca is not None:
        spaces[pca.name] = _coordinates(pca, scored, drawn)
    code_N = next(iter(networks.values())).baselines.codes(scored.rows.keys)  # those of one build are all the same
    picture = _Picture(scored, code_N, drawn, Groups.of(fleet, SPECTRUM_BINS), seed)
    vae = next((each for each in networks.values() if isinstance(each, VaeDetector)), None)
    return {
        "points": _points(scored, drawn),
        "spaces": [_space(name, codes_PL, drawn, is_pca=name not in networks) for name, codes_PL in spaces.items()],
        "bands": list(picture.groups.names),
        "samples": None if vae is None else picture.samples(vae),
        "paths": [found for each in networks.values() if (found := picture.path(each)) is not None],
        "traversals": [picture.traversal(each, spaces[name]) for name, each in networks.items()],
    }


@torch.inference_mode()
def _coordinates(detector: NeuralDetector | PcaDetector, scored: Scored, drawn: DrawnRows) -> FloatNF:
    """Codes (P, L) of the drawn rows; of PCA its components."""
    spectra_PF = scored.rows.spectra[drawn.place_P]
    code_P = detector.baselines.codes(scored.rows.keys.take(drawn.place_P))
    if isinstance(detector, NeuralDetector):
        return detector.encode(spectra_PF, code_P)
    level_PF = detector.relative(spectra_PF, code_P)[:, :-1].clamp(-INPUT_LIMIT, INPUT_LIMIT)
    components: FloatNF = ((level_PF - detector.mean) @ detector.vectors).cpu().numpy()
    return components


def _points(scored: Scored, drawn: DrawnRows) -> dict[str, Any]:
    """What the drawn rows are: machine, mode (-1: healthy) and hours before the failure (null: healthy)."""
    rows, modes = scored.rows, drawn.modes
    names, machine_P = np.unique(rows.machine[drawn.place_P], return_inverse=True)
    place_of = {mode: place for place, mode in enumerate(modes)}
    mode_P = [-1 if at < 0 else place_of[mode_of(drawn.failures[at])] for at in drawn.failure_P.tolist()]
    hours_P = [
        None if at < 0 else round((to_us(drawn.failures[at]["time"]) - time_us) / MICROSECONDS_PER_HOUR, 1)
        for at, time_us in zip(drawn.failure_P.tolist(), rows.time_us[drawn.place_P].tolist(), strict=True)
    ]
    return {
        "machines": [str(rows.machines[code]) for code in names],
        "machine": machine_P.tolist(),
        "modes": modes,
        "mode": mode_P,
        "failure": drawn.failure_P.tolist(),
        "hours_before": hours_P,
    }


def _space(name: str, codes_PL: FloatNF, drawn: DrawnRows, *, is_pca: bool) -> dict[str, Any]:
    """Where the drawn rows lie in a plane, how much of the codes it shows, and whether modes lie together.

    The plane of a network is that in which the drawn codes vary most; PCA's are its first two components.
    """
    centred_PL = codes_PL.astype(np.float64) - codes_PL[drawn.healthy_P].mean(axis=0)
    total = float(np.square(centred_PL - centred_PL.mean(axis=0)).sum())
    plane_PL = centred_PL if is_pca else centred_PL @ principal_axes(centred_PL)
    shown = plane_PL[:, :2] - plane_PL[:, :2].mean(axis=0)
    xy_P2 = np.pad(plane_PL[:, :2], ((0, 0), (0, max(0, 2 - plane_PL.shape[1]))))
    return {
        "detector": name,
        "dimensions": int(codes_PL.shape[1]),
        "shown_share": round(float(np.square(shown).sum()) / total, 4) if total else None,
        "x": [float(f"{value:.4g}") for value in xy_P2[:, 0]],
        "y": [float(f"{value:.4g}") for value in xy_P2[:, 1]],
        "neighbours": neighbours_of_one_mode(codes_PL, drawn),
    }


def principal_axes(centred_PL: FloatN) -> FloatN:
    """(L, L) directions in which rows vary, most first; each points to where its largest part is positive.

    >>> principal_axes(np.array([[0.0, 3.0], [0.0, -3.0], [1.0, 0.0], [-1.0, 0.0]])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    _, vectors_LL = np.linalg.eigh(np.cov(centred_PL, rowvar=False).reshape(centred_PL.shape[1], -1))
    vectors_LL = vectors_LL[:, ::-1]
    largest = np.abs(vectors_LL).argmax(axis=0)
    signs = np.sign(vectors_LL[largest, np.arange(len(largest))])
    return np.asarray(vectors_LL * signs + 0.0)


def neighbours_of_one_mode(codes_PL: FloatNF, drawn: DrawnRows) -> dict[str, Any] | None:
    """Of rows before failures, how many have their nearest row on another machine in a failure of the same mode.

    Codes are measured in the deviations of healthy ones (Mahalanobis). Beside it stands the share that a row picked at
    random would give. None where no mode failed on two machines, or there is one mode only.
    """
    faulty = np.flatnonzero(~drawn.healthy_P)
    failure_M = drawn.failure_P[faulty]
    mode_M = np.array([mode_of(drawn.failures[at]) for at in failure_M.tolist()], dtype=object)
    machine_M = np.array([drawn.failures[at]["machine_id"] for at in failure_M.tolist()], dtype=object)
    mean_L, root_LL = code_statistics(torch.from_numpy(codes_PL[drawn.healthy_P]))
    white_ML = (codes_PL[faulty].astype(np.float64) - mean_L.numpy()) @ root_LL.numpy()
    hits, chances = [], []
    for machine in np.unique(machine_M):
        mine, others = machine_M == machine, machine_M != machine
        known = mine & np.isin(mode_M, list(set(mode_M[others])))
        if not known.any():
            continue
        norm_O = np.square(white_ML[others]).sum(axis=1)
        squared = norm_O - 2 * white_ML[known] @ white_ML[others].T  # less the row's own norm: it moves no nearest
        hits += (mode_M[others][squared.argmin(axis=1)] == mode_M[known]).tolist()
        chances += [float((mode_M[others] == mode).mean()) for mode in mode_M[known]]
    if not hits or len(set(mode_M)) < 2:
        return None
    return {"rows": len(hits), "share": round(float(np.mean(hits)), 4), "by_chance": round(float(np.mean(chances)), 4)}


@dataclass(frozen=True)
class _Picture:
    """Spectra that decoders make, drawn beside those that were heard."""

    scored: Scored
    code_N: npt.NDArray[np.int32]  # rows of the baseline table
    drawn: DrawnRows
    groups: Groups
    seed: int

    def samples(self, vae: VaeDetector) -> dict[str, Any] | None:
        """Spectra decoded from N(0, 1) codes for one machine's baseline, among its healthy spectra; None without any.

        `inside` is the share of their bands that lie within the 5th and 95th percentile of the healthy ones, over many
        samples: .9 if they were like them.
        """
        rows, code_N = self.scored.rows, self.code_N
        healthy = self.drawn.place_P[self.drawn.healthy_P]
        baseline = self._loud_baseline(healthy)
        same = np.flatnonzero((code_N == baseline) & (rows.column("label") == Label.HEALTHY))
        if len(same) < FEW_ROWS:
            return None
        machines = np.unique(rows.machine[same])  # several where the fleet's baseline describes them
        random = np.random.default_rng(self.seed)
        codes_ML = random.standard_normal((MEASURED_SAMPLES, vae.params.latent)).astype(np.float32)
        made_MF = vae.decode_to_spectra(codes_ML, np.full(MEASURED_SAMPLES, baseline, np.int32))
        low_F, middle_F, high_F = np.percentile(rows.spectra[evenly(same, BAND_ROWS)], [5, 50, 95], axis=0)
        return {
            "detector": vae.name,
            "machine_id": str(rows.machines[machines[0]]) if len(machines) == 1 else f"{len(machines)} machines",
            "condition": str(rows.conditions[rows.condition[same[0]]]),
            "healthy_rows": int(min(len(same), BAND_ROWS)),
            "inside": round(float(((made_MF >= low_F) & (made_MF <= high_F)).mean()), 4),
            "low": self._magnitudes(low_F),
            "median": self._magnitudes(middle_F),
            "high": self._magnitudes(high_F),
            "spectra": [self._magnitudes(made_F) for made_F in made_MF[:SAMPLES]],
        }

    def _loud_baseline(self, healthy: IntN) -> int:
        """The row of the baseline table, of those that describe many healthy rows, whose rows are the loudest."""
        rows, baseline_H = self.scored.rows, self.code_N[healthy]
        known_K, count_K = np.unique(baseline_H, return_counts=True)
        many = known_K[count_K >= MANY_SHARE * count_K.max()]  # idling and standing still are no picture of a machine
        loud = [float(np.median(np.square(rows.spectra[healthy[baseline_H == code]]).sum(axis=1))) for code in many]
        return int(many[int(np.argmax(loud))])

    def path(self, network: NeuralDetector) -> dict[str, Any] | None:
        """From a healthy spectrum to the one that scores highest before a failure, code by code; None without one.

        The healthy one is typical, and where there are any of the same machine in the same condition.
        """
        faulty = self.drawn.place_P[~self.drawn.healthy_P]
        if not len(faulty):
            return None
        rows, raw_N = self.scored.rows, self.scored.scores[network.name]
        end = int(faulty[np.argmax(raw_N[faulty])])
        healthy = np.flatnonzero(rows.column("label") == Label.HEALTHY)
        same = healthy[self.code_N[healthy] == self.code_N[end]]
        pool = same if len(same) else self.drawn.place_P[self.drawn.healthy_P]
        start = int(pool[np.argsort(raw_N[pool], kind="stable")[len(pool) // 2]])
        pair = np.array([start, end])
        spectra_2F, code_2 = rows.spectra[pair], self.code_N[pair]
        ends_2L = network.encode(spectra_2F, code_2)
        steps_SL = np.array([(1 - step) * ends_2L[0] + step * ends_2L[1] for step in STEPS], np.float32)
        heard_2F = network.relative(spectra_2F, code_2)[:, :-1].cpu().numpy()
        failure = self.drawn.failures[int(self.drawn.failure_P[self.drawn.place_P == end].max())]
        return {
            "detector": network.name,
            "from": self._row(start),
            "to": self._row(end) | {"failure_mode": mode_of(failure), "failure_time": failure["time"]},
            "same_baseline": bool(len(same)),
            "steps": list(STEPS),
            "levels": self._decoded(network, steps_SL),
            "heard": [self._levels(heard_F) for heard_F in heard_2F],
        }

    def traversal(self, network: NeuralDetector, codes_PL: FloatNF) -> dict[str, Any]:
        """What one number of the code says: the others at the healthy mean, it from -3 to 3 healthy deviations.

        It is the number in which a failure's last rows (a quarter of them, their median) went furthest; without
        failures the one that varies most.
        """
        healthy_HL = codes_PL[self.drawn.healthy_P]
        mean_L, spread_L = healthy_HL.mean(axis=0), np.maximum(healthy_HL.std(axis=0), 1e-6)
        active_L = spread_L > LEAST_SPREAD * spread_L.max()
        shifts = {
            at: np.where(active_L, np.abs(np.median(mine[-max(1, len(mine) // 4) :], axis=0) - mean_L) / spread_L, 0.0)
            for at in range(len(self.drawn.failures))
            if len(mine := codes_PL[self.drawn.failure_P == at])
        }
        chosen, moved_by = int(np.argmax(spread_L)), None
        if shifts:
            furthest = max(shifts, key=lambda at: float(shifts[at].max()))
            chosen, failure = int(shifts[furthest].argmax()), self.drawn.failures[furthest]
            moved_by = {"machine_id": failure["machine_id"], "failure_mode": mode_of(failure)}
            moved_by["deviations"] = round(float(shifts[furthest][chosen]), 2)
        codes_SL = np.repeat(mean_L[None], len(DEVIATIONS), axis=0)
        codes_SL[:, chosen] += np.array(DEVIATIONS, np.float32) * spread_L[chosen]
        return {
            "detector": network.name,
            "dimension": chosen + 1,
            "dimensions": int(codes_PL.shape[1]),
            "moved_by": moved_by,
            "deviations": list(DEVIATIONS),
            "levels": self._decoded(network, codes_SL.astype(np.float32)),
        }

    @torch.inference_mode()
    def _decoded(self, network: NeuralDetector, codes_SL: FloatNF) -> list[list[float]]:
        made_SF = network.decode(torch.from_numpy(codes_SL).to(network.device)).cpu().numpy()
        return [self._levels(made_F) for made_F in made_SF]

    def _row(self, place: int) -> dict[str, Any]:
        rows = self.scored.rows
        return {"machine_id": str(rows.machines[rows.machine[place]]), "timestamp": iso(int(rows.time_us[place]))}

    def _magnitudes(self, values_F: npt.NDArray[Any]) -> list[float]:
        return [float(f"{value:.4g}") for value in self.groups.peaks(values_F)]

    def _levels(self, values_F: npt.NDArray[Any]) -> list[float]:
        """Robust deviations by group of bins: their means."""
        width_S = self.groups.sums(np.ones(len(values_F)))
        return [round(float(value), 3) for value in self.groups.sums(values_F.astype(np.float64)) / width_S]
