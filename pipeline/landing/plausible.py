"""Numbers that are a thousand times those beside them: a file, or a machine, in another unit.

Shape legend: N rows, F bins.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.schema import codes_and_names, spectra_view
from pipeline.units import likely_unit

FACTOR = 300.0  # beyond this a median energy is that of another unit: a fault or a stop changes it by less
LOOKED_AT = 512  # rows of a table


@dataclass
class Energies:
    """Median energies per file and machine, gathered table by table."""

    files: list[str] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)

    def add(self, name: str, table: pa.Table) -> None:
        """Take a table of a file; some of its rows, spread evenly, are looked at."""
        step = max(1, -(-table.num_rows // LOOKED_AT))
        codes, names = codes_and_names(table["machine_id"].take(pa.array(np.arange(0, table.num_rows, step))))
        spectra_NF = spectra_view(table["spectrum"], table.schema.field("spectrum").type.list_size)[::step]
        with np.errstate(over="ignore", invalid="ignore"):
            energy_N = np.sqrt(np.einsum("nf,nf->n", spectra_NF, spectra_NF))
        usable = np.isfinite(energy_N) & (energy_N > 0)
        order = np.argsort(codes[usable], kind="stable")
        codes, energy_N = codes[usable][order], energy_N[usable][order]
        starts = np.flatnonzero(np.diff(codes, prepend=-1))
        for start, values in zip(starts, np.split(energy_N, starts[1:]), strict=True) if len(codes) else ():
            self.files.append(name)
            self.machines.append(names[codes[start]])
            self.medians.append(float(np.median(values)))

    def extend(self, other: Energies) -> None:
        """Take what another has gathered."""
        self.files += other.files
        self.machines += other.machines
        self.medians += other.medians

    def warnings(self, unit: str) -> list[str]:
        """Files whose numbers are a thousand times, or a thousandth of, those of the same machine in other files, and
        machines whose numbers are so beside the fleet's.

        >>> energies = Energies(["a", "b", "c"], ["m"] * 3, [1.0, 1100.0, 1.0])
        >>> energies.warnings("g")[0]
        'b: numbers are 1,100 times those of other files: they seem to be in mg, the others in g'
        """
        frame = pd.DataFrame({"file": self.files, "machine": self.machines, "energy": np.log10(self.medians)})
        frame = frame.groupby(["file", "machine"], as_index=False, sort=True).energy.median()
        within = _beside_the_others(frame, "file")
        found = [_said(file, 10**factor, "those of other files", unit) for file, factor in within.items()]
        sound = frame[~frame.file.isin(within)]
        fleet = sound.groupby("machine", as_index=False).energy.median().assign(all="")
        machines = _outliers(fleet.set_index("machine").energy)
        found += [_said(f"machine {name}", 10**factor, "those of the fleet", unit) for name, factor in machines.items()]
        return found


def _beside_the_others(frame: pd.DataFrame, key: str) -> dict[str, float]:
    """Files that are far from the others of the same machine, with the logarithm of the factor."""
    found: dict[str, list[float]] = {}
    for _, rows in frame.groupby("machine"):
        for name, factor in _outliers(rows.set_index(key).energy).items():
            found.setdefault(name, []).append(factor)
    return {name: float(np.median(factors)) for name, factors in sorted(found.items())}


def _outliers(energy: pd.Series) -> dict[str, float]:
    """Entries beyond the factor from the median of all, where that median is most entries' own."""
    if len(energy) < 3:
        return {}
    away = energy - energy.median()
    return {str(name): float(value) for name, value in away[away.abs() > np.log10(FACTOR)].items()}


def _said(name: str, factor: float, others: str, unit: str) -> str:
    likely = likely_unit(unit, factor)
    times = f"{factor:,.0f} times" if factor > 1 else f"1/{1 / factor:,.0f} of"
    guess = f": they seem to be in {likely}, the others in {unit}" if likely else ": in another unit?"
    return f"{name}: numbers are {times} {others}{guess}"
