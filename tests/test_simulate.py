"""simulate: the same seed gives the same bytes, any stretch is the same fleet, faults rise from below the noise."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import simulated_machine as physics
from pipeline.errors import ParamsError
from pipeline.fault_plan import plan_faults
from pipeline.params import SimulateParams
from pipeline.schema import FloatNF, load_fleet_spec, spectra_view, times_us
from pipeline.simulate import simulate
from pipeline.store import day_files, read_table, sha256_folder

SMALL = SimulateParams(machines=4, days=6, interval_seconds=3600, bins=16, failures=2, seed=11)


def fleet(folder: Path) -> tuple[pa.Table, FloatNF]:
    table = pa.concat_tables([pq.read_table(path) for path in day_files(folder)]).unify_dictionaries()
    bins = table.schema.field("spectrum").type.list_size
    return table.drop_columns(["spectrum"]), spectra_view(table["spectrum"], bins)


def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 11), ("b", 11), ("c", 12)):
        simulate(SMALL.model_copy(update={"seed": seed}), tmp_path / name)
    assert sha256_folder(tmp_path / "a") == sha256_folder(tmp_path / "b")
    assert sha256_folder(tmp_path / "a") != sha256_folder(tmp_path / "c")


@pytest.mark.parametrize(("interval", "cut"), [(3600, 4.0), (700, 4.0), (3600, 3.5)])
def test_a_later_stretch_continues_the_same_fleet(tmp_path: Path, interval: float, cut: float) -> None:
    params = SMALL.model_copy(update={"interval_seconds": interval})
    simulate(params, tmp_path / "whole", days=8)
    simulate(params, tmp_path / "parts", days=cut)
    simulate(params, tmp_path / "parts", from_day=cut, days=8 - cut)
    assert sha256_folder(tmp_path / "whole") == sha256_folder(tmp_path / "parts")
    simulate(params, tmp_path / "late", from_day=cut, days=8 - cut)
    _, all_NF = fleet(tmp_path / "whole")
    context, late_NF = fleet(tmp_path / "late")
    begin = dt.datetime(2025, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=cut)
    assert context["timestamp"].to_pylist()[0] >= begin
    assert {row.tobytes() for row in late_NF} < {row.tobytes() for row in all_NF}


def test_a_machine_does_not_depend_on_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(SMALL, tmp_path / "one_batch")
    monkeypatch.setattr("pipeline.simulate.BATCH_ROWS", 30)  # one machine per batch
    monkeypatch.setattr("pipeline.simulate.CACHED_MACHINES", 2)  # and half of them made anew every day
    simulate(SMALL, tmp_path / "many")
    assert np.array_equal(fleet(tmp_path / "one_batch")[1], fleet(tmp_path / "many")[1])


def test_rows_follow_the_contract(tmp_path: Path) -> None:
    summary = simulate(SMALL, tmp_path)
    context, spectra_NF = fleet(tmp_path)
    assert summary.rows == context.num_rows == 4 * 6 * 24
    assert np.isfinite(spectra_NF).all()
    assert (spectra_NF > 0).all()
    assert set(context["condition"].to_pylist()) == {"off", "idle", "cut"}
    spec = load_fleet_spec(tmp_path / "fleet.yaml")
    assert (spec.bins, spec.interval_seconds, len(spec.band_edges_hz or ())) == (16, 3600, 17)
    for path in day_files(tmp_path):
        table = pq.read_table(path)
        order = [*zip(table["machine_id"].to_pylist(), times_us(table["timestamp"]).tolist(), strict=True)]
        assert order == sorted(order)
        assert {str(moment.date()) for moment in table["timestamp"].to_pylist()} == {path.stem}


def test_machines_off_stand_at_the_noise_floor_and_cutting_is_loudest(tmp_path: Path) -> None:
    simulate(SMALL.model_copy(update={"failures": 0, "mislabelled_share": 0}), tmp_path)
    context, spectra_NF = fleet(tmp_path)
    energy, condition = np.sqrt((spectra_NF**2).sum(axis=1)), np.array(context["condition"].to_pylist())
    off, idle, cut = (np.median(energy[condition == name]) for name in ("off", "idle", "cut"))
    assert off < 0.5 * idle < idle < 0.6 * cut
    assert (np.array(context["speed_rpm"])[condition == "off"] == 0).all()


@pytest.mark.parametrize("mode", range(3), ids=physics.FAULT_NAMES)
def test_a_fault_rises_from_below_the_noise_and_a_repair_ends_it(tmp_path: Path, mode: int) -> None:
    params = SMALL.model_copy(
        update={"machines": 1, "days": 20, "failures": 1, "mislabelled_share": 0, "interval_seconds": 600, "bins": 64}
    )
    plan = plan_faults(params)
    fault = replace(plan.faults[0], mode=mode, onset=4.0, end=14.6, repaired_from=14.7, well=14.8, peak=3.0)
    fault = replace(fault, gain=1.0, tilt=0.0)
    simulate(params, tmp_path, plan=replace(plan, faults=(fault,)))
    context, spectra_NF = fleet(tmp_path)
    day = (times_us(context["timestamp"]) / 86.4e9) - (params.start - dt.date(1970, 1, 1)).days
    cut = np.array([name == "cut" for name in context["condition"].to_pylist()])

    def level(begin: float, end: float) -> FloatNF:
        return np.median(spectra_NF[cut & (day >= begin) & (day < end)], axis=0)

    healthy = level(0, 4)
    assert (level(4, 7) / healthy).max() < 1.25  # nothing to see yet
    grown = level(13.5, 14.6) / healthy
    assert grown.max() > 1.8
    if mode == physics.ENERGY:
        assert np.median(grown) > 1.5
    if mode == physics.IMBALANCE:
        assert grown.argmax() == 0  # the shaft's line is in the lowest band
        assert np.median(grown) < 1.15
    assert (level(15, 20) / healthy).max() < 1.3
    down = (day >= fault.end) & (day < fault.well)
    assert set(np.array(context["condition"].to_pylist())[down]) == {"off"}


def test_failures_are_spread_over_time_modes_and_machines_and_not_by_the_stretch() -> None:
    plan = plan_faults(SimulateParams())
    logged = [fault for fault in plan.faults if fault.logged]
    assert len(logged) == 24
    assert len({fault.machine for fault in logged}) == 24  # everyone once before anyone twice
    assert np.bincount([fault.mode for fault in logged]).tolist() == [8, 8, 8]
    ends = np.array([fault.end for fault in logged])
    assert ends.min() >= 0.08 * 60 - 1
    assert ends.max() <= 60
    assert np.diff(np.sort(ends)).max() < 8
    assert all(fault.onset < fault.end < fault.repaired_from < fault.well for fault in logged)
    busy = sorted((fault.machine, fault.onset, fault.well) for fault in plan.faults)
    assert all(b[0] != a[0] or b[1] >= a[2] for a, b in itertools.pairwise(busy))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1])
def test_mislabelled_rows_come_near_their_share(share: float) -> None:
    params = SimulateParams(mislabelled_share=share)
    plan = plan_faults(params)
    assert plan.mislabelled_share == pytest.approx(share, abs=0.3 * share)
    assert any(not fault.logged for fault in plan.faults) == (share > 0)
    same = [
        fault.end for fault in plan_faults(params.model_copy(update={"mislabelled_share": 0.5})).faults if fault.logged
    ]
    assert same == [fault.end for fault in plan.faults if fault.logged]  # failures stay where they are


def test_the_log_hides_unlogged_faults_and_writes_some_failures_late(tmp_path: Path) -> None:
    params = SMALL.model_copy(update={"days": 40, "machines": 6, "failures": 12, "mislabelled_share": 0.1})
    simulate(params, tmp_path, days=40)
    log, truth = read_table(tmp_path / "maintenance.parquet"), read_table(tmp_path / "truth.parquet")
    failures = [row for row in log.to_pylist() if row["tag"] == "failure"]
    logged = [row for row in truth.to_pylist() if row["logged"]]
    assert set(log["tag"].to_pylist()) == {"failure", "repair"}
    assert any(not row["logged"] for row in truth.to_pylist())
    ends = {(row["machine_id"], row["end"]) for row in logged}
    on_time = [(row["machine_id"], row["start"]) in ends for row in failures]
    assert any(on_time)
    assert not all(on_time)


def test_a_firmware_change_is_in_the_context_but_not_in_the_log(tmp_path: Path) -> None:
    quiet = {"failures": 0, "mislabelled_share": 0, "machines": 30, "days": 4}
    simulate(SMALL.model_copy(update=quiet), tmp_path / "old")
    simulate(SMALL.model_copy(update=quiet | {"firmware_day": 2.0, "firmware_share": 0.5}), tmp_path / "new")
    (_, old_NF), (context, new_NF) = fleet(tmp_path / "old"), fleet(tmp_path / "new")
    updated = np.array([name == "2.0" for name in context["firmware"].to_pylist()])
    assert np.array_equal(old_NF[~updated], new_NF[~updated])
    assert np.allclose((new_NF / old_NF)[updated].mean(), physics.FIRMWARE_GAIN, rtol=0.05)
    begin = dt.datetime(2025, 1, 3, tzinfo=dt.UTC)
    assert min(np.array(context["timestamp"].to_pylist())[updated]) >= begin
    changed = set(np.array(context["machine_id"].to_pylist())[updated])
    assert 5 < len(changed) < 25
    assert read_table(tmp_path / "new" / "maintenance.parquet").num_rows == 0


def test_days_beyond_the_plan_bring_no_new_failures(tmp_path: Path) -> None:
    until_end = simulate(SMALL, tmp_path / "a")
    beyond = simulate(SMALL, tmp_path / "b", from_day=8, days=2)
    assert beyond.failures >= until_end.failures
    assert beyond.failures == sum(fault.logged for fault in plan_faults(SMALL).faults)


@pytest.mark.parametrize(("from_day", "days"), [(-1, None), (6, None), (2, 0)])
def test_an_empty_stretch_is_refused(tmp_path: Path, from_day: float, days: float | None) -> None:
    with pytest.raises(ParamsError, match="got days"):
        simulate(SMALL, tmp_path / "x", from_day=from_day, days=days)
    assert not (tmp_path / "x").exists()
