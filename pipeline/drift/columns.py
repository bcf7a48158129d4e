"""The columns in which a fleet's present is compared with its past: few, and relative to each machine's own baseline.

Sixty-four correlated bins would raise an alarm each; six bands, the shape, the reconstruction error in three bands, and
how rare the deciding detectors find a row say the same. At most 20 columns in all.

Shape legend: N rows, F bins, G = F + 1 features, C columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.detectors import Detector
from pipeline.ensemble import TailTables
from pipeline.measure import score_rows
from pipeline.params import explaining
from pipeline.rows import Codes, Rows
from pipeline.schema import (
    ENSEMBLE,
    MACHINE,
    TEXT,
    BoolN,
    FloatN,
    FloatNF,
    IntN,
    codes_and_names,
    dictionary_column,
    time_column,
    times_us,
)

BANDS, ERROR_BANDS, MOST_SCORES = 6, 3, 5
SPEEDS = ("speed_rpm", "speed")  # names of a numeric context column that tells the speed
CONDITION, SPEED, ALERT_RATE = "condition", "speed", "alert_rate"
CONTEXT = (CONDITION, SPEED)  # what a machine was asked to do: told, but no change of how it sounds
SHAPE = (*(f"band_{index + 1}" for index in range(BANDS)), "energy", "centroid", "top_share")
TABLE_KEYS = ("machine_id", "timestamp", "epoch", CONDITION)
SMALLEST = 1e-12


@dataclass(frozen=True)
class Judge:
    """What of a release describes rows: its detectors, tail tables, deciding detector (or `ensemble`) and low tier."""

    detectors: Mapping[str, Detector]
    tails: TailTables
    detector: str
    low: float

    @classmethod
    def of(
        cls, detectors: Mapping[str, Detector], tails: TailTables, calibration: Mapping[str, Any], detector: str
    ) -> Judge:
        """`calibration` as in calibration.json."""
        return cls(detectors, tails, detector, float(calibration["detectors"][detector]["low"]["threshold"]))

    @property
    def logged(self) -> tuple[str, ...]:
        """Whose scores are columns: the detector that decides; an ensemble and the first of its members."""
        if self.detector != ENSEMBLE or self.tails.rule is None:
            return (self.detector,)
        return (ENSEMBLE, *self.tails.rule.members)[:MOST_SCORES]

    @property
    def heard(self) -> tuple[str, ...]:
        """The detectors whose scores decide."""
        return self.tails.members_that_decide(self.detector)

    @property
    def explaining(self) -> Detector:
        """The detector whose shares of bins are told."""
        return self.detectors[explaining(self.heard)]


@dataclass(frozen=True)
class Heard:
    """N rows as compared quantities: codes of machines and conditions, times, and values (N, C) of the columns.

    `epoch_N` numbers the baseline epochs of each machine. `context` holds text per row that is told but not compared
    (firmware, say).
    """

    machines: tuple[str, ...]
    machine_N: Codes
    time_us_N: IntN
    epoch_N: Codes
    conditions: tuple[str, ...]
    condition_N: Codes
    columns: tuple[str, ...]
    values_NC: FloatNF
    context: Mapping[str, npt.NDArray[np.object_]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.machine_N)

    def take(self, index: Codes | BoolN) -> Heard:
        """Some of the rows."""
        return replace(
            self,
            machine_N=self.machine_N[index],
            time_us_N=self.time_us_N[index],
            epoch_N=self.epoch_N[index],
            condition_N=self.condition_N[index],
            values_NC=self.values_NC[index],
            context={name: values[index] for name, values in self.context.items()},
        )

    def column(self, name: str) -> FloatN:
        """Values (N,) of a column; of `condition` its codes."""
        if name == CONDITION:
            return np.asarray(self.condition_N)
        return np.asarray(self.values_NC[:, self.columns.index(name)])

    def shape(self) -> npt.NDArray[np.float64]:
        """Values (N, D) of the columns that say how a machine sounds."""
        return np.asarray(self.values_NC[:, [self.columns.index(name) for name in SHAPE]], np.float64)

    def in_codes_of(self, other: Heard) -> Heard:
        """The same rows with codes into another's machines and conditions, those that it does not know behind them."""
        machines, machine_N = _recoded(self.machines, self.machine_N, other.machines)
        conditions, condition_N = _recoded(self.conditions, self.condition_N, other.conditions)
        return replace(self, machines=machines, machine_N=machine_N, conditions=conditions, condition_N=condition_N)

    @property
    def compared(self) -> tuple[str, ...]:
        """Names of the compared columns: the condition where there is more than one, and the numbers."""
        return (*((CONDITION,) if len(np.unique(self.condition_N)) > 1 else ()), *self.columns)

    def table(self) -> pa.Table:
        """As a release keeps it."""
        columns = {
            "machine_id": dictionary_column(self.machine_N, list(self.machines), MACHINE),
            "timestamp": time_column(self.time_us_N),
            "epoch": pa.array(self.epoch_N.astype(np.int32)),
            CONDITION: dictionary_column(self.condition_N, list(self.conditions), TEXT),
        }
        numbers = {name: pa.array(self.values_NC[:, place]) for place, name in enumerate(self.columns)}
        return pa.table({**columns, **numbers})

    @classmethod
    def of_table(cls, table: pa.Table) -> Heard:
        """The inverse of `table`."""
        machine_N, machines = codes_and_names(table["machine_id"])
        condition_N, conditions = codes_and_names(table[CONDITION])
        names = tuple(name for name in table.column_names if name not in TABLE_KEYS)
        values = [table[name].to_numpy() for name in names]
        return cls(
            machines=tuple(machines),
            machine_N=machine_N,
            time_us_N=times_us(table["timestamp"]),
            epoch_N=table["epoch"].to_numpy(),
            conditions=tuple(conditions),
            condition_N=condition_N,
            columns=names,
            values_NC=np.column_stack(values) if values else np.empty((len(machine_N), 0), np.float32),
        )


def _recoded(names: Sequence[str], code_N: Codes, others: Sequence[str]) -> tuple[tuple[str, ...], Codes]:
    known = {name: place for place, name in enumerate(others)}
    for name in names:
        known.setdefault(name, len(known))
    places = np.array([known[name] for name in names], np.int32)
    return tuple(known), places[code_N] if len(places) else code_N


def describe(
    rows: Rows,
    judge: Judge,
    speed_N: FloatN | None = None,
    context: Mapping[str, npt.NDArray[np.object_]] | None = None,
) -> Heard:
    """The compared quantities of rows.

    Args:
        rows: finite spectra with their keys.
        judge: the release's part.
        speed_N: speed of each row, NaN where it is not known; None: nobody tells it.
        context: text per row, carried along.
    """
    every = list(judge.detectors.values())
    first = next((detector for detector in every if detector.matched), every[0])  # relative to each machine itself
    code_N = first.baselines.codes(rows.keys)
    relative_NG = first.relative(rows.spectra, code_N).cpu().numpy()
    columns = shape_columns(relative_NG, rows.spectra, first.baselines.location[:, :-1], code_N, first.baselines.log)
    shares_NF = judge.explaining.explain(rows.spectra, judge.explaining.baselines.codes(rows.keys))
    for index, (low, high) in enumerate(_bands(shares_NF.shape[1], ERROR_BANDS)):
        columns[f"error_{index + 1}"] = np.log(np.maximum(shares_NF[:, low:high].sum(axis=1), SMALLEST))
    scored = score_rows({name: judge.detectors[name] for name in judge.heard}, rows, judge.tails)
    for name in judge.logged:
        columns[f"log_score_{name}"] = np.log(np.maximum(scored.scores[name], SMALLEST))
    columns[ALERT_RATE] = (scored.scores[judge.detector] > judge.low).astype(np.float64)
    if speed_N is not None and np.isfinite(speed_N).any():
        columns[SPEED] = np.where(np.isfinite(speed_N), speed_N, np.nanmedian(speed_N))
    return Heard(
        machines=tuple(map(str, rows.machines)),
        machine_N=rows.machine,
        time_us_N=rows.time_us,
        epoch_N=rows.epoch,
        conditions=tuple(map(str, rows.conditions)),
        condition_N=rows.condition,
        columns=tuple(columns),
        values_NC=np.column_stack(list(columns.values())).astype(np.float32),
        context=context or {},
    )


def shape_columns(
    relative_NG: FloatNF, spectra_NF: FloatNF, location_RF: FloatNF, code_N: Codes, log: bool
) -> dict[str, FloatN]:
    """Relative level of six bands and of the energy; centroid and share of the top bin less those of the baseline."""
    bins = spectra_NF.shape[1]
    columns = {
        f"band_{index + 1}": relative_NG[:, low:high].mean(axis=1) for index, (low, high) in enumerate(_bands(bins))
    }
    usual_RF = np.exp(location_RF) if log else np.abs(location_RF)
    usual, now = _centroid_and_top(usual_RF), _centroid_and_top(np.abs(spectra_NF))
    columns["energy"] = relative_NG[:, -1]
    columns["centroid"], columns["top_share"] = (here - past[code_N] for here, past in zip(now, usual, strict=True))
    return columns


def _centroid_and_top(magnitudes_NF: FloatNF) -> tuple[FloatN, FloatN]:
    """Centroid (share of the spectrum's width) and share of the top bin."""
    bins = magnitudes_NF.shape[1]
    total_N = np.maximum(magnitudes_NF.sum(axis=1), 1e-30)
    return magnitudes_NF @ (np.arange(bins) / bins).astype(magnitudes_NF.dtype) / total_N, magnitudes_NF.max(
        axis=1
    ) / total_N


def _bands(bins: int, count: int = BANDS) -> list[tuple[int, int]]:
    """Bounds of `count` bands of bins; with fewer bins some bands share one.

    >>> _bands(12, 3), _bands(2, 3)
    ([(0, 4), (4, 8), (8, 12)], [(0, 1), (0, 1), (1, 2)])
    """
    edges = np.linspace(0, bins, count + 1)
    return [(min(int(low), bins - 1), max(int(low) + 1, int(high))) for low, high in pairwise(edges)]
