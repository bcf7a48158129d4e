"""The ensemble: what several detectors say of a row together, as a tail probability that means what it says.

Detectors are compared by how rarely a healthy row scores as high. The statistic of a row is minus the decimal logarithm
of its smallest tail probability (Tippett 1931), or of the m-th smallest: then m members must agree. The smallest of
several probabilities is small too often, and members agree more or less: instead of a correction for independent ones
the statistic is calibrated again. Its calibration rows get the members' probabilities from tables of other machines, as
a later row does.

Shape legend: N rows, M members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.schema import ENSEMBLE, FloatN
from pipeline.tails import TailTable


@dataclass(frozen=True)
class EnsembleRule:
    """Which detectors the ensemble hears, and how many of them must agree."""

    members: tuple[str, ...]
    agree: int = 1

    def statistic(self, probability: Mapping[str, FloatN]) -> FloatN:
        """Minus the decimal logarithm of the `agree`-th smallest tail probability (N,).

        >>> rule = EnsembleRule(("pca", "vae"), agree=2)
        >>> rule.statistic({"pca": np.array([0.1, 1e-4]), "vae": np.array([1.0, 1e-3])}).tolist()
        [-0.0, 3.0]
        """
        every_MN = np.stack([probability[name] for name in self.members])
        return np.asarray(-np.log10(np.partition(every_MN, self.agree - 1, axis=0)[self.agree - 1]))


@dataclass(frozen=True)
class TailTables:
    """The tail table of every detector, and where there is an ensemble its rule and the table of its statistic."""

    tables: Mapping[str, TailTable]
    rule: EnsembleRule | None = None
    ensemble: TailTable | None = field(default=None)

    @property
    def names(self) -> tuple[str, ...]:
        """Whatever has scores: the detectors, then the ensemble."""
        return (*self.tables, *((ENSEMBLE,) if self.ensemble is not None else ()))

    def members_that_decide(self, detector: str) -> tuple[str, ...]:
        """The detectors whose scores decide where `detector` does: itself, or the members of the ensemble.

        >>> tails = TailTables({}, EnsembleRule(("pca", "vae")))
        >>> tails.members_that_decide("ensemble"), tails.members_that_decide("vae")
        (('pca', 'vae'), ('vae',))
        """
        return (detector,) if detector != ENSEMBLE or self.rule is None else self.rule.members

    def table(self, name: str) -> TailTable:
        """The table of a detector, or of the ensemble."""
        if name == ENSEMBLE and self.ensemble is not None:
            return self.ensemble
        return self.tables[name]

    def comparable(
        self,
        raw: Mapping[str, FloatN],
        baseline_N: npt.NDArray[np.integer],
        code_N: npt.NDArray[np.integer],
    ) -> dict[str, FloatN]:
        """Comparable scores (N,) of the detectors that have raw ones, and of the ensemble where all its members do.

        Args:
            raw: scores as detectors give them.
            baseline_N: which `Baseline` each row was scored against.
            code_N: which row of the baseline table.
        """
        scores = self._scaled(raw, baseline_N, code_N)
        if self.rule is not None and self._joins(raw):
            members = {name: self.tables[name].probability(scores[name]) for name in self.rule.members}
            scores[ENSEMBLE] = self.rule.statistic(members)
        return scores

    def probabilities(self, comparable: Mapping[str, FloatN]) -> dict[str, FloatN]:
        """Tail probabilities (N,) of comparable scores."""
        return {name: self.table(name).probability(values_N) for name, values_N in comparable.items()}

    def judged(
        self,
        raw: Mapping[str, FloatN],
        baseline_N: npt.NDArray[np.integer],
        code_N: npt.NDArray[np.integer],
    ) -> tuple[dict[str, FloatN], dict[str, FloatN]]:
        """`comparable` scores and their `probabilities` (N,); the ensemble needs those of its members for both."""
        scores = self._scaled(raw, baseline_N, code_N)
        tails = self.probabilities(scores)
        if self.rule is not None and self._joins(raw):
            scores[ENSEMBLE] = self.rule.statistic({name: tails[name] for name in self.rule.members})
            tails[ENSEMBLE] = self.table(ENSEMBLE).probability(scores[ENSEMBLE])
        return scores, tails

    def _scaled(
        self,
        raw: Mapping[str, FloatN],
        baseline_N: npt.NDArray[np.integer],
        code_N: npt.NDArray[np.integer],
    ) -> dict[str, FloatN]:
        """Comparable scores of the detectors alone."""
        return {
            name: self.tables[name].scale.comparable(values_N, baseline_N, code_N) for name, values_N in raw.items()
        }

    def _joins(self, raw: Mapping[str, FloatN]) -> bool:
        """Whether all members of the ensemble have scores."""
        return self.rule is not None and self.ensemble is not None and set(self.rule.members) <= set(raw)

    def save(self, folder: Path) -> None:
        """Write a safetensors file per table into an existing folder."""
        for name in self.names:
            self.table(name).save(folder / f"{name}.safetensors")

    @classmethod
    def load(cls, folder: Path, detectors: Sequence[str], rule: EnsembleRule | None) -> TailTables:
        """The inverse of `save`."""
        tables = {name: TailTable.load(folder / f"{name}.safetensors") for name in detectors}
        return cls(tables, rule, None if rule is None else TailTable.load(folder / f"{ENSEMBLE}.safetensors"))


def load_tails(folder: Path, detectors: Sequence[str], calibration: Mapping[str, Any]) -> TailTables:
    """The tail tables in a folder; `calibration` as in calibration.json."""
    told = calibration["ensemble"]
    rule = None if told is None else EnsembleRule(tuple(told["members"]), int(told["agree"]))
    return TailTables.load(folder, detectors, rule)
