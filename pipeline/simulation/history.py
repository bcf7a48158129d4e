"""What happens to the machines of a fleet: faults, works on them, and firmware; times are days since the fleet's start.

Shape legend: R instants, F frequency bins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pipeline.schema import BoolN, FloatN, Tag
from pipeline.simulation.growth import grown
from pipeline.simulation.machine import tilted


@dataclass(frozen=True)
class Fault:
    """A fault that grows from `onset` to `end`; one that fails the machine is followed by a repair."""

    machine: int
    mode: str
    onset: float
    end: float  # infinite: the machine was never well and never will be
    start: float  # amplitude at the onset
    peak: float  # and at the end
    law: str = "exponential"
    shape: float = 1.0  # of the law
    fails: bool = False  # else it goes as it came, and nobody knows
    logged: bool = False  # the log has its failure, under the right name

    def amplitude(self, days_R: FloatN) -> FloatN:
        """Amplitude (R,) over the healthy level; 0 outside of the fault."""
        active_R = (days_R >= self.onset) & (days_R < self.end)
        amplitude_R = np.zeros(days_R.shape)
        if active_R.any():
            share = (days_R[active_R] - self.onset) / (self.end - self.onset)
            amplitude_R[active_R] = grown(self.law, self.shape, self.start, self.peak, share)
        return amplitude_R


@dataclass(frozen=True)
class Work:
    """Something done to a machine while it stands still; afterwards its sensor hears it differently."""

    machine: int
    begin: float
    end: float
    tag: Tag  # repair, sensor or off
    told_of: int | None  # the machine under which the log has it; None: nowhere
    broke: float | None = None  # when the failure happened that it mends; the machine stands still from then on
    mode: str | None = None  # of that failure
    late: float = 0.0  # days by which the log's entries are late
    note: str | None = None
    gain: float = 1.0
    tilt: float = 0.0
    ripple: float = 0.0
    ripple_phase: float = 0.0
    swap: bool = False  # another bearing

    @property
    def stops(self) -> float:
        """When the machine stops for it."""
        return self.begin if self.broke is None else self.broke

    def response(self, bins: int) -> FloatN:
        """Factor of amplitude per bin (F,) from then on."""
        wave_F = np.cos(4 * np.pi * np.linspace(0, 1, bins) + self.ripple_phase)
        return np.asarray(tilted(self.gain, self.tilt, bins) * np.exp(self.ripple * wave_F))


@dataclass(frozen=True)
class History:
    """All that happens to one machine."""

    faults: tuple[Fault, ...] = ()
    works: tuple[Work, ...] = ()  # by their end
    firmware_day: float | None = None

    @cached_property
    def changes(self) -> FloatN:
        """Moments (sorted) at which its sound may change at once."""
        moments = {work.end for work in self.works} | {fault.onset for fault in self.faults}
        moments |= {fault.end for fault in self.faults}
        return np.array(sorted(moments | ({self.firmware_day} if self.firmware_day is not None else set())))

    def down(self, days_R: FloatN) -> BoolN:
        """Instants (R,) at which it stands still, broken or worked on."""
        down_R = np.zeros(days_R.shape, np.bool_)
        for work in self.works:
            down_R |= (days_R >= work.stops) & (days_R < work.end)
        return down_R

    def updated(self, days_R: FloatN) -> BoolN:
        """Instants (R,) at which its sensor has the new firmware."""
        return np.asarray(days_R >= (np.inf if self.firmware_day is None else self.firmware_day))


@dataclass(frozen=True)
class FleetHistory:
    """What happens to a fleet, and what its log gets wrong."""

    names: tuple[str, ...]
    faults: tuple[Fault, ...]  # by their end
    works: tuple[Work, ...] = ()  # by their end
    never_done: tuple[Work, ...] = ()  # the log has them, and the failures that they mended, by mistake
    firmware_day: float | None = None
    firmware: dict[int, bool] = field(default_factory=dict)  # machines that get it: whether the log says so
    mislabelled_share: float = 0.0  # of the planned machine-days: faulty, and the log knows nothing of it at that time

    @cached_property
    def of_machines(self) -> dict[int, History]:
        """Of each machine to which anything happens."""
        faults: dict[int, list[Fault]] = {}
        works: dict[int, list[Work]] = {}
        for fault in self.faults:
            faults.setdefault(fault.machine, []).append(fault)
        for work in self.works:
            works.setdefault(work.machine, []).append(work)
        return {
            machine: History(
                tuple(faults.get(machine, ())),
                tuple(works.get(machine, ())),
                self.firmware_day if machine in self.firmware else None,
            )
            for machine in sorted({*faults, *works, *self.firmware})
        }

    def of(self, machine: int) -> History:
        """Of one machine."""
        return self.of_machines.get(machine, NOTHING)


NOTHING = History()
