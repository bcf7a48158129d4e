"""Drift of a fleet whose release the stages built: windows from real score logs, and what is decided on them."""

import datetime as dt
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from service_plant import ServicePlant

from pipeline.drift import DriftDecision, Window, check_drift, contract_window, decide, service_window
from pipeline.drift.columns import Heard
from pipeline.drift.log_sample import sampled_keys
from pipeline.drift.reference import LIMITS, read_reference
from pipeline.drift.sampling import fair_sample, mixed
from pipeline.errors import ContractError
from pipeline.params import MonitorParams, load_params
from pipeline.release import Release, load_release
from pipeline.schema import Role, codes_and_names, spectra_column, spectra_view, times_us
from pipeline.score import score_data_set
from pipeline.simulate import simulate
from pipeline.simulation.plan import plan_fleet
from pipeline.store import day_files, read_json, read_table, sha256_file, write_table
from pipeline.uploads import LandingZone

PARAMS = MonitorParams(days=3)  # as the release of `built` was calibrated


@pytest.fixture(scope="module")
def release(built: Path) -> Release:
    return load_release(built / "data/release")


@pytest.fixture(scope="module")
def quiet(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The days of the calibration rows alone."""
    scores = read_table(built / "data/calibration/scores.parquet", ["file"])
    days = {str(name) for name in scores["file"].to_pylist()}
    out = tmp_path_factory.mktemp("quiet") / "data"
    shutil.copytree(built / "data/raw", out)
    for path in day_files(out):
        if path.name not in days:
            path.unlink()
    return out


def window_of(release: Release, data: Path, folder: Path, params: MonitorParams = PARAMS, seed: int = 1) -> Window:
    log = folder / "log"
    score_data_set(release, data, log)
    return contract_window(release, data, log, params, seed)


def louder(window: Window, machines: list[str]) -> Window:
    """The same window with some machines' spectra raised and tilted."""
    spectra = window.rows.spectra.copy()
    here = np.isin(np.array(window.rows.machines, object)[window.rows.machine], machines)
    spectra[here] *= np.linspace(1.5, 4, spectra.shape[1], dtype=np.float32)
    return replace(window, rows=replace(window.rows, spectra=spectra))


def voters(release: Release, window: Window) -> list[str]:
    """Machines that can be compared."""
    found, _ = decide(release, window, PARAMS, 1)
    assert found.compared >= 5
    silent = louder(window, list(map(str, window.rows.machines)))
    return list(decide(release, silent, PARAMS, 1)[0].machines)


def test_a_quiet_fleet_has_not_drifted(release: Release, quiet: Path, tmp_path: Path) -> None:
    window = window_of(release, quiet, tmp_path)
    found = check_drift(release, window, PARAMS, tmp_path / "drift.html", seed=1)
    assert found.verdict == "none", found.reason
    assert found.changed_at is None
    assert found.rows == len(window.rows) > 300


def test_the_page_opens_without_a_network(release: Release, quiet: Path, tmp_path: Path) -> None:
    page = tmp_path / "drift.html"
    found = check_drift(release, window_of(release, quiet, tmp_path), PARAMS, page, seed=1)
    text = page.read_text()
    assert 1e6 < len(text) < 8e6
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)[^>]*>", text)
    assert all(name in text for name in found.columns)


def test_the_reported_statistics_are_evidentlys(release: Release, quiet: Path, tmp_path: Path) -> None:
    window = window_of(release, quiet, tmp_path)
    reported = check_drift(release, window, PARAMS, tmp_path / "drift.html", seed=1)
    by_numpy, pairs = decide(release, window, PARAMS, 1)
    assert set(reported.columns) == set(pairs) == set(by_numpy.columns)
    assert 10 < len(pairs) <= 20
    for name, column in by_numpy.columns.items():
        assert reported.columns[name].statistic == pytest.approx(column.statistic, abs=2e-6), name


def test_many_together_are_drift_and_one_is_a_fault(release: Release, quiet: Path, tmp_path: Path) -> None:
    window = window_of(release, quiet, tmp_path)
    names = voters(release, window)
    every = decide(release, louder(window, list(map(str, window.rows.machines))), PARAMS, 1)[0]
    assert (every.verdict, every.group) == ("fleet", None)
    assert every.share > 0.8
    one = decide(release, louder(window, names[:1]), PARAMS, 1)[0]
    assert (one.verdict, one.alone) == ("none", (names[0],))
    few = MonitorParams(days=3, fleet_share=0.8)
    some = decide(release, louder(window, names[:3]), few, 1)[0]
    assert (some.verdict, some.machines) == ("group", tuple(names[:3]))


def test_new_firmware_is_found_within_a_day_and_to_the_hour(built: Path, release: Release, tmp_path: Path) -> None:
    params = load_params(built / "params.yaml").simulate
    changed = params.model_copy(update={"firmware_day": 22.25})  # before most machines have been mended
    data, log = tmp_path / "landing", tmp_path / "log"
    simulate(changed, data, from_day=18, days=6, plan=plan_fleet(changed))
    score_data_set(release, data, log)
    zero = dt.datetime.combine(params.start, dt.time(), dt.UTC)

    def on(day: float) -> DriftDecision:
        until = zero + dt.timedelta(days=day)
        return decide(release, contract_window(release, data, log, PARAMS, 1, until), PARAMS, 1)[0]

    before = on(22.2)
    assert before.verdict == "none", before.reason
    after = on(23.25)
    assert after.verdict == "fleet", after.reason
    assert after.changed_at is not None
    assert abs(after.changed_at - (zero + dt.timedelta(days=22.25))) <= dt.timedelta(hours=1)


def test_the_same_seed_draws_the_same_rows(release: Release, quiet: Path, tmp_path: Path) -> None:
    few = MonitorParams(days=3, max_rows=200)
    one, two, other = (window_of(release, quiet, tmp_path, few, seed) for seed in (4, 4, 5))
    assert len(one.rows) == len(two.rows) <= 200 < one.found
    np.testing.assert_array_equal(one.rows.spectra, two.rows.spectra)
    assert not np.array_equal(one.rows.time_us, other.rows.time_us)
    counts = np.bincount(one.rows.machine)
    assert counts.max() - counts.min() <= 1, "as many of each machine"
    assert decide(release, one, PARAMS, 1)[0] == decide(release, two, PARAMS, 1)[0]


def test_the_window_of_a_service_holds_its_scored_rows(built: Path, engine: sa.Engine, tmp_path: Path) -> None:
    plant = ServicePlant.of(tmp_path, built, engine)
    rows = plant.all_rows(slice(-4, None))
    plant.upload("one", rows.slice(0, rows.num_rows // 2))
    plant.upload("two", rows.slice(rows.num_rows // 2))
    plant.score()
    release = load_release(plant.settings.releases / plant.release)
    where = (release, plant.settings.score_log, LandingZone.at(plant.landing))
    window = service_window(*where, PARAMS, 1)
    log = plant.log()
    usable = log.filter(pa.array(log["baseline"].is_valid().to_numpy(zero_copy_only=False)))
    inside = times_us(usable["timestamp"]) > window.start_us
    assert len(window.rows) == inside.sum()
    assert window.gone == 0
    assert set(window.context) >= {"condition", "firmware"}
    assert np.isfinite(window.speed_N).all()
    expected = spectra_of(rows)
    names = np.array(window.rows.machines, object)[window.rows.machine]
    for place in range(0, len(window.rows), 37):
        key = (names[place], int(window.rows.time_us[place]))
        np.testing.assert_array_equal(window.rows.spectra[place], expected[key])
    # an upload that is gone leaves its rows out; without any there is nothing to compare
    (plant.spectra / "two.parquet").unlink()
    part = service_window(*where, PARAMS, 1)
    assert len(part.rows) + part.gone == len(window.rows)
    assert part.gone > 0
    (plant.spectra / "one.parquet").unlink()
    with pytest.raises(ContractError, match=r"got 0 \(\d+ whose uploads are gone"):
        service_window(*where, PARAMS, 1)


def spectra_of(rows: pa.Table) -> dict[tuple[str, int], np.ndarray]:
    names = rows["machine_id"].cast(pa.string()).to_pylist()
    spectra = spectra_view(rows["spectrum"], 32)
    return dict(zip(zip(names, times_us(rows["timestamp"]).tolist(), strict=True), spectra, strict=True))


def test_the_sample_does_not_depend_on_how_the_log_is_cut(release: Release, quiet: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    score_data_set(release, quiet, log)
    whole = sampled_keys(log, 3.0, 200, seed=4)
    cut = tmp_path / "cut"
    for path in sorted(log.glob("*.parquet")):
        table = read_table(path)
        for part in range(3):
            write_table(
                cut / path.stem / f"00000000{part}-ab12cd34.parquet", table.slice(part * 70, 70 if part < 2 else None)
            )
    again = sampled_keys(cut, 3.0, 200, seed=4)
    assert again.found == whole.found
    for name in ("machine_id", "timestamp", "row"):
        assert again.table[name].to_pylist() == whole.table[name].to_pylist()


@pytest.mark.parametrize("days_ahead", [[20], [20, 31]])
def test_wrong_clocks_do_not_move_the_window(
    release: Release, quiet: Path, tmp_path: Path, days_ahead: list[int]
) -> None:
    log = tmp_path / "log"
    score_data_set(release, quiet, log)
    before = sampled_keys(log, 3.0, 5000, seed=4)
    last = max(log.glob("*.parquet"))
    table = read_table(last)
    assert table.column_names[3] == "timestamp"
    for days in days_ahead:
        times = table["timestamp"].to_numpy() + np.timedelta64(days, "D")
        column = pa.array(times, table.schema.field("timestamp").type)
        stray = table.set_column(3, table.schema.field("timestamp"), column)
        write_table(log / f"{np.datetime64(last.stem) + days}.parquet", stray.slice(0, 1))
    after = sampled_keys(log, 3.0, 5000, seed=4)
    assert (after.start_us, after.end_us, after.table.num_rows) == (
        before.start_us,
        before.end_us,
        before.table.num_rows,
    )


def test_no_scored_rows_is_an_error(release: Release, quiet: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="score log"):
        contract_window(release, quiet, tmp_path, PARAMS, seed=1)


def test_a_release_without_limits_is_refused(built: Path, release: Release, quiet: Path, tmp_path: Path) -> None:
    window = window_of(release, quiet, tmp_path)
    copy = tmp_path / "release"
    shutil.copytree(built / "data/release", copy)
    (copy / LIMITS).unlink()
    with pytest.raises(ContractError, match="build or recalibrate it anew"):
        decide(replace(release, folder=copy), window, PARAMS, 1)


def test_the_reference_holds_healthy_rows_that_no_network_was_fitted_on(built: Path, release: Release) -> None:
    reference, limits = read_reference(release.folder)
    split = read_table(built / "data/status/split.parquet")
    role_N, roles = codes_and_names(split["role"])
    keys = split["machine_id"].cast(pa.string()).to_pylist(), times_us(split["timestamp"]).tolist()
    role_of = dict(zip(zip(*keys, strict=True), np.array([*roles, ""], object)[role_N], strict=True))
    names = np.array(reference.machines, object)[reference.machine_N]
    used = {role_of[key] for key in zip(names, reference.time_us_N.tolist(), strict=True)}
    assert used == {Role.VALIDATION, Role.CALIBRATION}
    assert limits.days == load_params(built / "params.yaml").monitor.days
    assert "fewer than 90" in limits.history
    manifest = read_json(release.folder / "manifest.json")
    for name in ("reference.parquet", LIMITS):
        assert manifest["files"][name] == sha256_file(release.folder / name)


def test_a_reference_is_read_as_it_was_written(release: Release) -> None:
    reference, _ = read_reference(release.folder)
    again = Heard.of_table(reference.table())
    np.testing.assert_array_equal(again.values_NC, reference.values_NC)
    np.testing.assert_array_equal(again.machine_N, reference.machine_N)
    assert (again.machines, again.conditions, again.columns) == (
        reference.machines,
        reference.conditions,
        reference.columns,
    )


def test_random_numbers_have_no_pattern() -> None:
    drawn = mixed(np.arange(100_000) * 10_000_000, np.zeros(100_000, np.uint64), 7) / 2.0**64
    assert abs(drawn.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.02


def test_a_fair_sample_fills_its_quota() -> None:
    machine = np.repeat([0, 1, 2], [1000, 50, 5])
    picked = fair_sample(
        machine, np.zeros(1055, np.int64), np.random.default_rng(1).permutation(1055).astype(np.uint64), 90
    )
    assert np.bincount(machine[picked]).tolist() == [42, 42, 5]


def test_a_spectrum_that_changed_in_its_upload_is_not_compared(release: Release, quiet: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(quiet, data)
    score_data_set(release, data, tmp_path / "log")
    before = contract_window(release, data, tmp_path / "log", PARAMS, 1)
    last = day_files(data)[-1]
    table = read_table(last)
    spectra = spectra_view(table["spectrum"], 32)
    place = table.column_names.index("spectrum")
    turned = table.set_column(place, table.schema.field("spectrum"), spectra_column(spectra[::-1].copy()))
    write_table(last, turned.take(pa.array(np.arange(len(table))[::-1])))
    after = contract_window(release, data, tmp_path / "log", PARAMS, 1)
    assert after.gone > 0
    assert len(after.rows) + after.gone == len(before.rows)
