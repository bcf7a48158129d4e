"""New thresholds for old weights: which rows count, what stays byte for byte, what is said, and what is refused."""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flows.database import open_database
from flows.recalibrate_command import last_lines
from flows.registry import ReleaseState, find_release, in_service, list_releases, register_release
from flows.settings import Settings
from pipeline.calibrate import calibrate
from pipeline.errors import ContractError
from pipeline.ingest import ingest
from pipeline.intervals import rate_above
from pipeline.params import CalibrateParams, Params, ValidateParams, load_params
from pipeline.recalibrate import Recalibration, recalibrate
from pipeline.recent_rows import RecentRows, recent_rows
from pipeline.release import Release, load_release, release_id
from pipeline.rows import load_rows
from pipeline.schema import BASELINE_NAMES, MAINTENANCE_SCHEMA, spectra_column, times_us
from pipeline.score import score_data_set
from pipeline.simulate import simulate
from pipeline.store import day_files, read_json, read_table, sha256_file, write_table
from pipeline.validate import validate

FIRST, DAYS = 40, 10  # of the later days; the release ends with day 40
HORIZON_DAYS = 2
LIMITS = ValidateParams()
Later = tuple[Path, Release]


@pytest.fixture(scope="module")
def params(built: Path) -> Params:
    return load_params(built / "params.yaml")


@pytest.fixture(scope="module")
def release(built: Path) -> Release:
    return load_release(built / "data/release")


@pytest.fixture(scope="module")
def later(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same fleet's next ten days as a data set, validated as a build would."""
    folder = tmp_path_factory.mktemp("later")
    simulate(params.simulate, folder / "landing", from_day=FIRST, days=DAYS)
    split = params.split
    share = {"tune_share": split.tune_failure_share, "unseen_share": split.unseen_machine_share}
    ingest(folder / "landing", folder / "raw", params.ingest, horizon_hours=split.horizon_hours, **share)
    validate(folder / "raw", folder / "status/validate.parquet", params.validate_)
    return folder / "raw"


@pytest.fixture(scope="module")
def made(release: Release, later: Path, tmp_path_factory: pytest.TempPathFactory) -> Recalibration:
    return recalibrate(release, later, tmp_path_factory.mktemp("made") / "release", LIMITS)


def rows_of(release: Release, data_set: Path, params: Params, **span: dt.datetime) -> RecentRows:
    return recent_rows(release, data_set, params, span.get("since"), span.get("until"), params.validate_)


def moved(later: Path, folder: Path, log: list[dict[str, Any]] | None = None) -> Path:
    """A copy of the data set and its status, with more entries in its log."""
    shutil.copytree(later.parent / "status", folder / "status")
    shutil.copytree(later, folder / "raw")
    if log:
        file = folder / "raw/maintenance.parquet"
        empty = {"failure_mode": None, "note": None}
        more = pa.Table.from_pylist([empty | entry for entry in log], schema=MAINTENANCE_SCHEMA)
        write_table(file, pa.concat_tables([read_table(file, schema=MAINTENANCE_SCHEMA), more]))
    return folder / "raw"


def day(number: float) -> dt.datetime:
    return dt.datetime(2025, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=number)


def held_machines(params: Params, later: Path) -> set[str]:
    from pipeline.roles import unseen_machines

    names = sorted(set(read_table(day_files(later)[0])["machine_id"].to_pylist()))
    return {
        name
        for name, held in zip(names, unseen_machines(names, params.split.unseen_machine_share), strict=True)
        if held
    }


def test_weights_stay_and_thresholds_are_new(release: Release, later: Path, made: Recalibration) -> None:
    new = load_release(made.folder, made.id)
    assert new.id == made.id != release.id
    for name in release.manifest["members"]:
        for file in ("weights.safetensors", "manifest.json"):
            place = f"detectors/{name}/{file}"
            assert (new.folder / place).read_bytes() == (release.folder / place).read_bytes()
        assert new.tails.table(name).rows == made.rows
    for file in ("epochs.json", "fleet.yaml"):
        assert (new.folder / file).read_bytes() == (release.folder / file).read_bytes()
    assert new.manifest["recalibrated_from"] == release.id
    assert new.manifest["models"] == release.manifest["models"]
    assert new.manifest["newest_row_us"] == release.manifest["newest_row_us"]
    assert new.threshold("page") != release.threshold("page")
    assert {path.name for path in new.folder.iterdir()} == {path.name for path in release.folder.iterdir()}


def test_the_manifest_says_which_rows(release: Release, later: Path, made: Recalibration, params: Params) -> None:
    told = read_json(made.folder / "manifest.json")
    assert told["provisional"] is True, "the newest rows are younger than the horizon"
    assert told["recalibration"]["rows"] == made.rows == read_json(made.folder / "calibration.json")["rows"]
    assert 0 < told["recalibration"]["unconfirmed"] == made.unconfirmed < made.rows
    assert made.first >= f"{day(FIRST):%Y-%m-%dT%H:%M:%SZ}"
    assert told["recalibration"]["inputs"]["snapshot.json"] == sha256_file(later / "snapshot.json")
    assert told["metrics"]["tiers"] == {}
    assert "no later rows have judged" in told["metrics"]["null_reasons"]["metrics"]
    text = json.dumps(told)
    assert str(later) not in text
    assert any("younger than the horizon of 48 h" in note for note in made.notes)


def test_the_reference_of_drift_comes_from_the_same_rows(later: Path, made: Recalibration, params: Params) -> None:
    reference = read_table(made.folder / "reference.parquet")
    most = min(params.release.reference_rows, made.rows)
    assert 0.9 * most < reference.num_rows <= most, "as many of each machine and day"
    times = times_us(reference["timestamp"])
    assert times.min() >= day(FIRST).timestamp() * 1e6
    assert made.folder.joinpath("manifest.json").read_text().count("renewed from the same rows") == 1
    assert not set(reference["machine_id"].to_pylist()) & held_machines(params, later)
    assert read_json(made.folder / "drift.json")["days"] == params.monitor.days, "the windows of the release before"


def test_the_same_inputs_give_the_same_release(
    release: Release, later: Path, made: Recalibration, tmp_path: Path
) -> None:
    again = recalibrate(release, later, tmp_path / "again", LIMITS)
    assert again.id == made.id
    assert again.to_json() | {"folder": ""} == made.to_json() | {"folder": ""}
    assert recalibrate(release, later, tmp_path / "again", LIMITS).id == made.id, (
        "the very same release may stand there"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]


def test_pieces_of_day_files_give_what_all_rows_at_once_give(
    release: Release, later: Path, made: Recalibration, params: Params
) -> None:
    rows = rows_of(release, later, params)
    bins, column = int(release.manifest["bins"]), release.condition_column
    healthy, tune = (load_rows(later, rows.table, chosen, bins, column) for chosen in (rows.healthy_N, rows.tune_N))
    settings = Params.model_validate(release.manifest["params"])
    whole = calibrate(release.detectors, healthy, tune, settings, rows.tuned_us)
    assert read_json(made.folder / "calibration.json") == json.loads(json.dumps(whole.to_json()))


def test_what_the_old_thresholds_let_through_is_counted_and_has_an_interval(
    release: Release, later: Path, made: Recalibration, params: Params, tmp_path: Path
) -> None:
    score_data_set(release, later, tmp_path)
    log = pa.concat_tables([read_table(path) for path in sorted(tmp_path.glob("*.parquet"))]).unify_dictionaries()
    healthy = rows_of(release, later, params).healthy_N
    baseline = np.array([BASELINE_NAMES.index(name) for name in log["baseline"].to_pylist()])
    for change in made.tiers:
        score = log[f"score_{change.detector}"].to_numpy()
        scale = release.tails.table(change.detector).scale
        assert not len(scale.level), "the fleet has one level: codes do not matter"
        comparable = scale.comparable(score, baseline, np.zeros(len(score), int))
        above = comparable[healthy] > change.old_threshold
        assert change.rate == pytest.approx(above.mean(), abs=1e-15)
        assert change.rate_low is not None
        assert change.rate_high is not None
        assert change.rate_low <= change.rate <= change.rate_high
        old = release.calibration["detectors"][change.detector][change.tier]
        assert (change.old_threshold, change.old_percentile) == (old["threshold"], old["percentile"])
    assert made.tiers[0].detector == made.tiers[1].detector == release.detector
    assert len(made.tiers) == 2 * len(release.tails.names)


def test_rows_that_the_log_excludes_do_not_count(release: Release, later: Path, params: Params, tmp_path: Path) -> None:
    machines = sorted(set(read_table(day_files(later)[0])["machine_id"].to_pylist()) - held_machines(params, later))
    before = rows_of(release, later, params)
    log = [
        {"machine_id": machines[0], "start": day(FIRST + 2), "end": day(FIRST + 3), "tag": "repair"},
        {"machine_id": machines[1], "start": day(FIRST + 5), "end": day(FIRST + 6), "tag": "off"},
        {"machine_id": machines[2], "start": day(FIRST + 7), "end": day(FIRST + 7.5), "tag": "failure"},
    ]
    data_set = moved(later, tmp_path, log)
    (data_set / "failures.parquet").unlink()  # then the log alone tells the failures
    after = rows_of(release, data_set, params)
    names = np.array(before.table["machine_id"].to_pylist())
    hours = (times_us(before.table["timestamp"]) - day(FIRST).timestamp() * 1e6) / 3.6e9
    lost = np.zeros(len(names), bool)
    run_in, horizon = params.split.run_in_hours, params.split.horizon_hours
    lost |= (names == machines[0]) & (hours >= 48) & (hours < 72 + run_in)
    lost |= (names == machines[1]) & (hours >= 120) & (hours < 144)
    lost |= (names == machines[2]) & (hours >= 168 - horizon) & (hours < 180 + run_in)
    assert (before.healthy_N & lost).sum() > 100
    np.testing.assert_array_equal(after.healthy_N, before.healthy_N & ~lost)
    epoch = after.table["epoch"].to_numpy() - before.table["epoch"].to_numpy()
    np.testing.assert_array_equal(epoch, (names == machines[0]) & (hours >= 72))


def test_held_out_machines_and_rows_that_are_not_sound_do_not_count(
    release: Release, later: Path, params: Params, tmp_path: Path
) -> None:
    rows = rows_of(release, later, params)
    names = np.array(rows.table["machine_id"].to_pylist())
    held = held_machines(params, later)
    assert held
    assert not rows.healthy_N[np.isin(names, list(held))].any()
    assert any("held out do not count" in note for note in rows.notes)
    data_set = moved(later, tmp_path)
    status = read_table(tmp_path / "status/validate.parquet")
    told = np.array(status["status"].to_pylist(), dtype=object)
    chosen = np.flatnonzero(rows.healthy_N)
    told[chosen[:30]], told[chosen[30:50]] = "suspect", "quarantined"
    index = status.column_names.index("status")
    column = pa.array(told.tolist()).dictionary_encode().cast(status.schema.field("status").type)
    write_table(tmp_path / "status/validate.parquet", status.set_column(index, status.schema.field("status"), column))
    fewer = rows_of(release, data_set, params)
    np.testing.assert_array_equal(np.flatnonzero(rows.healthy_N & ~fewer.healthy_N), chosen[:50])


def test_rows_before_tune_failures_tune(release: Release, later: Path, params: Params, tmp_path: Path) -> None:
    machines = sorted(set(read_table(day_files(later)[0])["machine_id"].to_pylist()))
    held = held_machines(params, later)
    seen = [name for name in machines if name not in held]
    data_set = moved(later, tmp_path)
    failures = [
        {"failure_id": "t", "machine_id": seen[0], "time": day(FIRST + 5), "end": day(FIRST + 5), "role": "tune"},
        {"failure_id": "x", "machine_id": seen[1], "time": day(FIRST + 6), "end": day(FIRST + 6), "role": "test"},
        {"failure_id": "u", "machine_id": min(held), "time": day(FIRST + 6), "end": day(FIRST + 6), "role": "tune"},
        {"failure_id": "lost", "machine_id": "gone", "time": day(FIRST + 6), "end": day(FIRST + 6), "role": "tune"},
        {"failure_id": "old", "machine_id": seen[1], "time": day(FIRST - 9), "end": day(FIRST - 9), "role": "tune"},
        {"failure_id": "late", "machine_id": seen[2], "time": day(FIRST + 99), "end": day(FIRST + 99), "role": "tune"},
    ]
    schema = read_table(data_set / "failures.parquet").schema
    write_table(
        data_set / "failures.parquet", pa.Table.from_pylist([f | {"failure_mode": None} for f in failures], schema)
    )
    failed = {"t": day(FIRST + 5), "lost": day(FIRST + 6)}
    tuned_us = rows_of(release, data_set, params).tuned_us
    assert tuned_us == {name: time.timestamp() * 1e6 for name, time in failed.items()}, "and not the last row before"
    made = recalibrate(release, data_set, tmp_path / "out", LIMITS)
    assert made.tune_failures == 1
    calibration = read_json(made.folder / "calibration.json")
    assert calibration["detectors"][release.detector]["page"]["tune_failures"] == 1
    assert calibration["choice"]["failures"] == ["lost", "t"]
    assert "1 of 2 tune failures have no row before them: lost." in made.notes
    assert read_json(made.folder / "manifest.json")["recalibration"]["tune_rows"] == pytest.approx(48, abs=2)


def test_a_span_that_has_had_its_horizon_is_not_provisional(
    release: Release, later: Path, params: Params, tmp_path: Path
) -> None:
    made = recalibrate(
        release, later, tmp_path / "out", LIMITS, since=day(FIRST + 1), until=day(FIRST + DAYS - HORIZON_DAYS)
    )
    assert not made.provisional
    assert made.unconfirmed == 0
    assert f"{day(FIRST + 1):%Y-%m-%d}" <= made.first
    assert made.last < f"{day(FIRST + DAYS - HORIZON_DAYS):%Y-%m-%d}"
    early = recalibrate(release, later, tmp_path / "early", LIMITS, since=day(10))
    assert any(f"made or judged release {release.id} and do not count" in note for note in early.notes)
    assert early.first >= f"{day(FIRST):%Y-%m-%d}"


def test_another_percentile_and_policy_are_taken(release: Release, later: Path, tmp_path: Path) -> None:
    settings = {"draws": 60, "low_percentile": 90.0, "page_percentile": 99.0, "policy": {"k": 1, "n": 2}}
    made = recalibrate(release, later, tmp_path / "out", LIMITS, calibrate=CalibrateParams.model_validate(settings))
    assert made.tiers[1].percentile == 99.0
    assert made.tiers[1].basis == "rows"
    assert (made.policy["k"], made.policy["n"]) == (1, 2)
    new = load_release(made.folder)
    assert new.manifest["params"]["calibrate"]["page_percentile"] == 99.0
    assert new.manifest["params"]["train"] == release.manifest["params"]["train"]
    again = recalibrate(new, later, tmp_path / "again", LIMITS)
    assert again.recalibrated_from == made.id
    assert read_json(again.folder / "calibration.json") == read_json(made.folder / "calibration.json")


def test_without_a_status_table_the_rows_are_validated_here(
    release: Release, later: Path, made: Recalibration, tmp_path: Path
) -> None:
    shutil.copytree(later, tmp_path / "plant/raw")
    alone = recalibrate(release, tmp_path / "plant/raw", tmp_path / "out", LIMITS)
    assert alone.id == made.id
    assert not (tmp_path / "plant/status").exists()


def test_a_status_table_of_other_files_is_not_believed(
    release: Release, later: Path, params: Params, tmp_path: Path
) -> None:
    data_set = moved(later, tmp_path)
    first = day_files(data_set)[0]
    table = read_table(first)
    write_table(first, table.slice(0, table.num_rows - 50))
    rows = rows_of(release, data_set, params)
    assert rows.table.num_rows == sum(read_table(path).num_rows for path in day_files(data_set))


# --- what is refused --------------------------------------------------------------------------------------------------


def constant(later: Path, folder: Path, value: float, machines: set[str]) -> Path:
    """A data set whose rows are all the same, and a status table that calls those of some machines sound."""
    data_set = moved(later, folder)
    for path in day_files(data_set):
        table = read_table(path).drop_columns(["condition"])
        same = spectra_column(np.full((table.num_rows, 32), value, np.float32))
        write_table(path, table.set_column(2, table.schema.field("spectrum"), same))
    status = read_table(folder / "status/validate.parquet")
    told = ["ok" if name in machines else "quarantined" for name in status["machine_id"].to_pylist()]
    index, field = status.column_names.index("status"), status.schema.field("status")
    column = pa.array(told).dictionary_encode().cast(field.type)
    write_table(folder / "status/validate.parquet", status.set_column(index, field, column))
    return data_set


def test_too_few_rows_and_spans_without_any_are_refused(
    built: Path, release: Release, later: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ContractError, match=r"rows after 2025-\S+: got none \(the newest is of \S+\), expected rows later"
    ):
        recalibrate(release, built / "data/raw", tmp_path / "out", LIMITS)
    with pytest.raises(ContractError, match="got none"):
        recalibrate(release, later, tmp_path / "out", LIMITS, since=day(400))
    with pytest.raises(
        ContractError, match=r"healthy rows: got \d+ of \d+ rows in the span \(.*\), expected at least 100"
    ):
        recalibrate(release, later, tmp_path / "out", LIMITS, until=day(FIRST + 0.4))
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == []


def test_scores_that_are_equal_or_not_finite_are_refused(
    release: Release, later: Path, params: Params, tmp_path: Path
) -> None:
    rows = rows_of(release, later, params)
    machines = {str(rows.table["machine_id"][int(np.argmax(rows.healthy_N))])}
    for value, message in ((np.nan, "no finite numbers"), (1.0, "scores, all .*, expected scores that differ")):
        data_set = constant(later, tmp_path / str(value), value, machines)
        with pytest.raises(ContractError, match=rf"scores of \w+: got \d+ .*{message}"):
            recalibrate(release, data_set, tmp_path / "out", LIMITS)
    assert not (tmp_path / "out").exists()


def test_another_number_of_bins_another_kind_and_no_data_set_are_refused(
    release: Release, later: Path, tmp_path: Path
) -> None:
    data_set = moved(later, tmp_path)
    fleet = (data_set / "fleet.yaml").read_text()
    (data_set / "fleet.yaml").write_text("bins: 8\n")
    with pytest.raises(ContractError, match=f"bins: got 8, expected 32 as release {release.id}"):
        recalibrate(release, data_set, tmp_path / "out", LIMITS)
    (data_set / "fleet.yaml").write_text("bins: 32\nkind: features\n")
    with pytest.raises(ContractError, match="kind: got features, expected spectrum"):
        recalibrate(release, data_set, tmp_path / "out", LIMITS)
    (data_set / "fleet.yaml").write_text(fleet)
    (data_set / "snapshot.json").unlink()
    with pytest.raises(ContractError, match=r"data set: got no snapshot\.json, expected a data set that"):
        recalibrate(release, data_set, tmp_path / "out", LIMITS)


def test_a_folder_that_holds_something_is_never_replaced(
    release: Release, later: Path, made: Recalibration, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(ContractError, match="--out: got a folder that is not empty"):
        recalibrate(release, later, tmp_path / "mine", LIMITS)
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"
    shutil.copytree(made.folder, tmp_path / "other")
    with pytest.raises(
        ContractError, match=rf"--out: got another release \({made.id}\), expected a new or empty folder"
    ):
        recalibrate(release, later, tmp_path / "other", LIMITS, until=day(FIRST + 5))
    assert release_id(tmp_path / "other") == made.id


def test_an_interval_of_a_rate_counts_machines_and_not_rows() -> None:
    rng = np.random.default_rng(0)
    machine, hour = np.repeat(np.arange(30), 500), np.tile(np.arange(500), 30)
    calm = rng.exponential(size=15_000)
    loud = calm + 4.0 * (machine < 3)
    found = {}
    for name, scores in (("calm", calm), ("loud", loud)):
        rate, low, high, note = rate_above(scores, 5.0, machine, hour // 24, draws=300, confidence=0.9, seed=1)
        assert note is None
        assert low is not None
        assert high is not None
        assert low < rate < high
        found[name] = (high - low) / rate
    assert found["loud"] > 2 * found["calm"]
    assert rate_above(calm[:40], 9.0, machine[:40], hour[:40] // 24, draws=50, confidence=0.9, seed=1)[3] == (
        "2 machine-days are too few for an interval (20 are needed)."
    )
    rate, low, high, note = rate_above(calm, 99.0, machine, hour // 24, draws=300, confidence=0.9, seed=1)
    assert (rate, low) == (0.0, 0.0)
    assert high is not None
    assert 1e-4 < high < 1e-3
    assert note is not None
    assert note.startswith("No row exceeds: exact bound on")


# --- the command ------------------------------------------------------------------------------------------------------


Run = Any


@pytest.fixture
def run(hearken: Run) -> Run:
    """The command in a folder: exit code, output, errors."""
    return partial(hearken, "recalibrate")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that commands take for a checkout, with a registry of its own."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "params.yaml").write_text("calibrate: {draws: 60, page_percentile: 99.9}\n")
    monkeypatch.setenv("HEARKEN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HEARKEN_DATABASE_URL", raising=False)
    return folder


def test_a_candidate_enters_the_registry_once_and_service_when_asked(
    built: Path, release: Release, later: Path, checkout: Path, run: Run
) -> None:
    settings = Settings.of(checkout)
    engine = open_database(settings.database_url)
    register_release(engine, settings.releases, built / "data/release", commit="abc", branch="build/1")
    span = ("--until", f"{day(FIRST + 6):%Y-%m-%dT%H:%M:%S}")
    code, out, err = run(checkout, release.id[:8], "--data-set", later, *span)
    assert (code, err) == (0, "")
    row = list_releases(engine)[-1]
    assert (row.version, row.state, row.commit) == (2, ReleaseState.CANDIDATE, "abc")
    assert row.note == f"recalibrated from {release.id}"
    assert f"release {row.id} (v2): candidate; to put it into service: hearken releases promote v2" in out
    assert "99.95 → 99.9" in out
    assert re.search(r"\d+ of \d+ rows within 300 min, episodes 150 min apart.* → \d+ of \d+ rows within", out)
    assert load_release(settings.releases / row.id, row.id).manifest["recalibrated_from"] == release.id
    code, out, _ = run(checkout, "v1", "--data-set", later, *span, "--promote", "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["id"], told["version"]) == (row.id, 2)
    assert len(list_releases(engine)) == 2
    serving = in_service(engine)
    assert serving is not None
    assert serving.id == row.id
    assert find_release(engine, "v1").state == ReleaseState.CANDIDATE
    engine.dispose()


def test_what_becomes_of_a_cool_down_is_told(made: Recalibration) -> None:
    bare = made.policy | {"cool_down_us": 0, "no_data_us": None}
    policies = [bare | told for told in ({}, {"cool_down_us": 86_400_000_000}, {"no_data_us": 21_600_000_000})]
    for old in policies:
        for new in policies:
            line = last_lines(replace(made, old_policy=old, policy=new), None, None)[0]
            assert (" → " in line) == (old != new)
    line = last_lines(replace(made, old_policy=policies[0], policy=policies[1]), None, None)[0]
    assert line.endswith("min apart, cool-down 24 h")


def test_outside_of_a_checkout_only_a_folder_is_written(
    built: Path, release: Release, later: Path, tmp_path: Path, run: Run
) -> None:
    arguments = (built / "data/release", "--data-set", later)
    code, out, err = run(tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert "expected a folder with dvc.yaml and params.yaml" in err
    code, out, err = run(tmp_path, *arguments, "--out", tmp_path / "new", "--promote")
    assert code == 2
    assert not (tmp_path / "new").exists()
    code, out, err = run(tmp_path, *arguments, "--out", tmp_path / "new")
    assert (code, err) == (0, "")
    assert release_id(tmp_path / "new") in out
    assert "not in a registry" in out


def test_mistakes_are_one_line_and_exit_code_2(later: Path, checkout: Path, run: Run) -> None:
    for arguments, message in (
        (("nobody", "--data-set", later), "release: got nobody, expected an id or version in the registry"),
        ((later, "--data-set", later), "release: got no manifest.json, expected a release folder"),
        (
            ("v1", "--data-set", later, "--since", "2025-03-01", "--until", "2025-02-01"),
            "expected a time after --since",
        ),
        (
            ("v1", "--data-set", later, "--since", "2025-02-01T00:00", "--until", "2025-02-01T01:00+01:00"),
            "expected a time after --since",
        ),
    ):
        code, out, err = run(checkout, *arguments)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert message in err
