"""The thresholds page: what each threshold rests on, and which one is extrapolated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from report_data import calibration, full_data

from pipeline.report_page.blocks import Table
from pipeline.report_page.thresholds import thresholds_section

FIT = {
    "tail": {"start": 4.25, "at_start": 0.0002, "shape": 0.0, "scale": 0.5},
    "kind": "pareto",
    "excesses": 2000,
    "independent": 312.4,
    "shape": -0.04,
    "p_value": 0.42,
    "reason": "",
}


def basis_table(page_basis: str, fit: dict[str, Any]) -> Table:
    """The table of a report whose low tier is counted and whose page tier stands on `page_basis`."""
    data, calibrated = full_data(), calibration()
    tiers = calibrated["detectors"][data.detector]
    rests = {"rows_needed": 2000, "rows_above": 25, "machine_days_above": 19, "basis": "rows"}
    tiers["low"] |= rests
    tiers["page"] |= rests | {"rows_needed": 20_000, "rows_above": 3, "machine_days_above": 2, "basis": page_basis}
    tiers |= {"rows": 5000, "tail": fit}
    blocks = thresholds_section(replace(data, calibration=calibrated)).blocks
    found = [block for block in blocks if isinstance(block, Table) and "stand on" in block.caption]
    assert len(found) == 1
    return found[0]


def test_an_extrapolated_threshold_says_so_and_what_it_rests_on() -> None:
    table = basis_table("Pareto tail", FIT)
    cells = [[cell.text for cell in row] for row in table.rows]
    assert cells[0] == ["Low", "2,000", "5,000", "25", "19", "counted rows"]
    assert cells[1] == ["Page", "20,000", "5,000", "3", "2", "extrapolated: Pareto tail"]
    assert [row[-1].note for row in table.rows] == [None, 1]
    assert "generalised Pareto tail of the 2,000 largest" in table.footnotes[0]
    assert "312 independent ones, shape -0.04 (held at 0" in table.footnotes[0]
    assert "in 42 % of the cases" in table.footnotes[0]


@pytest.mark.parametrize("reason", ["No generalised Pareto or exponential tail fits the largest scores.", ""])
def test_where_no_tail_holds_nothing_is_called_extrapolated(reason: str) -> None:
    table = basis_table("largest scores", FIT | {"tail": None, "kind": "none", "reason": reason})
    assert table.rows[1][-1].text == "largest scores"
    assert (reason or "No tail was fitted.") in table.footnotes[0]


def test_a_calibration_without_these_figures_has_no_such_table() -> None:
    blocks = thresholds_section(full_data()).blocks
    assert not [block for block in blocks if isinstance(block, Table) and "stand on" in block.caption]
