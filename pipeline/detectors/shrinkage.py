"""Baselines from short histories: empirical Bayes over a fleet of machines, their epochs and their conditions.

How a machine differs from the fleet, in one condition and epoch, is seen as one draw from a Gaussian process over
(epoch, condition) with mean 0 and, in units of the variance between machines, the covariance

    k((e, c), (e', c')) = phi^|e - e'| (1 - delta + delta [c = c'])

delta is the part of a machine's difference that belongs to the condition alone, 1 - phi the part that a repair, a moved
sensor or new firmware changes; both are estimated from the fleet. A key's median over n rows is seen with the noise
lambda / n, where lambda is the number of rows that count as one independent look (`shrink_rows`, or what the data tell
where that is more: see `looks`) times the variance of rows over that between machines. The best linear prediction
(Henderson, Biometrics 31 (1975) 423; Robinson, Statistical Science 6 (1991) 15, eq. 1.2) then leans on its own rows by
n / (n + lambda) where a machine is known from one key alone, on its other conditions and epochs where they are known,
and is the fleet's where nothing is. Its variance widens the scale.

Shape legend: K keys seen, T keys to describe, G features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.schema import BoolN, FloatN, IntN

ANY_EPOCH = -1  # stands for every epoch of a machine that no row has shown: it is thought of as its next one
RANGE_OF_NORMAL = 3.92  # distance of the 2.5th and 97.5th percentile in standard deviations
CHANGED_A_PRIORI = 0.25  # part of a machine's difference that a new epoch changes, as if it had been seen so often
CHANGES_A_PRIORI = 2.0
MOST_KEYS = 200  # of a machine that lean on each other, by their rows; a solve takes their third power
FloatKG = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Described:
    """Location, scale (K, G) and rows of keys, and the looks that they are worth; machines and conditions are codes."""

    machine_K: IntN
    epoch_K: IntN
    condition_K: IntN
    rows_K: IntN
    looks_K: FloatN
    location_KG: FloatKG
    scale_KG: FloatKG

    def take(self, chosen: BoolN | IntN | slice) -> Described:
        """Some of the keys."""
        return Described(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def names(self) -> list[tuple[int, int, int]]:
        """Machine, epoch and condition of each."""
        return list(zip(self.machine_K.tolist(), self.epoch_K.tolist(), self.condition_K.tolist(), strict=True))

    @classmethod
    def joined(cls, parts: Sequence[Described]) -> Described:
        """All keys of some lists of them."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class Fleet:
    """The fleet's location, its typical scale within a machine, and the spread between its machines; all (G,)."""

    location_G: FloatN
    within_G: FloatN
    spread_G: FloatN

    @property
    def noise(self) -> float:
        """Variance of rows over that between machines, all features together."""
        return min(float(np.square(self.within_G).sum() / max(np.square(self.spread_G).sum(), 1e-12)), 1e6)

    @property
    def scale_G(self) -> FloatN:
        """The scale that spans its machines too: that of a machine of which nothing is known."""
        return np.asarray(np.sqrt(self.within_G**2 + self.spread_G**2))

    @classmethod
    def of_keys(cls, keys: Described) -> Fleet:
        """Of keys that tell of the fleet.

        The spread of few machines is too small, and their middle uncertain: the variance about it that a further
        machine has is that of M machines times (M + 1) / (M - 1). One machine says nothing of others: they are taken to
        differ as much as its own rows do.
        """
        within_G = _above_zero(np.sqrt(np.median(keys.scale_KG**2, axis=0)))
        low, middle, high = np.percentile(keys.location_KG, [16.0, 50.0, 84.0], axis=0)
        machines = len(np.unique(keys.machine_K))
        if machines == 1:
            return cls(middle, within_G, np.maximum((high - low) / 2, within_G))
        return cls(middle, within_G, (high - low) / 2 * np.sqrt((machines + 1) / (machines - 1)))

    @classmethod
    def of_rows(cls, features_NG: npt.NDArray[np.float32]) -> Fleet:
        """Of machines that are each too short: half of the variance is taken to be between them."""
        location_G, scale_G = robust(features_NG)
        part_G = _above_zero(scale_G) * np.sqrt(0.5)
        return cls(location_G, part_G, part_G)


Fleets = Mapping[int | None, Fleet]  # of each condition that enough machines know; None: of all


def robust(features_NG: npt.NDArray[np.float32]) -> tuple[FloatN, FloatN]:
    """Median and (q97.5 - q2.5) / 3.92 per feature."""
    low, middle, high = np.percentile(features_NG, [2.5, 50.0, 97.5], axis=0)
    return middle, (high - low) / RANGE_OF_NORMAL


def _above_zero(scale_G: FloatN) -> FloatN:
    return np.asarray(np.maximum(scale_G, max(1e-3 * float(np.median(scale_G)), 1e-4)))


@dataclass(frozen=True)
class Components:
    """Parts of the variance between machines; conditions that the fleet does not share (`shared`) tell no others."""

    delta: float
    phi: float
    shared: frozenset[int]

    def covariance(self, one: Described, other: Described) -> FloatKG:
        """Covariance of the machine's differences at two lists of keys."""
        same = one.condition_K[:, None] == other.condition_K[None, :]
        shared = [np.isin(keys.condition_K, list(self.shared)) for keys in (one, other)]
        apart = np.abs(one.epoch_K[:, None] - other.epoch_K[None, :])
        alike = np.where(np.outer(*shared), 1.0 - self.delta, 0.0)
        return np.asarray(np.where(same, 1.0, alike) * self.phi**apart)


def describe_machines(
    seen: Described, fleets: Fleets, components: Components, shrink_rows: float, min_rows: int
) -> tuple[Described, Described]:
    """Location and scale of every key of every machine: those of looks enough, then the others.

    The location of a key with at least `min_rows` looks is its own, and its scale leans on that of other rows in the
    same condition. The others are predicted: keys with fewer looks, the conditions of the fleet that a machine was not
    seen in, and all conditions in an epoch that no row has shown (ANY_EPOCH).

    Args:
        seen: keys as their own rows describe them.
        fleets: what the machines have in common.
        components: parts of the variance between the machines.
        shrink_rows: rows that count as one look, at least, and the weight of the fleet's scale in looks.
        min_rows: looks that make a key its own; the only key of all is so in any case.
    """
    alone = len(seen.rows_K) == 1
    own, shrunk = [seen.take(slice(0))], [seen.take(slice(0))]
    for machine in np.unique(seen.machine_K):
        mine = np.flatnonzero(seen.machine_K == machine)
        mine = mine[np.argsort(-seen.looks_K[mine], kind="stable")]
        for begin in range(0, len(mine), MOST_KEYS):
            known = seen.take(np.sort(mine[begin : begin + MOST_KEYS]))
            stands = known.take((known.looks_K >= min_rows) | alone)
            scale_KG = _scales_within(known, stands, _fleets_of(stands, fleets), shrink_rows)
            own.append(replace(stands, scale_KG=scale_KG))
            wanted = known if begin else _with_gaps(known, fleets)
            short = wanted.take((wanted.looks_K < min_rows) & ~(alone & (wanted.rows_K > 0)))
            shrunk.append(
                predict(known, short, fleets, components, shrink_rows) if len(short.rows_K) else seen.take(slice(0))
            )
    return Described.joined(own), Described.joined(shrunk)


def predict(
    known: Described, wanted: Described, fleets: Fleets, components: Components, shrink_rows: float
) -> Described:
    """The keys `wanted` of one machine as its `known` keys and the fleet describe them."""
    fleets_T, following = _fleets_of(wanted, fleets), known.epoch_K.max() + 1
    placed = replace(wanted, epoch_K=np.where(wanted.epoch_K == ANY_EPOCH, following, wanted.epoch_K))
    known_fleets = _fleets_of(known, fleets)
    offset_KG = _offsets(known, known_fleets)
    between_TK = components.covariance(placed, known)
    rows_per_look_K = np.maximum(known.rows_K / known.looks_K, shrink_rows)
    noise_K = rows_per_look_K * np.array([fleet.noise for fleet in known_fleets]) / known.rows_K
    noisy_KK = components.covariance(known, known) + np.diag(1e-9 + noise_K)
    weight_TK = np.linalg.solve(noisy_KK, between_TK.T).T
    uncertain_T1 = np.clip(1.0 - np.einsum("tk,tk->t", weight_TK, between_TK), 0.0, 1.0)[:, None]
    within_TG = _scales_within(known, placed, fleets_T, shrink_rows)
    spread_TG = np.stack([fleet.spread_G for fleet in fleets_T])
    return replace(
        wanted,
        location_KG=np.stack([fleet.location_G for fleet in fleets_T]) + weight_TK @ offset_KG,
        scale_KG=np.sqrt(within_TG**2 + uncertain_T1 * spread_TG**2),
    )


def variance_components(seen: Described, fleets: Fleets) -> Components:
    """Estimated from keys that tell of the fleet; features are pooled, so that few machines tell them.

    Args:
        seen: keys as their own rows describe them.
        fleets: what the machines have in common.
    """
    shared = frozenset(code for code in fleets if code is not None)
    fleets_K = _fleets_of(seen, fleets)
    spread_K = np.array([np.square(fleet.spread_G).sum() for fleet in fleets_K])
    offset_KG = _offsets(seen, fleets_K)
    conditions, changes = list[float](), dict[tuple[int, int], list[float]]()
    for first, second in _neighbours(seen):
        apart = float(np.square(offset_KG[first] - offset_KG[second]).sum())
        ratio = apart / max(float(spread_K[first] + spread_K[second]), 1e-12)  # 1: as two machines are apart
        epochs = sorted((int(seen.epoch_K[first]), int(seen.epoch_K[second])))
        if epochs[0] == epochs[1]:
            if {int(seen.condition_K[first]), int(seen.condition_K[second])} <= shared:
                conditions.append(ratio)
        elif seen.condition_K[first] == seen.condition_K[second]:
            steps = epochs[1] - epochs[0]
            changes.setdefault((int(seen.machine_K[first]), epochs[1]), []).append(ratio / steps)
    # the mean over epochs and not the median: what few of them change much, all must be ready for
    changed = [min(float(np.mean(ratios)), 1.0) for ratios in changes.values()]
    share = (sum(changed) + CHANGES_A_PRIORI * CHANGED_A_PRIORI) / (len(changed) + CHANGES_A_PRIORI)
    return Components(
        delta=float(np.clip(np.median(conditions), 0.02, 0.98)) if conditions else 0.5,
        phi=1.0 - float(np.clip(share, 0.001, 0.95)),
        shared=shared,
    )


def _neighbours(seen: Described) -> Iterator[tuple[int, int]]:
    """Pairs of keys of one machine, in one epoch or in two that follow each other among those seen."""
    order = np.lexsort((seen.condition_K, seen.epoch_K, seen.machine_K))
    machine_K, epoch_K = seen.machine_K[order], seen.epoch_K[order]
    begins = np.flatnonzero(np.r_[True, (np.diff(machine_K) != 0) | (np.diff(epoch_K) != 0)][: len(order)])
    groups = np.split(order, begins[1:]) if len(order) else []
    for place, group in enumerate(groups):
        follows = place + 1 < len(groups) and machine_K[begins[place]] == machine_K[begins[place + 1]]
        later = [*group, *(groups[place + 1] if follows else [])]
        for position, first in enumerate(group):
            for second in later[position + 1 :]:
                yield int(first), int(second)


def _with_gaps(known: Described, fleets: Fleets) -> Described:
    """The keys of one machine, those that its epochs lack, and all conditions in ANY_EPOCH; not yet described."""
    epochs = [*np.unique(known.epoch_K).tolist(), ANY_EPOCH]
    conditions = {code for code in fleets if code is not None} | set(known.condition_K.tolist())
    seen = {(epoch, condition): (0, 0.0) for epoch in epochs for condition in conditions}
    for (_, epoch, condition), rows, looks in zip(known.names(), known.rows_K, known.looks_K, strict=True):
        seen[epoch, condition] = int(rows), float(looks)
    epoch_T, condition_T = np.array(sorted(seen), np.int64).T
    rows_T = np.array([seen[key][0] for key in sorted(seen)], np.int64)
    looks_T = np.array([seen[key][1] for key in sorted(seen)])
    nothing = np.empty((len(seen), 0))
    return Described(np.full(len(seen), known.machine_K[0]), epoch_T, condition_T, rows_T, looks_T, nothing, nothing)


def _scales_within(known: Described, wanted: Described, fleets_T: Sequence[Fleet], shrink_rows: float) -> FloatKG:
    """Scale (T, G) of rows about their location: of its own, then of the condition's other epochs, then the fleet's."""
    fleet_TG = np.array([fleet.within_G for fleet in fleets_T]).reshape(len(fleets_T), known.scale_KG.shape[1]) ** 2
    same_TK = wanted.condition_K[:, None] == known.condition_K[None, :]
    own_TK = same_TK & (wanted.epoch_K[:, None] == known.epoch_K[None, :])
    variance_TG = fleet_TG
    for chosen_TK in (same_TK & ~own_TK, own_TK):
        looks_TK = np.where(chosen_TK, known.looks_K, 0.0)
        weight_T1 = looks_TK.sum(1, keepdims=True) + shrink_rows
        leaning_TG = (looks_TK @ known.scale_KG**2 + shrink_rows * variance_TG) / np.maximum(weight_T1, 1e-12)
        variance_TG = np.where(weight_T1 > 0, np.maximum(leaning_TG, 0.01 * fleet_TG), variance_TG)
    return np.asarray(np.sqrt(variance_TG))


def _offsets(keys: Described, fleets_K: Sequence[Fleet]) -> FloatKG:
    """What each key is apart from the fleet (K, G)."""
    fleet_KG = np.array([fleet.location_G for fleet in fleets_K]).reshape(keys.location_KG.shape)
    return np.asarray(keys.location_KG - fleet_KG)


def _fleets_of(keys: Described, fleets: Fleets) -> list[Fleet]:
    return [fleets.get(condition, fleets[None]) for condition in keys.condition_K.tolist()]
