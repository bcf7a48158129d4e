"""Units of measurement, SI and imperial: exact constants, and the straight line from one unit to another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.errors import ContractError
from pipeline.schema import FloatNF

# quantity: {unit: (scale, offset)} to the quantity's SI unit. Exact by definition: g (ISO 80000-3), inch and pound
# (1959 agreement: 0.0254 m, 0.45359237 kg), degrees Fahrenheit (459.67 + F) * 5 / 9 K.
PSI = 0.45359237 * 9.80665 / 0.0254**2
UNITS: dict[str, dict[str, tuple[float, float]]] = {
    "acceleration": {
        "g": (9.80665, 0.0),
        "mg": (9.80665e-3, 0.0),
        "m/s2": (1.0, 0.0),
        "mm/s2": (1e-3, 0.0),
        "ft/s2": (0.3048, 0.0),
        "in/s2": (0.0254, 0.0),
    },
    "velocity": {
        "m/s": (1.0, 0.0),
        "cm/s": (1e-2, 0.0),
        "mm/s": (1e-3, 0.0),
        "um/s": (1e-6, 0.0),
        "in/s": (0.0254, 0.0),
        "ft/s": (0.3048, 0.0),
    },
    "displacement": {
        "m": (1.0, 0.0),
        "mm": (1e-3, 0.0),
        "um": (1e-6, 0.0),
        "nm": (1e-9, 0.0),
        "in": (0.0254, 0.0),
        "mil": (0.0254e-3, 0.0),
    },
    "temperature": {
        "K": (1.0, 0.0),
        "degC": (1.0, 273.15),
        "degF": (5 / 9, 459.67 * 5 / 9),
    },
    "pressure": {
        "Pa": (1.0, 0.0),
        "kPa": (1e3, 0.0),
        "MPa": (1e6, 0.0),
        "mbar": (1e2, 0.0),
        "bar": (1e5, 0.0),
        "psi": (PSI, 0.0),
    },
}
SPELLINGS = {"m/s²": "m/s2", "m/s^2": "m/s2", "ips": "in/s", "µm": "um", "μm": "um", "µm/s": "um/s", "°C": "degC"}
SPELLINGS |= {"°F": "degF", "mils": "mil", "ft/s²": "ft/s2", "ft/s^2": "ft/s2"}
# what a sensor's numbers most often are when they are off by a thousand from those beside them
THOUSAND_TIMES = {"g": "mg", "m/s2": "mm/s2", "mm/s": "um/s", "m/s": "mm/s", "um": "nm", "mm": "um", "m": "mm"}
THOUSAND_TIMES |= {"kPa": "Pa", "MPa": "kPa", "bar": "mbar"}


@dataclass(frozen=True)
class Conversion:
    """value in the new unit = scale * value in the old one + offset."""

    scale: float
    offset: float

    def apply(self, values_NF: FloatNF) -> FloatNF:
        """The values in the new unit."""
        if self.scale == 1.0 and self.offset == 0.0:
            return values_NF
        with np.errstate(over="ignore"):  # beyond float32: infinite, which validation sets aside
            return values_NF * np.float32(self.scale) + np.float32(self.offset)


def conversion(old: str, new: str, where: object) -> Conversion:
    """From one unit to another of the same quantity.

    Raises:
        ContractError: a unit that is not known, or units of different quantities.

    >>> conversion("degF", "degC", "example").apply(np.float32([[32, 212]])).round(3).tolist()
    [[0.0, 100.0]]
    """
    if SPELLINGS.get(old, old) == SPELLINGS.get(new, new):
        return Conversion(1.0, 0.0)
    first, second = quantity_of(old, where), quantity_of(new, where)
    if first != second:
        raise ContractError.of("unit", got=f"{old} ({first})", expected=f"a unit of {second}, as {new}", where=where)
    scale, offset = UNITS[first][SPELLINGS.get(old, old)]
    to_scale, to_offset = UNITS[first][SPELLINGS.get(new, new)]
    return Conversion(scale / to_scale, (offset - to_offset) / to_scale)


def quantity_of(unit: str, where: object) -> str:
    """What a unit measures.

    Raises:
        ContractError: a unit that is not known.

    >>> quantity_of("mm/s", "example")
    'velocity'
    """
    known = SPELLINGS.get(unit, unit)
    for quantity, units in UNITS.items():
        if known in units:
            return quantity
    names = "; ".join(f"{quantity}: {', '.join(units)}" for quantity, units in UNITS.items())
    raise ContractError.of("unit", got=repr(unit), expected=names, where=where)


def likely_unit(unit: str, factor: float) -> str | None:
    """The unit in which numbers seem to be that are `factor` times as large as those in `unit` beside them.

    >>> likely_unit("mm/s", 1 / 1000), likely_unit("g", 980.0)
    ('m/s', 'mg')
    """
    known = SPELLINGS.get(unit, unit)
    if factor > 1:
        return THOUSAND_TIMES.get(known)
    return next((large for large, small in THOUSAND_TIMES.items() if small == known), None)
