"""The survey of spectra: one history per machine, however its rows are cut into tables and files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ContractError
from pipeline.schema import MICROSECONDS_PER_HOUR
from pipeline.survey import MachineFacts, StepCounts, Survey


def test_rows_of_a_machine_in_many_tables_are_one_history() -> None:
    hour = MICROSECONDS_PER_HOUR
    machine, whole = MachineFacts(), MachineFacts()
    times = np.arange(2000) * hour
    windows = np.array([[10 * hour, 20 * hour], [5000 * hour, 6000 * hour]])
    for part in np.split(times, 200):
        machine.add(part, windows)
    whole.add(times, windows)
    assert machine.before_failures_K.tolist() == whole.before_failures_K.tolist() == [11, 0]
    assert machine.hours_H.tolist() == whole.hours_H.tolist() == list(range(2000))
    assert machine.steps.counts_S.tolist() == whole.steps.counts_S.tolist()
    assert (machine.rows, machine.first_us, machine.last_us) == (2000, 0, 1999 * hour)
    assert machine.steps.median == 3600
    assert MachineFacts().steps.median is None


def test_a_survey_counts_rows_before_an_error() -> None:
    def tables() -> Iterator[pa.Table]:
        spectrum = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(4, np.float32)), 2)
        yield pa.table(
            {"machine_id": ["a", "b"], "timestamp": pa.array([0, 0], pa.timestamp("us", "UTC")), "spectrum": spectrum}
        )
        raise ContractError("broken")

    survey = Survey()
    with pytest.raises(ContractError):
        survey.add_file("f", tables())
    assert (survey.rows, sorted(survey.machines), survey.files[0].flat) == (2, ["a", "b"], 2)


def test_the_median_step_is_that_of_most_rows() -> None:
    steps = StepCounts()
    steps.add(np.r_[np.full(90, 10.0), np.full(10, 86_400.0)])
    steps.add(np.zeros(0))
    assert steps.median == 10.0
    assert StepCounts().median is None
    steps.add(np.array([1e-30, 1e30]))  # beyond the classes: the outermost ones
    assert steps.counts_S.sum() == 102
