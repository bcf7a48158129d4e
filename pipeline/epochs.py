"""Baseline epochs: a repair, a moved sensor, new firmware or a change of the fleet or a group starts a new one.

The same function serves the split and a release in service, so a row has the same epoch number in both.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.moments import microseconds
from pipeline.schema import IntN, Tag, times_us

EPOCH_TAGS = (Tag.REPAIR, Tag.SENSOR, Tag.FIRMWARE)
NO_STARTS = np.empty(0, np.int64)


@dataclass(frozen=True)
class EpochStarts:
    """Sorted starts (microseconds since 1970) of epochs 1, 2, ... per machine; `fleet` holds those of every machine.

    >>> starts = EpochStarts({"pump": np.array([100, 200])})
    >>> starts.of_rows(np.array([0, 0, 0, 1]), np.array([99, 100, 500, 500]), ["pump", "fan"])
    array([0, 1, 2, 0], dtype=int32)
    """

    machines: Mapping[str, IntN]
    fleet: IntN = field(default_factory=lambda: NO_STARTS)

    @classmethod
    def of_log(
        cls,
        maintenance: pa.Table,
        changed_at: dt.datetime | None = None,
        changed_machines: Sequence[str] | None = None,
    ) -> EpochStarts:
        """Starts from a log (the end of each repair, sensor or firmware entry) and a change of machines.

        Args:
            maintenance: MAINTENANCE_SCHEMA.
            changed_at: `split.changed_at`; None: nothing changed.
            changed_machines: whom the change gives a new epoch; None: every machine, known or not.
        """
        fleet, ends = NO_STARTS, dict[str, list[int]]()
        if changed_at is not None and changed_machines is None:
            fleet = np.array([microseconds(changed_at)], np.int64)
        elif changed_at is not None:
            ends = {machine: [microseconds(changed_at)] for machine in changed_machines or ()}
        names, tags = maintenance["machine_id"].to_pylist(), maintenance["tag"].to_pylist()
        for machine, tag, end in zip(names, tags, times_us(maintenance["end"]).tolist(), strict=True):
            if tag in EPOCH_TAGS:
                ends.setdefault(str(machine), []).append(end)
        machines = {machine: np.unique(np.array(ends[machine], np.int64)) for machine in sorted(ends)}
        return cls(machines, fleet)

    def of_machine(self, machine: str) -> IntN:
        """The sorted starts of one machine, the fleet's among them."""
        return np.union1d(self.machines.get(machine, NO_STARTS), self.fleet)

    def of_rows(
        self, machine_N: npt.NDArray[np.integer], time_us_N: IntN, machines: Sequence[str]
    ) -> npt.NDArray[np.int32]:
        """Epoch number of each row; `machine_N` are codes into `machines`."""
        epoch_N = np.zeros(len(machine_N), np.int32)
        order = np.argsort(machine_N, kind="stable")
        bounds = np.searchsorted(machine_N[order], np.arange(len(machines) + 1))
        for code, machine in enumerate(machines):
            starts = self.of_machine(machine)
            if len(starts):
                rows = order[bounds[code] : bounds[code + 1]]
                epoch_N[rows] = np.searchsorted(starts, time_us_N[rows], side="right")
        return epoch_N

    def extended_by(self, later: EpochStarts, after_us: int) -> EpochStarts:
        """These starts and those of a later log that lie after `after_us` (the newest row of a build).

        An entry that somebody adds to the past afterwards must not shift the numbers that a release knows.
        """
        machines = {}
        for machine in sorted({*self.machines, *later.machines}):
            added = later.machines.get(machine, NO_STARTS)
            machines[machine] = np.union1d(self.machines.get(machine, NO_STARTS), added[added > after_us])
        return EpochStarts(machines, np.union1d(self.fleet, later.fleet[later.fleet > after_us]))

    def to_json(self) -> dict[str, Any]:
        """Plain lists, for a manifest."""
        machines = {name: starts.tolist() for name, starts in sorted(self.machines.items())}
        return {"machines": machines, "fleet": self.fleet.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EpochStarts:
        """The inverse of `to_json`."""
        machines = {str(name): np.array(starts, np.int64) for name, starts in values["machines"].items()}
        return cls(machines, np.array(values["fleet"], np.int64))


def epoch_of_rows(
    machine_N: npt.NDArray[np.integer],
    time_us_N: IntN,
    machines: Sequence[str],
    maintenance: pa.Table,
    changed_at: dt.datetime | None = None,
    changed_machines: Sequence[str] | None = None,
) -> npt.NDArray[np.int32]:
    """Epoch number of each row (N,) int32 from a maintenance log, `split.changed_at` and `split.changed_machines`."""
    return EpochStarts.of_log(maintenance, changed_at, changed_machines).of_rows(machine_N, time_us_N, machines)
