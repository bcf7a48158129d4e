"""What is judged and what comes of it: rows with labels and scores, failures, outcomes of alerts, published figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.alerts import Episodes
from pipeline.counts import overdispersion_among
from pipeline.schema import MICROSECONDS_PER_DAY, FloatN, IntN

HEALTHY, FAULTY, UNKNOWN = 0, 1, -1


@dataclass(frozen=True)
class JudgedRows:
    """Rows of one role: machine codes, times, labels (0 healthy, 1 faulty, -1 unknown) and scores per detector (N,).

    `epoch` holds baseline epochs (see `pipeline.epochs`) where they are known.
    """

    machine: npt.NDArray[np.int32]
    time_us: IntN
    label: npt.NDArray[np.int8]
    scores: Mapping[str, FloatN]
    epoch: npt.NDArray[np.integer[Any]] | None = None

    def __len__(self) -> int:
        return len(self.machine)

    def machine_days(self, interval_us: int, among: npt.NDArray[np.bool_] | None = None) -> float:
        """Observed time in days: rows times the interval between them."""
        rows = len(self) if among is None else int(among.sum())
        return rows * interval_us / MICROSECONDS_PER_DAY


@dataclass(frozen=True)
class Event:
    """A failure to be judged: an alert that opens from `start_us` on, before `end_us`, catches it.

    From `grace_us` to `start_us` nothing is known: an alert that opens there is not false, and catches the failure only
    if it is still open at `start_us`; its lead time then counts from there.
    """

    failure_id: str
    machine: int
    start_us: int
    end_us: int
    grace_us: int
    failure_mode: str | None = None


@dataclass
class Outcome:
    """What alerts at one threshold come to."""

    caught: dict[str, tuple[int, float]] = field(default_factory=dict)  # failure: first alert, lead time in hours
    false_episodes: int = 0
    kinds: list[str] = field(default_factory=list)  # of each episode: caught | false | ignored
    by_chance: float | None = None
    episodes: Episodes | None = None

    def dispersion(self, machines: int) -> float:
        """Overdispersion of the false episodes of so many machines."""
        if self.episodes is None or not self.false_episodes:
            return 1.0
        false = np.array(self.kinds, object) == "false"
        return overdispersion_among(self.episodes.machine[false], self.episodes.weight()[false], machines)


@dataclass(frozen=True)
class Judgement:
    """Figures in the project's published form, and what the report draws."""

    figures: dict[str, Any]
    events: list[dict[str, Any]]
    episodes: list[dict[str, Any]]
    roc: list[dict[str, Any]]
    curves: list[dict[str, Any]] = field(default_factory=list)  # see `curve_rows`
    what_if: dict[str, Any] = field(default_factory=dict)  # see `what_if.grid`


def rounded(value: Any, digits: int = 6) -> float:
    """A figure as published."""
    return round(float(value), digits)
