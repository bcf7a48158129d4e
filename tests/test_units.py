"""units: exact constants, both ways, and a guess at what is off by a thousand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import ContractError
from pipeline.units import UNITS, conversion, likely_unit


@pytest.mark.parametrize(
    ("old", "new", "value", "expected"),
    [
        ("g", "m/s2", 1, 9.80665),
        ("ft/s2", "g", 32.174049, 1),
        ("in/s", "mm/s", 1, 25.4),
        ("ips", "m/s", 10, 0.254),
        ("mil", "um", 1, 25.4),
        ("°C", "degF", -40, -40),
        ("degC", "K", 0, 273.15),
        ("degF", "K", 32, 273.15),
        ("psi", "kPa", 1, 6.894757),
        ("bar", "psi", 1, 14.503774),
    ],
)
def test_known_values(old: str, new: str, value: float, expected: float) -> None:
    found = conversion(old, new, "test").apply(np.array([[value]], np.float32))
    assert found.item() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("quantity", UNITS)
def test_there_and_back(quantity: str) -> None:
    for old in UNITS[quantity]:
        for new in UNITS[quantity]:
            there, back = conversion(old, new, "test"), conversion(new, old, "test")
            assert back.scale * there.scale == pytest.approx(1)
            assert back.scale * there.offset + back.offset == pytest.approx(0, abs=1e-9)


def test_the_same_unit_changes_no_bit_even_where_it_is_unknown() -> None:
    values = np.array([[1.1, np.nan]], np.float32)
    assert conversion("furlong", "furlong", "test").apply(values) is values


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("furlong", "m", "'furlong', expected acceleration: g, mg"), ("g", "bar", "g .acceleration., expected a unit of")],
)
def test_what_cannot_be_converted_is_named(old: str, new: str, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        conversion(old, new, "test")


def test_the_likely_unit() -> None:
    assert likely_unit("g", 1000) == "mg"
    assert likely_unit("um", 1 / 1000) == "mm"
    assert likely_unit("furlong", 1000) is None
