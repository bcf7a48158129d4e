"""A day's table: rows by machine and time, the same whoever else is asked for, and no dirt that was not asked for."""

from __future__ import annotations

import numpy as np

from pipeline.params import DirtParams, SimulateParams
from pipeline.schema import spectra_view
from pipeline.simulation.days import Fleet, day_table
from pipeline.simulation.plan import plan_fleet

PARAMS = SimulateParams(machines=6, days=5, interval_seconds=900, bins=16, failures=2, seed=3)
DIRTY = PARAMS.model_copy(update={"dirt": DirtParams(duplicate=0.3, missing=0.2, unordered=0.3)})


def fleet(params: SimulateParams) -> Fleet:
    return Fleet(params, plan_fleet(params))


def test_any_machines_of_any_hours_are_the_same_rows() -> None:
    for params in (PARAMS, DIRTY):
        whole = day_table(fleet(params), range(6), 2, 2, 3)
        parts = [day_table(fleet(params), range(index, index + 1), 2, 2, 3) for index in range(6)]
        names = whole["machine_id"].cast("string")
        for index, part in enumerate(parts):
            mine = whole.filter(np.array(names) == f"machine-{index:03d}")
            assert mine["timestamp"].equals(part["timestamp"])
            assert np.array_equal(spectra_view(mine["spectrum"], 16), spectra_view(part["spectrum"], 16))


def test_a_piece_of_a_day_holds_its_rows_alone() -> None:
    clean = fleet(PARAMS)
    whole, early, late = (day_table(clean, range(6), 1, *ends) for ends in ((1, 2), (1, 1.5), (1.5, 2)))
    assert early.num_rows + late.num_rows == whole.num_rows == 6 * 96
    assert early["timestamp"].to_numpy().max() < late["timestamp"].to_numpy().min()
    assert day_table(clean, range(6), 1, 2, 2) is None


def test_each_row_has_its_own_memory() -> None:
    one = day_table(fleet(PARAMS), range(6), 0, 0, 1)
    spectra_NF = spectra_view(one["spectrum"], 16)
    assert len(np.unique(spectra_NF, axis=0)) == len(spectra_NF)


def test_dirt_does_not_touch_other_rows() -> None:
    clean, dirty = (day_table(fleet(params), range(6), 0, 0, 1) for params in (PARAMS, DIRTY))
    assert dirty.num_rows != clean.num_rows
    known = {row.tobytes() for row in spectra_view(clean["spectrum"], 16)}
    assert {row.tobytes() for row in spectra_view(dirty["spectrum"], 16)} < known
