"""What a source's spectra hold, gathered file by file in one pass: rows, machines, spans, steps, energies, oddities.

Memory does not grow with the rows: it is one table, and per machine its hours and the distribution of its steps.

Shape legend: N rows of a table, n rows of one machine in it, F bins, H hours, S classes of steps, K failures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.facts import spectrum_facts
from pipeline.landing.plausible import Energies
from pipeline.schema import MICROSECONDS_PER_HOUR, FloatNF, IntN, codes_and_names, spectra_view, times_us

PER_DECADE = 40  # classes of steps: 6 % wide
STEP_DECADES = (-6, 9)  # seconds: a microsecond to thirty years
LOOSE_CHUNKS = 64  # of a machine's hours, before they are joined
Counts = npt.NDArray[np.int64]


@dataclass
class FileFacts:
    """Of one file."""

    name: str
    rows: int = 0
    whole: bool = False  # read to its end without an error
    nonfinite: int = 0  # rows with a bin that is NaN or infinite
    negative: int = 0  # rows with a bin below zero
    flat: int = 0  # rows whose bins are all the same
    unordered: int = 0  # rows earlier than the row of their machine before
    repeated: int = 0  # rows at the same time as the row of their machine before
    newest_us: int | None = None


class StepCounts:
    """The times from row to row, counted in classes of equal ratio; of each class the last one is kept.

    >>> steps = StepCounts()
    >>> steps.add(np.array([10.0, 10.0, 3600.0]))
    >>> steps.median
    10.0
    """

    def __init__(self) -> None:
        classes = (STEP_DECADES[1] - STEP_DECADES[0]) * PER_DECADE
        self.counts_S, self.last_S = np.zeros(classes, np.int64), np.zeros(classes)

    def add(self, seconds_n: npt.NDArray[np.float64]) -> None:
        """Count steps; all are above 0."""
        places_n = np.floor((np.log10(seconds_n) - STEP_DECADES[0]) * PER_DECADE).astype(np.int64)
        places_n = np.clip(places_n, 0, len(self.counts_S) - 1)
        self.counts_S += np.bincount(places_n, minlength=len(self.counts_S))
        self.last_S[places_n] = seconds_n

    @property
    def median(self) -> float | None:
        """The median step in seconds, to 6 %; None where there is none."""
        total = int(self.counts_S.sum())
        if not total:
            return None
        return float(self.last_S[np.searchsorted(np.cumsum(self.counts_S), (total + 1) // 2)])


@dataclass
class MachineFacts:
    """Of one machine, over all files."""

    rows: int = 0
    first_us: int = 0
    last_us: int = 0
    before_failures_K: Counts = field(default_factory=lambda: np.zeros(0, np.int64))  # rows in each horizon
    steps: StepCounts = field(default_factory=lambda: StepCounts())
    _hours: list[IntN] = field(default_factory=list)

    @property
    def hours_H(self) -> IntN:
        """Hours since 1970 in which the machine has rows, ascending."""
        if len(self._hours) > 1:
            self._hours = [np.unique(np.concatenate(self._hours))]
        return self._hours[0] if self._hours else np.zeros(0, np.int64)

    def add(self, time_us_n: IntN, windows_K2: IntN | None) -> None:
        """Take note of rows at these times, ascending."""
        first, last = int(time_us_n[0]), int(time_us_n[-1])
        steps_n = np.diff(time_us_n)
        if self.rows and first > self.last_us:
            steps_n = np.r_[first - self.last_us, steps_n]
        self.steps.add(steps_n[steps_n > 0] / 1e6)
        self.first_us = min(first, self.first_us) if self.rows else first
        self.last_us = max(last, self.last_us) if self.rows else last
        self.rows += len(time_us_n)
        self._hours.append(np.unique(time_us_n // MICROSECONDS_PER_HOUR))
        if len(self._hours) > LOOSE_CHUNKS:
            _ = self.hours_H
        if windows_K2 is not None:
            if not len(self.before_failures_K):
                self.before_failures_K = np.zeros(len(windows_K2), np.int64)
            self.before_failures_K += np.searchsorted(time_us_n, windows_K2[:, 1], "right")
            self.before_failures_K -= np.searchsorted(time_us_n, windows_K2[:, 0], "left")


@dataclass
class Survey:
    """Of all files that could be read."""

    windows: Mapping[str, IntN] = field(default_factory=dict)  # machine: its failures' horizons (K, 2), microseconds
    files: list[FileFacts] = field(default_factory=list)
    machines: dict[str, MachineFacts] = field(default_factory=dict)
    energies: Energies = field(default_factory=Energies)
    bins: int = 0  # of a row
    by_axis: bool = False  # a row holds one axis: there are several at one time

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    def add_file(self, name: str, tables: Iterable[pa.Table]) -> None:
        """Read one file, as tables of the contract.

        Raises:
            ContractError: whatever reading raises; rows before it are counted.
        """
        facts = FileFacts(name)
        self.files.append(facts)
        for table in tables:
            if table.num_rows:
                self._add_table(facts, table)
        facts.whole = True

    def _add_table(self, facts: FileFacts, table: pa.Table) -> None:
        machine_N, names = codes_and_names(table["machine_id"])
        time_us_N = times_us(table["timestamp"])
        self.bins = table.schema.field("spectrum").type.list_size
        spectra_NF: FloatNF = spectra_view(table["spectrum"], self.bins, facts.name)
        found: dict[str, npt.NDArray[Any]] = {**spectrum_facts(spectra_NF)}
        self.by_axis |= "axis" in table.column_names
        facts.rows += len(machine_N)
        facts.nonfinite += int((found["nonfinite"] > 0).sum())
        facts.negative += int((found["negative"] > 0).sum())
        facts.flat += int((found["relative_range"] == 0).sum())
        facts.newest_us = max(int(time_us_N.max()), facts.newest_us or 0)
        self.energies.add(facts.name, table)
        order_N = np.argsort(machine_N, kind="stable")
        bounds = np.searchsorted(machine_N[order_N], np.arange(len(names) + 1))
        for code, name in enumerate(names):
            rows_n = order_N[bounds[code] : bounds[code + 1]]
            if not len(rows_n):
                continue
            steps_n = np.diff(time_us_N[rows_n])
            facts.unordered += int((steps_n < 0).sum())
            facts.repeated += 0 if self.by_axis else int((steps_n == 0).sum())
            machine = self.machines.setdefault(name, MachineFacts())
            machine.add(np.sort(time_us_N[rows_n]), self.windows.get(name))
