"""Machine-days on small sets with one thing wrong: what is found, what is set aside, and what is the plant's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from pipeline.day_checks import day_facts, gain_steps, moved_bands, unit_factors
from pipeline.day_tally import MachineDays
from pipeline.params import ValidateParams
from pipeline.schema import VALIDATE_SCHEMA, dictionary_column, spectra_column, spectra_schema, time_column
from pipeline.store import read_table, write_table
from pipeline.validate import validate

BINS, DAYS, PER_DAY = 32, 10, 24
START = 1_735_689_600_000_000  # 2025-01-01
HOUR = 3_600_000_000
DAY = START // (24 * HOUR)


def fleet(machines: int, seed: int = 0) -> np.ndarray:
    """Spectra (machine, day, row, bin): peaks of its own per machine, and noise."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(4, BINS - 4, (machines, 3, 1))
    shape = np.log(0.05 + np.exp(-((np.arange(BINS) - places) ** 2) / 4).sum(axis=1))
    return np.exp(shape[:, None, None] + 0.2 * rng.normal(size=(machines, DAYS, PER_DAY, BINS))).astype(np.float32)


def written(folder, values: np.ndarray, drop=()) -> None:
    names = [f"m{code}" for code in range(len(values))]
    machine = np.repeat(np.arange(len(values)), PER_DAY)
    for day in range(values.shape[1]):
        times = START + (day * 24 + np.tile(np.arange(PER_DAY), len(values))) * HOUR
        kept = np.array([(code, day) not in drop for code in machine.tolist()])
        columns = {
            "machine_id": dictionary_column(machine[kept], names),
            "timestamp": time_column(times[kept]),
            "spectrum": spectra_column(values[:, day].reshape(-1, BINS)[kept]),
        }
        write_table(folder / f"spectra/2025-01-{day + 1:02d}.parquet", pa.table(columns).cast(spectra_schema(BINS)))
    (folder / "fleet.yaml").write_text(f"bins: {BINS}\ninterval_seconds: 3600\n")


def checked(folder, **settings):
    result = validate(folder, folder / "status.parquet", ValidateParams(min_rows_per_machine=1, **settings))
    table = read_table(folder / "status.parquet", schema=VALIDATE_SCHEMA).to_pandas()
    found = result.days.to_pandas()
    return (
        result,
        table,
        {(m, d.day): f for m, d, f in zip(found.machine_id, found.day, found.findings, strict=True) if f},
    )


def test_a_quiet_fleet_is_quiet(tmp_path):
    written(tmp_path, fleet(4))
    result, _, found = checked(tmp_path)
    assert found == {}
    assert result.metrics["notes"] == []
    assert result.days.num_rows == 4 * DAYS
    assert set(result.days["expected_rows"].to_pylist()) == {24.0}
    assert result.days["usual_share"].to_pandas().between(0.8, 1.2).all()


def test_another_unit_is_quarantined_from_the_hour_it_begins(tmp_path):
    values = fleet(4)
    values[1, 6, 15:] *= 1000  # from 15:00 on the seventh day
    values[1, 7] *= 1000
    values[1, 8, :4] *= 1000
    written(tmp_path, values)
    result, table, found = checked(tmp_path)
    assert found == {("m1", 7): "unit_change", ("m1", 8): "unit_change", ("m1", 9): "unit_change"}
    aside = table[table.status != "ok"]
    assert set(aside.machine_id) == {"m1"}
    assert set(aside.reason) == {"unit_change"}
    assert aside.timestamp.min().isoformat() == "2025-01-07T15:00:00+00:00"
    assert aside.timestamp.max().isoformat() == "2025-01-09T03:00:00+00:00"
    assert len(aside) == 9 + 24 + 4
    assert result.metrics["quarantined"] == len(aside)
    assert result.metrics["by_reason"] == {"unit_change": 37}


def test_a_thousandth_and_reasons_that_were_there_join(tmp_path):
    values = fleet(3)
    values[2, 3] /= 1000
    values[2, 3, 5] = values[2, 3, 5, 0]  # flat
    written(tmp_path, values)
    _, table, found = checked(tmp_path)
    assert found == {("m2", 4): "unit_change"}
    assert table.reason.value_counts().to_dict() == {"": 3 * DAYS * 24 - 24, "unit_change": 23, "flat+unit_change": 1}
    assert set(table.status[table.reason != ""]) == {"quarantined"}


def test_a_day_on_which_all_machines_jump_is_the_plants(tmp_path):
    values = fleet(5)
    values[:, 4:6] *= 1000
    values[3, 8] *= 1000
    written(tmp_path, values)
    result, table, found = checked(tmp_path)
    assert sum(reason == "unit_change" for reason in found.values()) == 11
    assert set(table.machine_id[table.status != "ok"]) == {"m3"}
    assert (table.status != "ok").sum() == 24  # the day that was its own
    assert result.metrics["notes"] == [
        "On 2 days, 2025-01-05 to 2025-01-06, the plant changed: unit_change at 5 of 5 machines; no row is set aside.",
        "unit_change on 1 day of 1 machine: m3 2025-01-09.",
    ]


def test_a_step_of_gain_that_stays_is_a_warning(tmp_path):
    values = fleet(3)
    values[0, 5:] *= 1.8
    values[1, 5] *= 1.8  # one loud day is no step
    values[2, 5:, :, 3:9] *= 6  # some bins: a fault, no gain
    written(tmp_path, values)
    result, table, found = checked(tmp_path)
    assert found == {("m0", 6): "gain_step"}
    step = result.days.to_pandas().query("machine_id == 'm0' and gain_step != 1").gain_step
    assert step.tolist() == pytest.approx([1.8], rel=0.1)
    assert (table.status == "ok").all()


def test_moved_band_edges_are_a_warning(tmp_path):
    values = fleet(3)
    values[1, 4:6] = np.roll(values[1, 4:6], 3, axis=-1)
    values[2, 7] *= np.where(np.arange(BINS) % 7 == 0, 5, 1).astype(np.float32)  # new lines: a fault
    written(tmp_path, values)
    result, table, found = checked(tmp_path)
    assert found == {("m1", 5): "band_edges", ("m1", 6): "band_edges"}
    assert set(result.days.to_pandas().query("findings != ''").band_shift) == {3.0}
    assert (table.status == "ok").all()


def test_a_stretched_axis_is_found():
    usual = np.log(0.1 + np.exp(-((np.arange(64) - np.array([[12], [30], [50]])) ** 2) / 6).sum(axis=0))
    squeezed = np.interp(np.arange(64) / 0.8, np.arange(64), usual)
    logs = np.stack([usual] * 5 + [squeezed]) + 0.02 * np.random.default_rng(0).normal(size=(6, 64))
    _, stretch = moved_bands(logs.astype(np.float32), np.ones(6, bool))
    assert stretch[:5].tolist() == [1] * 5
    assert stretch[5] == pytest.approx(0.8, rel=0.03)


def test_missing_rows_and_days_are_warnings(tmp_path):
    written(tmp_path, fleet(3), drop={(1, 4), (1, 5)})
    table = read_table(tmp_path / "spectra/2025-01-03.parquet")
    write_table(tmp_path / "spectra/2025-01-03.parquet", table.slice(0, 24 + 9).cast(spectra_schema(BINS)))
    result, _, found = checked(tmp_path)
    assert found == {("m1", 3): "missing", ("m1", 5): "missing", ("m1", 6): "missing", ("m2", 3): "missing"}
    days = result.days.to_pandas().query("machine_id == 'm1'").set_index("day")
    assert days.rows.tolist() == [24, 24, 9, 24, 0, 0, 24, 24, 24, 24]
    assert days.missing_share.iloc[2] == pytest.approx(15 / 24)


def test_off_is_a_warning_and_no_change_of_unit(tmp_path):
    values = fleet(3)
    values[0, 3] = 1e-3 * np.random.default_rng(1).lognormal(sigma=0.1, size=(PER_DAY, BINS))
    written(tmp_path, values)
    _, table, found = checked(tmp_path)
    assert found == {("m0", 4): "off"}
    assert (table.status == "ok").all()


def test_one_machine_alone_is_not_the_plant(tmp_path):
    values = fleet(1)
    values[0, 2] *= 1000
    written(tmp_path, values)
    result, _, _ = checked(tmp_path)
    assert result.metrics["by_reason"] == {"unit_change": 24}


def test_a_machine_with_its_unit_changed_for_half_of_its_days():
    logs = np.tile(np.linspace(0, 2, 8, dtype=np.float32), (6, 1))
    logs[3:] += np.log(1000)
    energies = np.repeat(np.r_[[1.0] * 3, [1000.0] * 3], 3).reshape(6, 3)
    assert unit_factors(logs, energies, 1.0).tolist() == [1, 1, 1, 1000, 1000, 1000]


def test_few_days_say_nothing():
    logs = np.zeros((1, 8), np.float32)
    assert gain_steps(logs, np.ones(1, bool), ValidateParams()).tolist() == [1.0]
    assert moved_bands(logs, np.ones(1, bool))[0].tolist() == [0.0]
    nothing = MachineDays([], *(np.empty(0, kind) for kind in (np.int32, *[np.int64] * 4)), *np.empty((2, 0, 3)))
    assert len(dataclasses.astuple(day_facts(nothing, 10.0, ValidateParams()))[0]) == 0
    one_day = DAY + np.zeros(1, np.int64)
    energy = np.full((1, 3), np.nan)
    days = MachineDays(["m"], np.zeros(1, np.int32), one_day, one_day, one_day, one_day, energy, np.empty((1, 0)))
    facts = day_facts(days, None, ValidateParams())
    assert np.isnan([facts.usual_energy[0], facts.missing_share[0]]).all()
