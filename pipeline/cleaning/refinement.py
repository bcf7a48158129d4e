"""Which episodes are contaminated: cross-fitted models that must agree, repeated until what they remove settles.

Every machine's days are dealt into five groups. A model is fitted on each three of them and judges the other two, so
four models judge an episode and none of them has seen it; it is removed where they agree (self-supervised refinement:
Yoon et al., arXiv 2106.06115). What was removed is not learned from in the next round (unsupervised refinement with
disjoint models: Ulmer et al., arXiv 2308.13352). A fault lasts: neighbours of a removed episode go on less evidence.

Shape legend: E episodes, V vectors, K groups, M machines.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

from pipeline.cleaning.episodes import MIN_SCALE, THREADS, Selection, Vectors
from pipeline.cleaning.residuals import evidence, kinds_of
from pipeline.params import CleanParams
from pipeline.schema import BoolN, FloatN, IntN

GROUPS, LEFT_OUT = 5, 2
EPISODES_OF_A_DAY = 4  # episodes that are dealt together: neighbours are alike
REACH = 4  # episodes between two removed ones of one fault, at most
SETTLED = 0.001  # share of the episodes that may still change in the last round
TRIM_PERCENTILE = 75.0  # of the error: what the trimmed refit keeps (Boehmke and Greenwell 2020, ch. 19)
ODD_MACHINE = 6.0  # times as far from its peers' normal as machines are
FAR = 3.0  # half widths: .1 % of normal numbers lie further
MIN_PEERS = 8


@dataclass(frozen=True)
class Refinement:
    """Evidence and verdict on E episodes.

    `evidence_E` is in robust deviations (NaN: nothing to compare with). `contaminated_share` is the estimated share of
    contaminated rows, whether their episodes are removed or not.
    """

    evidence_E: FloatN
    removed_E: BoolN
    rounds: tuple[dict[str, float], ...]
    contaminated_share: float
    warnings: tuple[str, ...] = field(default=())


def refine(rows: Selection, vectors: Vectors, params: CleanParams, seed: int) -> Refinement:
    """Find contaminated episodes with the method of `params`; see the module."""
    judge = _trimmed if params.method == "trimmed" else _cross_fitted
    evidence_E, removed_E, rounds = judge(rows, vectors, params, seed)
    warnings = list[str]()
    removed_E, spared = protected(rows, evidence_E, removed_E, params.min_kept_share)
    for machine in spared:
        warnings.append(
            f"{machine}: more than {1 - params.min_kept_share:.0%} of its rows are odd by its own measure; the least "
            "odd stay (clean.min_kept_share). Look at it: it may have changed, or never have been well."
        )
    for machine, ratio in odd_machines(rows, vectors, ~removed_E):
        warnings.append(
            f"{machine}: its normal lies {ratio:.1f} times as far from its peers' as usual, and its own past cannot "
            "tell whether it was ever well. Its rows stay; corrections.csv removes them."
        )
    share = contaminated_share(evidence_E, rows.rows_E, removed_E)
    return Refinement(evidence_E, removed_E, tuple(rounds), share, tuple(warnings))


def groups_of(rows: Selection, seed: int) -> npt.NDArray[np.int32]:
    """Group (E,) of each episode: the days of each machine, dealt in a random order."""
    rng = np.random.default_rng([seed, 1])
    day_E = rows.block_E // EPISODES_OF_A_DAY
    group_E = np.zeros(len(day_E), np.int32)
    for machine in np.unique(rows.machine_E):
        mine = np.flatnonzero(rows.machine_E == machine)
        days, index = np.unique(day_E[mine], return_inverse=True)
        group_E[mine] = ((rng.permutation(len(days)) + rng.integers(GROUPS)) % GROUPS)[index]
    return group_E


def _cross_fitted(
    rows: Selection, vectors: Vectors, params: CleanParams, seed: int
) -> tuple[FloatN, BoolN, list[dict[str, float]]]:
    kind_V, group_E = kinds_of(vectors), groups_of(rows, seed)
    removed_E = np.zeros(len(group_E), bool)
    evidence_E, rounds = np.full(len(group_E), np.nan), list[dict[str, float]]()
    unseen = list(combinations(range(GROUPS), LEFT_OUT))
    threads = THREADS if params.model == "pca" else 1  # an autoencoder seeds torch, which all threads share
    for _ in range(params.max_rounds):
        judge = partial(_judged, vectors, kind_V, group_E, removed_E, params, seed)
        with ThreadPoolExecutor(threads) as pool:
            judged = np.stack(list(pool.map(judge, unseen)))
        found_E = median_of_judges(judged)
        # where all that was left of a regime is removed, nothing judges it any more: what was found before stands
        evidence_E = np.where(np.isnan(found_E), evidence_E, found_E)
        before, removed_E = removed_E, grown(rows, evidence_E, params.remove_above, removed_E)
        changed = float(np.mean(before != removed_E))
        rounds.append({"removed_share": _share(rows, removed_E), "changed_share": round(changed, 6)})
        if changed <= SETTLED:
            break
    return evidence_E, removed_E, rounds


def _judged(
    vectors: Vectors,
    kind_V: npt.NDArray[np.int32],
    group_E: npt.NDArray[np.int32],
    removed_E: BoolN,
    params: CleanParams,
    seed: int,
    left_out: tuple[int, ...],
) -> FloatN:
    """Evidence (E,) on the episodes of the groups left out, by a model of the others; NaN on those."""
    learned_E = ~np.isin(group_E, left_out)
    fits_V, null_V = (learned_E & ~removed_E)[vectors.episode_V], (~learned_E & ~removed_E)[vectors.episode_V]
    found_V = evidence(vectors, kind_V, fits_V, null_V, params.model, params.components, seed)
    return np.where(learned_E, np.nan, largest_of_episode(found_V, vectors.episode_V, len(group_E)))


def _trimmed(
    rows: Selection, vectors: Vectors, params: CleanParams, seed: int
) -> tuple[FloatN, BoolN, list[dict[str, float]]]:
    """One model of all episodes, then one of those that the first explains best; neither is cross-fitted."""
    kind_V, count = kinds_of(vectors), len(rows.block_E)
    fits_V, rounds = np.ones(len(kind_V), bool), list[dict[str, float]]()
    evidence_E, removed_E = np.full(count, np.nan), np.zeros(count, bool)
    for _ in range(2):
        found_V = evidence(vectors, kind_V, fits_V, np.ones(len(kind_V), bool), params.model, params.components, seed)
        evidence_E = largest_of_episode(found_V, vectors.episode_V, count)
        removed_E = grown(rows, evidence_E, params.remove_above)
        rounds.append({"removed_share": _share(rows, removed_E)})
        with np.errstate(invalid="ignore"):
            fits_V = (evidence_E <= np.nanpercentile(evidence_E, TRIM_PERCENTILE))[vectors.episode_V]
    return evidence_E, removed_E, rounds


def largest_of_episode(evidence_V: FloatN, episode_V: npt.NDArray[np.int32], episodes: int) -> FloatN:
    """The largest evidence (E,) of an episode's regimes; NaN where none has any."""
    largest_E = np.full(episodes, -np.inf)
    known_V = np.isfinite(evidence_V)
    np.maximum.at(largest_E, episode_V[known_V], evidence_V[known_V])
    return np.where(np.isfinite(largest_E), largest_E, np.nan)


def median_of_judges(judged_JE: FloatN) -> FloatN:
    """What more than half of the judges say at least (E,): the median, the lower one of two; NaN without a judge.

    >>> median_of_judges(np.array([[1.0, np.nan], [5.0, 3.0], [9.0, 7.0]])).tolist()
    [5.0, 3.0]
    """
    ordered_JE = np.sort(judged_JE, axis=0)  # NaN last
    count_E = np.isfinite(judged_JE).sum(axis=0)
    middle_E = np.maximum((count_E - 1) // 2, 0)
    return np.asarray(np.take_along_axis(ordered_JE, middle_E[None], axis=0)[0])


def grown(rows: Selection, evidence_E: FloatN, above: float, before_E: BoolN | None = None) -> BoolN:
    """Episodes with evidence above the threshold; next to one, those above half of it; and what lies between two.

    Nothing reaches further than REACH episodes in time, nor into another machine or epoch. What the round before has
    removed comes back only below half of the threshold, or rounds would swing for ever.
    """
    with np.errstate(invalid="ignore"):
        removed_E, may_E = evidence_E > above, evidence_E > above / 2
    if before_E is not None:
        removed_E |= before_E & may_E
    same_E = (np.diff(rows.machine_E) == 0) & (np.diff(rows.epoch_E) == 0) & (np.diff(rows.block_E) <= REACH)
    for step in (1, -1):  # forwards, then backwards
        order = range(1, len(removed_E)) if step == 1 else range(len(removed_E) - 2, -1, -1)
        for index in order:
            joined = same_E[index - 1] if step == 1 else same_E[index]
            if may_E[index] and joined and removed_E[index - step]:
                removed_E[index] = True
    chosen = np.flatnonzero(removed_E)
    for first, last in pairwise(chosen):
        together = rows.machine_E[first] == rows.machine_E[last] and rows.epoch_E[first] == rows.epoch_E[last]
        if together and rows.block_E[last] - rows.block_E[first] <= REACH:
            removed_E[first:last] = True
    return np.asarray(removed_E)


def protected(rows: Selection, evidence_E: FloatN, removed_E: BoolN, min_kept: float) -> tuple[BoolN, list[str]]:
    """Removals that leave every machine its protected share of rows, the least odd; and the machines that needed it."""
    rows_E, removed_E, spared = rows.rows_E, removed_E.copy(), list[str]()
    count_M = np.bincount(rows.machine_E, rows_E, len(rows.machines))
    gone_M = np.bincount(rows.machine_E[removed_E], rows_E[removed_E], len(rows.machines))
    for machine in np.flatnonzero(gone_M > (1 - min_kept) * count_M).tolist():
        mine = np.flatnonzero(removed_E & (rows.machine_E == machine))
        worst = mine[np.argsort(-np.nan_to_num(evidence_E[mine], nan=-np.inf), kind="stable")]
        removed_E[worst[np.cumsum(rows_E[worst]) > (1 - min_kept) * count_M[machine]]] = False
        spared.append(rows.machines[machine])
    return removed_E, spared


def odd_machines(rows: Selection, vectors: Vectors, kept_E: BoolN) -> Iterable[tuple[str, float]]:
    """Machines whose normal lies ODD_MACHINE times as far from that of their peers as a typical one's, and how far.

    Such a machine may have been ill from its first row on. The comparison is per condition, after each machine's own
    level is taken out, and a machine must be odd in most of its conditions; fewer than MIN_PEERS machines tell nothing.
    """
    ratios: dict[int, list[float]] = {}
    machine_V, kept_V = rows.machine_E[vectors.episode_V], kept_E[vectors.episode_V]
    for condition in range(len(vectors.conditions)):
        of_condition = kept_V & (vectors.condition_V == condition)
        machines = np.unique(machine_V[of_condition])
        if len(machines) < MIN_PEERS:
            continue
        normals = [np.median(vectors.mean_VG[of_condition & (machine_V == code)], axis=0) for code in machines]
        shape_MG = np.stack(normals) - np.median(normals, axis=1, keepdims=True)
        away_MG = np.abs(shape_MG - np.median(shape_MG, axis=0))
        away_M = (away_MG / np.maximum(np.median(away_MG, axis=0), MIN_SCALE)).mean(axis=1)
        for code, ratio in zip(machines, away_M / np.median(away_M), strict=True):
            ratios.setdefault(int(code), []).append(float(ratio))
    found = ((code, float(np.median(values))) for code, values in sorted(ratios.items()))
    return [(rows.machines[code], ratio) for code, ratio in found if ratio > ODD_MACHINE]


def contaminated_share(evidence_E: FloatN, rows_E: IntN, removed_E: BoolN) -> float:
    """Estimated share of contaminated rows: what stands far above the healthy bulk beyond what stands far below it.

    Far is FAR times the bulk's own half width on that side, without what was removed; at least what was removed, for
    its neighbours give some of that away.
    """
    known_E = np.isfinite(evidence_E)
    bulk = evidence_E[known_E & ~removed_E]
    if not len(bulk):
        return 0.0
    low, middle, high = np.percentile(bulk, [16.0, 50.0, 84.0])
    value, weight = evidence_E[known_E], rows_E[known_E].astype(np.float64)
    excess = weight[value > middle + FAR * (high - middle)].sum() - weight[value < middle - FAR * (middle - low)].sum()
    return round(max(float(excess / weight.sum()), float(rows_E[removed_E].sum() / rows_E.sum())), 6)


def _share(rows: Selection, removed_E: BoolN) -> float:
    return round(float(rows.rows_E[removed_E].sum() / max(1, len(rows))), 6)
