"""ingest: every accepted form gives the same contract; bad input leaves no trace; doing it again changes nothing."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ContractError
from pipeline.ingest import IngestSummary, ingest
from pipeline.landing.frame import load_frame
from pipeline.params import IngestParams, SimulateParams, SplitParams
from pipeline.schema import MAINTENANCE_SCHEMA, load_fleet_spec, spectra_view, times_us
from pipeline.simulate import simulate
from pipeline.store import day_files, read_table, sha256_folder

BINS = 8
FLEET = SimulateParams(machines=3, days=4, interval_seconds=1800, bins=BINS, failures=2, mislabelled_share=0, seed=5)


def run(source: Path, out: Path, horizon_hours: float = 24.0, **params: object) -> IngestSummary:
    return ingest(source, out, IngestParams(**params), horizon_hours=horizon_hours, tune_share=0.5)


def wide(rows: int = 12, **columns: object) -> pd.DataFrame:
    """Two machines, unsorted, over two days; bin k of row n is n + k / 100."""
    spectra = np.arange(rows)[:, None] + np.arange(BINS) / 100
    frame = pd.DataFrame(spectra.astype(np.float32), columns=[f"bin_{k:02d}" for k in range(BINS)])
    begin = pd.Timestamp("2024-03-01T18:00")
    frame.insert(0, "machine_id", ["pump/b", "pump a"] * (rows // 2))
    frame.insert(1, "timestamp", [begin + pd.Timedelta(hours=rows - n) for n in range(rows)])
    return frame.assign(**columns)


def write(frame: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path)
    return path


def snapshot(out: Path) -> tuple[pa.Table, np.ndarray]:
    table = pa.concat_tables([pq.read_table(path) for path in day_files(out)], promote_options="permissive")
    return table, spectra_view(table.unify_dictionaries()["spectrum"], BINS)


# --- forms ---------------------------------------------------------------------------------------------------------


def test_wide_rows_are_split_by_day_sorted_and_keep_their_spectra(tmp_path: Path) -> None:
    source = write(wide(load=np.arange(12.0), condition=["x", None] * 6), tmp_path / "in.parquet")
    summary = run(source, tmp_path / "raw")
    assert (summary.rows, summary.machines, summary.bins, summary.days) == (12, 2, BINS, 2)
    assert [path.stem for path in day_files(tmp_path / "raw")] == ["2024-03-01", "2024-03-02"]
    for path in day_files(tmp_path / "raw"):
        table = pq.read_table(path)
        keys = list(zip(table["machine_id"].to_pylist(), times_us(table["timestamp"]).tolist(), strict=True))
        assert keys == sorted(keys)
        assert {moment.date().isoformat() for moment in table["timestamp"].to_pylist()} == {path.stem}
        assert table.schema.field("spectrum").type == pa.list_(pa.float32(), BINS)
        assert pa.types.is_dictionary(table.schema.field("condition").type)
        spectra = spectra_view(table["spectrum"], BINS)
        expected = table["load"].to_numpy()[:, None] + np.arange(BINS) / 100  # the row's own number was its load
        assert np.allclose(spectra, expected, atol=1e-6)


def test_every_form_gives_the_same_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = wide()
    write(frame, tmp_path / "one" / "all.parquet")
    write(frame.iloc[:5], tmp_path / "two" / "b.parquet")
    write(frame.iloc[5:].assign(machine_id=lambda f: f.machine_id.astype("category")), tmp_path / "two" / "a.parquet")
    lists = pa.table(
        {
            "machine_id": frame.machine_id.to_list(),
            "timestamp": pa.array(frame.timestamp.dt.tz_localize("UTC")),
            "spectrum": pa.array(frame.filter(like="bin_").to_numpy().astype(float).tolist()),  # list<double>
        }
    )
    (tmp_path / "lists" / "spectra").mkdir(parents=True)
    pq.write_table(lists, tmp_path / "lists" / "spectra" / "any name.parquet")
    for name in ("one", "two", "lists"):
        run(tmp_path / name, tmp_path / "raw" / name)
    monkeypatch.setattr("pipeline.ingest.BUFFER_BYTES", 1)  # every batch goes through the disk
    run(tmp_path / "two", tmp_path / "raw" / "spilled")
    hashes = {name: sha256_folder(tmp_path / "raw" / name / "spectra") for name in ("one", "two", "lists", "spilled")}
    assert len(set(hashes.values())) == 1, hashes


def test_feature_columns_become_a_fleet_of_kind_features(tmp_path: Path) -> None:
    frame = wide().rename(columns={f"bin_{k:02d}": f"f_{k:03d}" for k in range(BINS)})
    source = write(frame, tmp_path / "in.parquet")
    run(source, tmp_path / "raw")
    spec = load_fleet_spec(tmp_path / "raw" / "fleet.yaml")
    assert (spec.kind, spec.bins) == ("features", BINS)
    assert load_frame(source).kind == "features"


def test_a_data_set_keeps_its_description_log_and_truth(tmp_path: Path) -> None:
    simulate(FLEET, tmp_path / "demo")
    summary = run(tmp_path / "demo", tmp_path / "raw")
    assert summary.warnings == ()
    assert summary.failures == 2
    for name in ("maintenance.parquet", "truth.parquet"):
        assert read_table(tmp_path / "raw" / name).num_rows == read_table(tmp_path / "demo" / name).num_rows > 0
    assert load_fleet_spec(tmp_path / "raw" / "fleet.yaml") == load_fleet_spec(tmp_path / "demo" / "fleet.yaml")
    ours, theirs = snapshot(tmp_path / "raw"), snapshot(tmp_path / "demo")
    assert np.array_equal(ours[1], theirs[1])
    facts = json.loads((tmp_path / "raw" / "snapshot.json").read_text())
    assert (facts["rows"], facts["machines"], facts["bins"], len(facts["days"])) == (3 * 4 * 48, 3, BINS, 4)


def test_load_frame_keeps_the_order_of_the_rows(tmp_path: Path) -> None:
    frame = wide(label=np.arange(12) % 2)
    loaded = load_frame(write(frame, tmp_path / "in.parquet"), "Europe/Berlin")
    assert np.array_equal(loaded.spectra_NF, frame.filter(like="bin_").to_numpy())
    assert loaded.context.machine_id.tolist() == frame.machine_id.tolist()
    assert loaded.context.label.tolist() == frame.label.tolist()
    assert loaded.context.timestamp[0] == frame.timestamp[0].tz_localize("Europe/Berlin")
    assert loaded.warnings == ()


# --- again ---------------------------------------------------------------------------------------------------------


def test_again_changes_nothing_a_changed_day_alone_is_written_and_a_lost_day_removed(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    simulate(FLEET, tmp_path / "demo")
    assert run(tmp_path / "demo", raw).written == 4
    before = {path.name: path.stat().st_mtime_ns for path in [*day_files(raw), *raw.glob("*.*")]}
    again = run(tmp_path / "demo", raw)
    assert (again.written, again.deleted) == (0, 0)
    assert {path.name: path.stat().st_mtime_ns for path in [*day_files(raw), *raw.glob("*.*")]} == before

    days = day_files(tmp_path / "demo")
    table = pq.read_table(days[1])
    pq.write_table(table.slice(1), days[1])
    days[3].unlink()
    day_files(raw)[0].write_bytes(b"damaged")
    summary = run(tmp_path / "demo", raw)
    assert (summary.written, summary.deleted, summary.days) == (2, 1, 3)
    assert [path.name for path in day_files(raw)] == [path.name for path in days[:3]]
    run(tmp_path / "demo", tmp_path / "fresh")
    assert sha256_folder(raw) == sha256_folder(tmp_path / "fresh")


def test_a_failure_keeps_its_id_and_role_when_its_start_is_corrected(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write(wide(), source / "rows.parquet")

    def log(start: str, *, other: bool = False) -> None:
        entries = [("pump a", start, start, "failure", "bearing", "")]
        entries += [("pump/b", "2024-03-02T01:00Z", "2024-03-02T02:00Z", "failure", "", "")] if other else []
        frame = pd.DataFrame(entries, columns=MAINTENANCE_SCHEMA.names)
        frame.to_csv(source / "maintenance.csv", index=False)

    log("2024-03-02T03:00Z")
    ingest(source, tmp_path / "raw", IngestParams(), horizon_hours=24, tune_share=1.0)
    (first,) = read_table(tmp_path / "raw" / "failures.parquet").to_pylist()
    assert (first["role"], len(first["failure_id"]), first["failure_mode"]) == ("tune", 12, "bearing")
    log("2024-03-02T05:00Z", other=True)
    ingest(source, tmp_path / "raw", IngestParams(), horizon_hours=24, tune_share=0.0)
    both = {row["machine_id"]: row for row in read_table(tmp_path / "raw" / "failures.parquet").to_pylist()}
    assert both["pump a"]["failure_id"] == first["failure_id"]
    assert both["pump a"]["role"] == "tune"  # once seen, for ever
    assert both["pump a"]["time"] == dt.datetime(2024, 3, 2, 5, tzinfo=dt.UTC)
    assert both["pump/b"]["role"] == "test"
    log("2024-03-04T06:00Z")
    ingest(source, tmp_path / "raw", IngestParams(), horizon_hours=24, tune_share=0.0)
    (moved,) = read_table(tmp_path / "raw" / "failures.parquet").to_pylist()
    assert moved["failure_id"] != first["failure_id"]  # beyond the horizon it is another failure


def test_failures_of_unseen_machines_are_always_tested(tmp_path: Path) -> None:
    simulate(FLEET, tmp_path / "demo")
    ingest(tmp_path / "demo", tmp_path / "raw", IngestParams(), horizon_hours=24, tune_share=1.0, unseen_share=0.99)
    assert set(read_table(tmp_path / "raw" / "failures.parquet")["role"].to_pylist()) == {"test"}


# --- labels --------------------------------------------------------------------------------------------------------


def test_runs_of_labels_become_a_log(tmp_path: Path) -> None:
    labels = [0, 0, 1, 1, -1, 0, 1, 0]
    frame = wide(8).assign(machine_id="m", timestamp=pd.date_range("2024-01-01", periods=8, freq="h"))
    frame = frame.assign(
        label=np.array(labels, np.int8), fault_type=["none", "none", "x", "y", "x", "none", "z", "none"]
    )
    frame = frame.sample(frac=1, random_state=1)  # the order of the file says nothing
    run(write(frame, tmp_path / "in.parquet"), tmp_path / "raw", label_column="label")
    log = read_table(tmp_path / "raw" / "maintenance.parquet").to_pylist()
    found = [(row["tag"], row["start"].hour, row["end"].hour, row["failure_mode"]) for row in log]
    assert found == [
        ("healthy", 0, 1, None),
        ("failure", 3, 3, "y"),
        ("healthy", 5, 5, None),
        ("failure", 6, 6, "z"),
        ("healthy", 7, 7, None),
    ]


def test_without_a_log_or_label_setting_it_says_so(tmp_path: Path) -> None:
    summary = run(write(wide(label=0), tmp_path / "in.parquet"), tmp_path / "raw")
    assert any("no maintenance log" in warning for warning in summary.warnings)
    assert any("set ingest.label_column" in warning for warning in summary.warnings)
    assert read_table(tmp_path / "raw" / "failures.parquet").num_rows == 0


# --- times ---------------------------------------------------------------------------------------------------------


def first_time(out: Path) -> dt.datetime:
    return min(pq.read_table(day_files(out)[0])["timestamp"].to_pylist())


def test_the_zone_is_the_settings_then_the_fleets_then_utc_with_a_warning(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write(wide(), source / "rows.parquet")
    assert any("taken as UTC" in warning for warning in run(source, tmp_path / "utc").warnings)
    (source / "fleet.yaml").write_text(f"bins: {BINS}\ntimezone: Asia/Tokyo\n")
    assert not any("UTC" in warning for warning in run(source, tmp_path / "tokyo").warnings)
    run(source, tmp_path / "berlin", timezone="Europe/Berlin", time="relative")
    assert first_time(tmp_path / "utc") - first_time(tmp_path / "tokyo") == dt.timedelta(hours=9)
    assert first_time(tmp_path / "utc") - first_time(tmp_path / "berlin") == dt.timedelta(hours=1)
    spec = load_fleet_spec(tmp_path / "berlin" / "fleet.yaml")
    assert (spec.timezone, spec.time) == ("Europe/Berlin", "relative")


def test_clock_changes_are_settled_the_same_way_each_time(tmp_path: Path) -> None:
    local = ["2024-10-27 02:30", "2024-10-27 03:30", "2024-03-31 02:30", "2024-07-01 00:00"]
    frame = wide(4).assign(machine_id="m", timestamp=pd.to_datetime(local))
    summary = run(write(frame, tmp_path / "in.parquet"), tmp_path / "raw", timezone="Europe/Berlin")
    table, _ = snapshot(tmp_path / "raw")
    found = [moment.strftime("%m-%d %H:%M") for moment in table["timestamp"].to_pylist()]
    assert found == ["03-31 01:00", "06-30 22:00", "10-27 00:30", "10-27 02:30"]
    assert any(warning.startswith("1 local times are ambiguous") for warning in summary.warnings)
    assert any(warning.startswith("1 local times do not exist") for warning in summary.warnings)


def test_text_times_with_and_without_offset(tmp_path: Path) -> None:
    text = ["2024-01-01T12:00:00+02:00", "2024-01-01T12:00:00Z", "2024-01-01 12:00", "2024-01-01"]
    frame = wide(4).assign(machine_id="m", timestamp=text)
    run(write(frame, tmp_path / "in.parquet"), tmp_path / "raw", timezone="Asia/Tokyo")
    table, _ = snapshot(tmp_path / "raw")
    assert sorted(moment.strftime("%d %H") for moment in table["timestamp"].to_pylist()) == [
        "01 03",
        "01 10",
        "01 12",
        "31 15",
    ]


# --- the log -------------------------------------------------------------------------------------------------------

CSV_HEAD = "machine_id,start,end,tag,failure_mode,note\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("m,2024-01-02,2024-01-01,repair,,", "end: got a time before start.*line 3"),
        ("m,2024-01-01,2024-01-02,mended,,", "tag: got 'mended'.*line 3"),
        (",2024-01-01,2024-01-02,repair,,", "machine_id: got nothing.*line 3"),
        ("m,yesterday,2024-01-02,repair,,", "start: got 'yesterday'.*line 3"),
        ("m,2024-01-01,2024-01-02,repair,,,,more", "the line: got 8 values.*line 3"),
    ],
)
def test_a_wrong_line_of_the_log_is_named(tmp_path: Path, line: str, message: str) -> None:
    write(wide(), tmp_path / "in" / "rows.parquet")
    good = "m,2024-01-01,2024-01-02,repair,,\n"
    (tmp_path / "in" / "maintenance.csv").write_text(CSV_HEAD + good + line + "\n")
    with pytest.raises(ContractError, match=message):
        run(tmp_path / "in", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_log_of_another_programme_is_read(tmp_path: Path) -> None:
    write(wide(), tmp_path / "in" / "rows.parquet")
    text = "\ufeffend,tag,start,machine_id\r\n2024-03-02 10:00,repair,2024-03-02T09:00+01:00,pump a\r\n\r\n"
    (tmp_path / "in" / "maintenance.csv").write_text(text, encoding="utf-8")
    run(tmp_path / "in", tmp_path / "raw")
    (entry,) = read_table(tmp_path / "raw" / "maintenance.parquet", schema=MAINTENANCE_SCHEMA).to_pylist()
    assert (entry["start"].hour, entry["end"].hour, entry["note"]) == (8, 10, None)


# --- sampling ------------------------------------------------------------------------------------------------------


def test_sampling_keeps_whole_hours_and_every_horizon(tmp_path: Path) -> None:
    simulate(FLEET.model_copy(update={"days": 10}), tmp_path / "demo")
    summary = run(tmp_path / "demo", tmp_path / "raw", horizon_hours=12, max_rows=500)
    full, _ = snapshot(tmp_path / "demo")
    kept, _ = snapshot(tmp_path / "raw")
    assert 350 < kept.num_rows <= 500 < full.num_rows
    assert any("sampled to" in warning for warning in summary.warnings)
    frame, sample = (table.drop_columns(["spectrum"]).to_pandas() for table in (full, kept))
    key = ["machine_id", "timestamp"]
    frame["kept"] = frame.set_index(key).index.isin(sample.set_index(key).index)
    frame["horizon"] = False
    for failure in read_table(tmp_path / "raw" / "failures.parquet").to_pylist():
        age = failure["time"] - frame.timestamp
        near = (age >= pd.Timedelta(0)) & (age <= pd.Timedelta(hours=12))
        frame["horizon"] |= near & (frame.machine_id == failure["machine_id"])
    assert frame.horizon.any()
    assert frame.kept[frame.horizon].all()
    rest = frame[~frame.horizon]
    assert set(rest.kept.groupby(rest.timestamp.dt.floor("h")).mean()) == {0.0, 1.0}  # an hour is kept whole or not


def seen_each_ten_seconds(machines: int = 2, hours: int = 48) -> pd.DataFrame:
    """Rows of every ten seconds, of machines that are heard at the same times."""
    times = pd.date_range("2024-03-01", periods=hours * 360, freq="10s")
    frame = pd.DataFrame(
        np.ones((machines * len(times), BINS), np.float32), columns=[f"bin_{k:02d}" for k in range(BINS)]
    )
    frame.insert(0, "machine_id", np.repeat([f"m{code}" for code in range(machines)], len(times)))
    frame.insert(1, "timestamp", np.tile(times, machines))
    return frame


def test_a_sample_that_trains_has_single_minutes_of_the_training_span_beside_whole_hours(tmp_path: Path) -> None:
    write(seen_each_ten_seconds(), tmp_path / "in" / "rows.parquet")
    params, sizes = IngestParams(max_rows=9_000, looks_share=0.4), {"horizon_hours": 24.0, "tune_share": 0.5}
    split = SplitParams(train_share=0.5)
    summary = ingest(tmp_path / "in", tmp_path / "raw", params, **sizes, trains=split)
    assert 8_900 < summary.rows <= 9_000
    assert any("single minutes that train" in warning for warning in summary.warnings)
    kept = snapshot(tmp_path / "raw")[0].drop_columns(["spectrum"]).to_pandas()
    by_hour = kept.groupby(kept.timestamp.dt.floor("h")).size()
    whole = by_hour[by_hour == 2 * 360]
    assert len(whole) == 9_000 * 0.6 // 720
    single = kept[~kept.timestamp.dt.floor("h").isin(whole.index)]
    assert single.timestamp.max() < pd.Timestamp("2024-03-02", tz="UTC"), "nothing is judged by lone minutes"
    assert set(single.groupby(single.timestamp.dt.floor("min")).size()) == {2 * 6}
    assert single.timestamp.dt.floor("h").nunique() > 12, "minutes are spread over the training span"
    alone = ingest(tmp_path / "in", tmp_path / "hours", params, **sizes)
    frame = snapshot(tmp_path / "hours")[0].drop_columns(["spectrum"]).to_pandas()
    assert set(frame.groupby(frame.timestamp.dt.floor("h")).size()) == {2 * 360}
    assert alone.rows == 9_000 // 720 * 720, "where nothing trains only hours are kept"


def test_minutes_end_with_each_machine_s_own_training(tmp_path: Path) -> None:
    frame = seen_each_ten_seconds(hours=40)
    late = frame.timestamp >= pd.Timestamp("2024-03-01T20:00")
    write(frame[(frame.machine_id == "m0") | ~late], tmp_path / "in" / "rows.parquet")  # m1 runs for 20 hours
    params, split = IngestParams(max_rows=8_000), SplitParams(train_share=0.5, boundaries="machine")
    ingest(tmp_path / "in", tmp_path / "raw", params, horizon_hours=24.0, tune_share=0.5, trains=split)
    kept = snapshot(tmp_path / "raw")[0].drop_columns(["spectrum"]).to_pandas()
    by_hour = kept.groupby(["machine_id", kept.timestamp.dt.floor("h")], observed=True).size()
    last = by_hour[by_hour < 360].reset_index().groupby("machine_id", observed=True).timestamp.max()
    ten, twenty = (pd.Timestamp(f"2024-03-01T{hour}:00", tz="UTC") for hour in (10, 20))
    assert last["m1"] < ten <= last["m0"] < twenty


# --- bad input -----------------------------------------------------------------------------------------------------


def cut_in_half(path: Path) -> None:
    write(wide(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged_inside(path: Path) -> None:
    write(wide(2000), path)
    content = bytearray(path.read_bytes())
    content[200 : len(content) // 2] = b"\0" * (len(content) // 2 - 200)
    path.write_bytes(bytes(content))


def lists(values: list[list[float] | None]) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        times = pa.array([dt.datetime(2024, 1, 1)] * len(values))
        pq.write_table(pa.table({"machine_id": ["m"] * len(values), "timestamp": times, "spectrum": values}), path)

    return build


def frame_of(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        write(change(wide()), path)

    return build


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no machine": (frame_of(lambda f: f.drop(columns="machine_id")), "columns: got no machine_id, expected"),
    "no time": (frame_of(lambda f: f.drop(columns="timestamp")), "columns: got no timestamp, expected"),
    "no spectra": (frame_of(lambda f: f[["machine_id", "timestamp"]]), "columns: got no spectra, expected"),
    "a missing bin": (frame_of(lambda f: f.drop(columns="bin_03")), "bins: got no column for bin 3, expected 0 to 7"),
    "too few bins": (frame_of(lambda f: f.drop(columns="bin_07")), r"number of bins: got 7, expected 8.*fleet\.yaml"),
    "text in a number": (frame_of(lambda f: f.assign(bin_02=["1.5"] * 11 + ["n/a"])), r"bin_02: got text \('n/a'\)"),
    "truth values": (frame_of(lambda f: f.assign(bin_02=True)), "type of bin_02: got bool, expected numbers"),
    "no rows": (frame_of(lambda f: f.iloc[:0]), "no rows"),
    "null machine": (frame_of(lambda f: f.assign(machine_id=["m"] * 11 + [None])), "machine_id: got null in row 11"),
    "null time": (frame_of(lambda f: f.assign(timestamp=[*f.timestamp[:11], pd.NaT])), "timestamp: got null in row 11"),
    "numbers as time": (frame_of(lambda f: f.assign(timestamp=range(12))), "type of timestamp: got int64"),
    "text as time": (frame_of(lambda f: f.assign(timestamp="soon")), "timestamp: got 'soon' in row 0"),
    "numbers as machine": (frame_of(lambda f: f.assign(machine_id=0.5)), "type of machine_id: got double"),
    "ragged lists": (lists([[1.0] * 8, [1.0] * 7]), "spectrum: got 7 values in row 1, expected 8"),
    "null list": (lists([[1.0] * 8, None]), "spectrum: got null in row 1"),
    "cut in half": (cut_in_half, "cut off or no Parquet"),
    "damaged inside": (damaged_inside, "got "),
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_file_is_one_message_and_no_output(tmp_path: Path, name: str) -> None:
    build, message = BAD[name]
    source = tmp_path / "in"
    source.mkdir()
    (source / "fleet.yaml").write_text(f"bins: {BINS}\n")
    build(source / "bad.parquet")
    with pytest.raises(ContractError, match=message) as caught:
        run(source, tmp_path / "raw")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]  # no folder, no spill, no half of anything


@pytest.mark.parametrize("name", [name for name in BAD if name != "no rows"])
def test_a_bad_file_among_good_ones_is_set_aside_with_its_error(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, message = BAD[name]
    source = tmp_path / "in"
    write(wide(), source / "a good file.parquet")
    write(wide(), tmp_path / "good" / "a good file.parquet")
    write(wide().assign(machine_id="other"), source / "z.parquet")
    write(wide().assign(machine_id="other"), tmp_path / "good" / "z.parquet")
    build(source / "bad.parquet")
    monkeypatch.setattr("pipeline.ingest.BUFFER_BYTES", 1)  # rows of the bad file reach the disk before it breaks
    summary = run(source, tmp_path / "raw")
    assert re.search(message.replace(r".*fleet\.yaml", ""), summary.set_aside["bad.parquet"])
    assert any("1 files were set aside" in warning for warning in summary.warnings)
    run(tmp_path / "good", tmp_path / "expected")
    assert sha256_folder(tmp_path / "raw" / "spectra") == sha256_folder(tmp_path / "expected" / "spectra")
    facts = json.loads((tmp_path / "raw" / "snapshot.json").read_text())
    assert [entry["file"] for entry in facts["set_aside"]] == ["bad.parquet"]


def test_a_file_that_breaks_in_the_middle_leaves_no_row_and_no_label(tmp_path: Path) -> None:
    frame = wide(12, label=1)
    source = tmp_path / "in"
    write(frame.assign(machine_id="good", label=0), source / "a.parquet")
    rows = frame.assign(machine_id="broken")
    text = rows.to_csv(index=False).splitlines()
    many = [*text[:1], *(text[1:] * 30_000)]  # several blocks of text
    many[-1] = many[-1].replace(",1", ",x", 1)
    (source / "b.csv").write_text("\n".join(many))
    summary = run(source, tmp_path / "raw", label_column="label", max_rows=100)
    assert list(summary.set_aside) == ["b.csv"]
    assert f"in line {len(many)}" in summary.set_aside["b.csv"]
    assert (summary.rows, summary.machines, summary.failures) == (12, 1, 0)


def test_where_every_file_is_wrong_an_earlier_snapshot_stays_as_it_was(tmp_path: Path) -> None:
    simulate(FLEET, tmp_path / "demo")
    run(tmp_path / "demo", tmp_path / "raw")
    before = sha256_folder(tmp_path / "raw")
    for day in day_files(tmp_path / "demo"):
        day.write_bytes(day.read_bytes()[:-100])
    with pytest.raises(ContractError, match=r"All 4 files .* are wrong"):
        run(tmp_path / "demo", tmp_path / "raw")
    assert sha256_folder(tmp_path / "raw") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "raw"]


@pytest.mark.parametrize(
    ("change", "params", "message"),
    [
        ({}, {"timezone": "Mars/Olympus"}, "timezone: got 'Mars/Olympus', expected an IANA name"),
        ({}, {"timezone": "../etc/passwd"}, "timezone: got"),
        ({}, {"label_column": "lable"}, "label_column: got no column lable"),
        ({"label": 2}, {"label_column": "label"}, "label: got 2.0, expected 1 faulty, 0 healthy, -1 unknown"),
        ({"label": "ill"}, {"label_column": "label"}, "type of label"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, change: dict, params: dict, message: str) -> None:
    source = write(wide().assign(**change), tmp_path / "in.parquet")
    with pytest.raises(ContractError, match=message):
        run(source, tmp_path / "raw", **params)
    assert not (tmp_path / "raw").exists()


def test_an_empty_or_missing_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ContractError, match="got no Parquet file"):
        run(tmp_path / "empty", tmp_path / "raw")
    with pytest.raises(ContractError, match="got no such file or folder"):
        run(tmp_path / "nowhere", tmp_path / "raw")


def test_files_may_differ_in_context_but_not_in_its_type(tmp_path: Path) -> None:
    write(wide(4), tmp_path / "in" / "a.parquet")
    write(wide(4, load=1.5), tmp_path / "in" / "b.parquet")
    run(tmp_path / "in", tmp_path / "raw")
    assert sorted(snapshot(tmp_path / "raw")[0]["load"].to_pylist(), key=str) == [1.5] * 4 + [None] * 4
    write(wide(4, load="heavy"), tmp_path / "in" / "c.parquet")
    with pytest.raises(ContractError, match="differ between files"):
        run(tmp_path / "in", tmp_path / "raw")


def test_as_stages_they_write_the_graphs_folders_and_a_mistake_is_one_line(tmp_path: Path) -> None:
    settings = "machines: 2\n  days: 3\n  interval_seconds: 3600\n  bins: 8\n  failures: 1"
    (tmp_path / "params.yaml").write_text(f"simulate:\n  {settings}\n")

    def stage(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"pipeline.{name}"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert stage("simulate").returncode == 0
    assert stage("ingest").returncode == 0
    assert {"fleet.yaml", "failures.parquet", "snapshot.json"} <= {
        path.name for path in (tmp_path / "data/raw").iterdir()
    }
    before = sha256_folder(tmp_path / "data/raw")
    for cut in day_files(tmp_path / "data/demo"):
        cut.write_bytes(cut.read_bytes()[:1000])
    failed = stage("ingest")
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: Parquet: got a file that is cut off")
    assert failed.stderr.count("\n") == 1
    assert sha256_folder(tmp_path / "data/raw") == before


# --- real recordings -----------------------------------------------------------------------------------------------


def real_data(name: str) -> Path:
    stated = os.environ.get("HEARKEN_REAL_DATA")
    folder = Path(stated) if stated else Path(__file__).parents[2] / "shared" / "data"
    if not (folder / name).exists():
        reason = f"got no {folder / name}, expected the public recordings there (HEARKEN_REAL_DATA)"
        pytest.fail(reason) if stated else pytest.skip(reason)
    return folder / name


@pytest.mark.parametrize(("name", "kind", "failures"), [("femto_h", "spectrum", 6), ("skab", "features", None)])
def test_real_recordings(tmp_path: Path, name: str, kind: str, failures: int | None) -> None:
    source = real_data(f"{name}.parquet")
    summary = run(source, tmp_path / "raw", label_column="label", time="relative", timezone="UTC")
    frame = pd.read_parquet(source)
    assert summary.rows == len(frame)
    assert summary.machines == frame.machine_id.nunique()
    assert load_fleet_spec(tmp_path / "raw" / "fleet.yaml").kind == kind
    if failures is not None:
        stored = read_table(tmp_path / "raw" / "failures.parquet").to_pylist()
        assert len(stored) == failures
        last = frame[frame.label == 1].groupby("machine_id").timestamp.max().dt.tz_localize("UTC")
        assert {row["machine_id"]: row["time"] for row in stored} == last.to_dict()


def test_params_yaml_says_what_no_option_does(tmp_path: Path, hearken: Callable[..., tuple[int, str, str]]) -> None:
    source = tmp_path / "rows.csv"
    lines = [f"a,2025-01-01T{hour:02}:00:00Z,{hour + 1},2" for hour in range(24)]
    source.write_text("\n".join(["machine_id,timestamp,bin_00,bin_01", *lines]) + "\n")
    (tmp_path / "params.yaml").write_text("ingest: {time: relative}\n")
    assert hearken("ingest", tmp_path, source, "--out", tmp_path / "as-told")[0] == 0
    assert load_fleet_spec(tmp_path / "as-told/fleet.yaml").time == "relative"
    assert hearken("ingest", tmp_path, source, "--out", tmp_path / "asked", "--time", "absolute")[0] == 0
    assert load_fleet_spec(tmp_path / "asked/fleet.yaml").time == "absolute"
    code, _, errors = hearken("ingest", tmp_path, source, "--out", source / "below")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "rows.csv" in errors
