"""Tail probabilities: how often a healthy row scores as high.

The conformal rank (1 + #{calibration >= s}) / (n + 1) of Bates et al. (arXiv 2104.08279, eq. 3), from a table that
keeps the highest scores whole and thins the rest, so that it stays small beside 18 million calibration rows. Beyond the
tenth largest score a Pareto tail goes on, where one fits.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from pipeline.errors import ContractError
from pipeline.pareto import ParetoTail
from pipeline.schema import Baseline, FloatN

KEPT_WHOLE = 20_000
THINNED_TO = 4_000
NO_QUANTILES: FloatN = np.empty(0)
SCALES = ("fleet_from", "shrunk_from", "own_to", "level")


@dataclass(frozen=True)
class ScoreScale:
    """What brings scores to one scale, whichever baseline described their rows; empty: they stay as they are.

    `fleet_from`, `shrunk_from` and `own_to` are quantiles of the same rows' scores against the fleet's baseline,
    against their machine's as if it had just begun a new epoch, and against their own: a row without a baseline of its
    own is scored against a wider one, and its score brought to the scale of the others (quantile matching; beyond the
    last quantile in proportion). Then scores are divided by `level` (R,), which says how high healthy rows score that
    each row of the baseline table describes (see `levels`).
    """

    fleet_from: FloatN = field(default_factory=lambda: NO_QUANTILES)
    shrunk_from: FloatN = field(default_factory=lambda: NO_QUANTILES)
    own_to: FloatN = field(default_factory=lambda: NO_QUANTILES)
    level: FloatN = field(default_factory=lambda: NO_QUANTILES)

    def comparable(
        self, scores_N: FloatN, baseline_N: npt.NDArray[np.integer], code_N: npt.NDArray[np.integer]
    ) -> FloatN:
        """Comparable scores (N,).

        Args:
            scores_N: as the detector gives them.
            baseline_N: which `Baseline` described each row.
            code_N: which row of the baseline table.
        """
        comparable_N = np.array(scores_N, np.float64)
        for state, source in ((Baseline.FLEET, self.fleet_from), (Baseline.SHRUNK, self.shrunk_from)):
            rows = np.flatnonzero(baseline_N == state)
            comparable_N[rows] = match_quantiles(comparable_N[rows], source, self.own_to)
        return comparable_N / self.level[code_N] if len(self.level) else comparable_N


@dataclass(frozen=True)
class TailTable:
    """Comparable calibration scores and how many calibration rows score at least as high as each.

    Without a `tail` no probability is below 1 / (n + 1).

    >>> table = TailTable.of(np.arange(99.0))
    >>> table.probability(np.array([-1.0, 98.0, 1e9])).tolist()
    [1.0, 0.02, 0.01]
    """

    values: FloatN
    at_least: npt.NDArray[np.int64]
    rows: int
    scale: ScoreScale = field(default_factory=ScoreScale)
    tail: ParetoTail | None = None

    @classmethod
    def of(cls, scores_N: FloatN, scale: ScoreScale | None = None, tail: ParetoTail | None = None) -> TailTable:
        """Make the table.

        Raises:
            ContractError: no scores, or scores that are no finite numbers.
        """
        if not len(scores_N) or not np.isfinite(scores_N).all():
            got = f"{len(scores_N)} scores, {int((~np.isfinite(scores_N)).sum())} of them not finite"
            raise ContractError.of("calibration scores", got=got, expected="finite scores", where="calibration")
        ordered = np.sort(scores_N)
        rows = len(ordered)
        whole = max(0, rows - KEPT_WHOLE)
        index = np.unique(np.r_[np.linspace(0, whole, THINNED_TO).astype(np.int64), np.arange(whole, rows)])
        index = index[index < rows]
        values = ordered[index]
        at_least = rows - np.searchsorted(ordered, values, side="left")
        return cls(values, at_least, rows, scale or ScoreScale(), tail)

    def probability(self, comparable_N: FloatN) -> FloatN:
        """Tail probabilities (N,): above 0, at most 1, falling as scores rise; between kept scores the larger one.

        Infinite scores have the smallest.

        Raises:
            ContractError: a score that is no number.
        """
        if np.isnan(comparable_N).any():
            got = f"{int(np.isnan(comparable_N).sum())} that are no number"
            raise ContractError.of("scores", got=got, expected="numbers", where="the tail probabilities")
        position = np.searchsorted(self.values, comparable_N, side="left")
        # a score between two kept values: the rows at or above the lower one bound the count from above
        exact = (position < len(self.values)) & (
            self.values[np.minimum(position, len(self.values) - 1)] == comparable_N
        )
        inside_thinned = (~exact) & (position > 0) & (position <= max(0, len(self.values) - KEPT_WHOLE))
        at_least = np.r_[self.at_least, 0][np.where(inside_thinned, position - 1, position)]
        rank_N = np.asarray((1.0 + at_least) / (self.rows + 1.0))
        if self.tail is None:
            return rank_N
        beyond = np.flatnonzero(comparable_N > self.tail.start)
        rank_N[beyond] = self.tail.probability(comparable_N[beyond])
        return rank_N

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        tail = [] if self.tail is None else astuple(self.tail)
        arrays = {"values": self.values, "at_least": self.at_least, "rows": np.array([self.rows])}
        arrays["tail"] = np.array(tail, np.float64)
        save_file(arrays | {name: getattr(self.scale, name) for name in SCALES}, path)

    @classmethod
    def load(cls, path: Path) -> TailTable:
        """The inverse of `save`."""
        arrays = load_file(path)
        scale = ScoreScale(*(arrays[name] for name in SCALES))
        tail = ParetoTail(*arrays["tail"].tolist()) if len(arrays["tail"]) else None
        return cls(arrays["values"], arrays["at_least"], int(arrays["rows"][0]), scale, tail)


def match_quantiles(scores_N: FloatN, source: FloatN, target: FloatN) -> FloatN:
    """Scores moved so that the quantiles `source` become `target`; beyond the ends in proportion.

    >>> match_quantiles(np.array([1.0, 2.0, 6.0]), np.array([1.0, 3.0]), np.array([10.0, 20.0])).tolist()
    [10.0, 15.0, 40.0]
    """
    if not len(source):
        return scores_N
    above = scores_N * (target[-1] / source[-1] if source[-1] > 0 else 1.0)
    return np.where(scores_N > source[-1], above, np.interp(scores_N, source, target))
