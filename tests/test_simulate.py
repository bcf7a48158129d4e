"""simulate: the same seed gives the same bytes, any stretch is the same fleet, faults rise from below the noise."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import cli
from pipeline.errors import ParamsError
from pipeline.params import DirtParams, SimulateParams, UpkeepParams
from pipeline.schema import FloatNF, load_fleet_spec, spectra_view, times_us
from pipeline.simulate import simulate
from pipeline.simulation import physics
from pipeline.simulation.history import FleetHistory
from pipeline.simulation.machine import make_machine
from pipeline.simulation.plan import plan_fleet
from pipeline.store import day_files, read_json, read_table, sha256_file, sha256_folder

SMALL = SimulateParams(machines=4, days=6, interval_seconds=3600, bins=16, failures=2, seed=11)
DIRTY = DirtParams(
    nan=0.02,
    infinite=0.02,
    negative=0.02,
    flat=0.02,
    stuck=0.05,
    duplicate=0.05,
    future=0.02,
    unordered=0.1,
    missing=0.1,
)
QUIET = {"failures": 0, "mislabelled_share": 0}


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
@pytest.mark.parametrize("dirt", [DirtParams(), DIRTY], ids=["clean", "dirty"])
def test_a_later_stretch_continues_the_same_fleet(
    tmp_path: Path, interval: float, cut: float, dirt: DirtParams
) -> None:
    upkeep = UpkeepParams(never_well=0.3, bearing_swaps=0.3, moved_sensors=0.5, planned_stops=0.3)
    params = SMALL.model_copy(update={"interval_seconds": interval, "dirt": dirt, "upkeep": upkeep})
    params = params.model_copy(update={"mislabelled_share": 0.3})
    simulate(params, tmp_path / "whole", days=8)
    simulate(params, tmp_path / "parts", days=cut)
    simulate(params, tmp_path / "parts", from_day=cut, days=8 - cut)
    assert sha256_folder(tmp_path / "whole") == sha256_folder(tmp_path / "parts")
    simulate(params, tmp_path / "late", from_day=cut, days=8 - cut)
    _, all_NF = fleet(tmp_path / "whole")
    context, late_NF = fleet(tmp_path / "late")
    begin = dt.datetime(2025, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=cut)
    assert min(context["timestamp"].to_pylist()) >= begin
    assert {row.tobytes() for row in late_NF} < {row.tobytes() for row in all_NF}


def test_a_machine_does_not_depend_on_its_batch_or_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(SMALL, tmp_path / "one_batch")
    monkeypatch.setattr("pipeline.simulate.BATCH_VALUES", 500)  # one machine per batch
    monkeypatch.setattr("pipeline.simulate.THREADS", 1)
    monkeypatch.setattr("pipeline.simulation.days.CACHE_BYTES", 10_000)  # and half of them made anew every day
    simulate(SMALL, tmp_path / "many")
    assert np.array_equal(fleet(tmp_path / "one_batch")[1], fleet(tmp_path / "many")[1])


def test_rows_follow_the_contract(tmp_path: Path) -> None:
    summary = simulate(SMALL, tmp_path)
    context, spectra_NF = fleet(tmp_path)
    assert summary.rows == context.num_rows == 4 * 6 * 24
    assert np.isfinite(spectra_NF).all()
    assert (spectra_NF > 0).all()
    assert set(context["condition"].to_pylist()) == set(physics.REGIMES)
    spec = load_fleet_spec(tmp_path / "fleet.yaml")
    assert (spec.bins, spec.interval_seconds, len(spec.band_edges_hz or ())) == (16, 3600, 17)
    for path in day_files(tmp_path):
        table = pq.read_table(path)
        order = [*zip(table["machine_id"].to_pylist(), times_us(table["timestamp"]).tolist(), strict=True)]
        assert order == sorted(order)
        assert {str(moment.date()) for moment in table["timestamp"].to_pylist()} == {path.stem}


def test_machines_off_stand_at_the_noise_floor_and_a_heavy_cut_is_loudest(tmp_path: Path) -> None:
    simulate(SMALL.model_copy(update=QUIET), tmp_path)
    context, spectra_NF = fleet(tmp_path)
    energy, condition = np.sqrt((spectra_NF**2).sum(axis=1)), np.array(context["condition"].to_pylist())
    off, idle, light, heavy = (np.median(energy[condition == name]) for name in physics.REGIMES)
    assert off < 0.5 * idle < idle < 0.8 * light < light < 0.8 * heavy
    assert (np.array(context["speed_rpm"])[condition == "off"] == 0).all()


def test_no_two_rows_share_their_noise(tmp_path: Path) -> None:
    simulate(SMALL.model_copy(update=QUIET | {"interval_seconds": 300, "days": 2}), tmp_path)
    _, spectra_NF = fleet(tmp_path)
    assert len(np.unique(spectra_NF, axis=0)) == len(spectra_NF)


def test_a_fault_ends_with_its_repair_and_the_machine_stands_still_meanwhile(tmp_path: Path) -> None:
    params = SMALL.model_copy(
        update={"machines": 1, "days": 20, "failures": 1, "mislabelled_share": 0, "interval_seconds": 600, "bins": 64}
    )
    plan = plan_fleet(params.model_copy(update={"modes": ("outer_race",)}))
    fault = replace(plan.faults[0], onset=4.0, end=14.6, start=0.08, peak=6.0, law="exponential")
    work = replace(plan.works[0], broke=14.6, begin=14.7, end=14.8, gain=1.0, tilt=0.0, swap=False)
    simulate(params, tmp_path, plan=replace(plan, faults=(fault,), works=(work,)))
    context, spectra_NF = fleet(tmp_path)
    day = (times_us(context["timestamp"]) / 86.4e9) - (params.start - dt.date(1970, 1, 1)).days
    idle = np.array([name == "idle" for name in context["condition"].to_pylist()])

    def level(begin: float, end: float) -> FloatNF:
        return np.median(spectra_NF[idle & (day >= begin) & (day < end)], axis=0)

    healthy = level(0, 4)
    assert (level(4, 7) / healthy).max() < 1.3  # nothing to see yet
    assert (level(13.9, 14.6) / healthy).max() > 2
    assert (level(15, 20) / healthy).max() < 1.3
    down = (day >= fault.end) & (day < work.end)
    assert set(np.array(context["condition"].to_pylist())[down]) == {"off"}


def test_a_firmware_change_is_in_the_context_but_not_in_the_log(tmp_path: Path) -> None:
    quiet = QUIET | {"machines": 30, "days": 4}
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


def test_moved_band_edges_change_updated_rows_alone_and_may_be_logged(tmp_path: Path) -> None:
    new = QUIET | {"days": 2, "firmware_day": 1.0, "firmware_effect": "edges", "firmware_logged": 1.0}
    simulate(SMALL.model_copy(update=QUIET | {"days": 2}), tmp_path / "old")
    simulate(SMALL.model_copy(update=new), tmp_path / "new")
    (_, old_NF), (context, new_NF) = fleet(tmp_path / "old"), fleet(tmp_path / "new")
    updated = np.array([name == "2.0" for name in context["firmware"].to_pylist()])
    assert (old_NF == new_NF).all(axis=1).tolist() == (~updated).tolist()
    (tag,) = set(read_table(tmp_path / "new" / "maintenance.parquet")["tag"].to_pylist())
    assert tag == "firmware"


def test_what_a_fleet_is_stands_beside_it(tmp_path: Path) -> None:
    simulate(SMALL, tmp_path, days=2)
    facts = read_json(tmp_path / "simulation.json")
    assert facts["physics_sha256"] == sha256_file(Path(physics.__file__))
    assert facts["seed"] == SMALL.seed
    assert facts["failures"]["happened"] == 2


def test_only_whole_hours_and_horizons_are_kept_beyond_max_rows(tmp_path: Path) -> None:
    params = SMALL.model_copy(update={"interval_seconds": 900, "days": 10})
    simulate(params, tmp_path / "all")
    summary = simulate(params, tmp_path / "some", max_rows=1200, horizon_hours=12)
    (everything, all_NF), (kept, some_NF) = fleet(tmp_path / "all"), fleet(tmp_path / "some")
    assert 700 < summary.rows == kept.num_rows <= 1200 < everything.num_rows
    assert {row.tobytes() for row in some_NF} < {row.tobytes() for row in all_NF}
    keys = set(zip(kept["machine_id"].to_pylist(), times_us(kept["timestamp"]).tolist(), strict=True))
    log = read_table(tmp_path / "all" / "maintenance.parquet").to_pylist()
    failures = [(row["machine_id"], row["start"]) for row in log if row["tag"] == "failure"]
    hours: dict[int, set[bool]] = {}
    for name, moment in zip(
        everything["machine_id"].to_pylist(), times_us(everything["timestamp"]).tolist(), strict=True
    ):
        age = [start.timestamp() - moment / 1e6 for machine, start in failures if machine == name]
        if any(0 <= seconds <= 12 * 3600 for seconds in age):
            assert (name, moment) in keys
        else:
            hours.setdefault(moment // 3_600_000_000, set()).add((name, moment) in keys)
    assert {frozenset(kinds) for kinds in hours.values()} == {frozenset({True}), frozenset({False})}


def test_max_rows_without_room_for_an_hour_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="got max_rows 50, expected at least"):
        simulate(SMALL, tmp_path / "x", max_rows=50)


def test_a_fleet_larger_than_the_cache_keeps_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.simulation.days import Fleet

    monkeypatch.setattr("pipeline.simulation.days.CACHE_BYTES", 10 * 400 * 16)
    large = Fleet(SMALL, FleetHistory((), ()))
    assert [large.machine(index).index for index in range(30)] == list(range(30))
    assert len(large._machines) == 10
    assert large.machine(29).shaft_hz == make_machine(SMALL.seed, 29, 16, SMALL.max_hz).shaft_hz


def test_days_beyond_the_plan_bring_no_new_failures(tmp_path: Path) -> None:
    until_end = simulate(SMALL, tmp_path / "a")
    beyond = simulate(SMALL, tmp_path / "b", from_day=8, days=2)
    assert beyond.failures >= until_end.failures
    assert beyond.failures == sum(fault.logged for fault in plan_fleet(SMALL).faults)


def test_the_preset_by_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["hearken", "simulate", "--out", str(tmp_path / "fleet"), *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0)

    assert run("--preset", "../harbor") == 2
    assert run("--preset", "harbor", "--machines", "0") == 2
    assert run("--preset", "harbor", "--machines", "3", "--days", "0.1", "--seed", "5") == 0
    context, spectra_NF = fleet(tmp_path / "fleet")
    assert spectra_NF.shape[1] == 64
    assert 0.9 * 3 * 864 < context.num_rows < 1.1 * 3 * 864
    assert run("--preset", "harbor", "--machines", "3", "--days", "0.1", "--max-rows", "1500") == 0
    assert fleet(tmp_path / "fleet")[0].num_rows < 1600


@pytest.mark.parametrize(("from_day", "days"), [(-1, None), (6, None), (2, 0)])
def test_an_empty_stretch_is_refused(tmp_path: Path, from_day: float, days: float | None) -> None:
    with pytest.raises(ParamsError, match="got days"):
        simulate(SMALL, tmp_path / "x", from_day=from_day, days=days)
    assert not (tmp_path / "x").exists()
