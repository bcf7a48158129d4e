"""landing: every door leads to the same contract; what is wrong is named with its file, line and option."""

from __future__ import annotations

import datetime as dt
import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ContractError
from pipeline.ingest import IngestSummary, ingest
from pipeline.landing import Source, open_source
from pipeline.landing.axes import join_axes
from pipeline.landing.frame import load_frame
from pipeline.landing.places import list_files, place_of
from pipeline.layout import ColumnLayout, SourceLayout
from pipeline.params import IngestParams
from pipeline.schema import load_fleet_spec, spectra_view, time_column
from pipeline.store import day_files, sha256_folder

BINS = 4
COLUMNS = [f"bin_{k:02d}" for k in range(BINS)]


def frame(rows: int = 6, machine: str = "m", day: str = "2024-03-01") -> pd.DataFrame:
    spectra = np.arange(rows)[:, None] + np.arange(BINS) / 8 + 1
    found = pd.DataFrame(spectra, columns=COLUMNS)
    found.insert(0, "machine_id", machine)
    found.insert(1, "timestamp", [f"{day}T{hour:02d}:00:00Z" for hour in range(rows)])
    return found


def csv(found: pd.DataFrame, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    found.to_csv(path, index=False, **options)
    return path


def parquet(found: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pandas(found, preserve_index=False), path)
    return path


def run(source: Path | str, out: Path, layout: dict | None = None, **params: object) -> IngestSummary:
    given = {key: params.pop(key) for key in ("unit", "kind") if key in params}
    stated = None if layout is None else SourceLayout.model_validate(layout)
    return ingest(source, out, IngestParams(**params), horizon_hours=24, tune_share=0.5, layout=stated, **given)


def everything(source: Source) -> pa.Table:
    return pa.concat_tables(
        [table for file in source.files for table in source.tables(file)], promote_options="default"
    )


def only(source: Path, layout: dict | None = None, **given: object) -> tuple[pd.DataFrame, np.ndarray]:
    opened = open_source(source, layout=None if layout is None else SourceLayout.model_validate(layout), **given)
    assert opened.problems == {}
    table = everything(opened)
    spectra = spectra_view(table["spectrum"], table.schema.field("spectrum").type.list_size)
    return table.drop_columns(["spectrum"]).to_pandas(), spectra


# --- forms ---------------------------------------------------------------------------------------------------------


def test_csv_of_every_dress_is_the_same_as_parquet(tmp_path: Path) -> None:
    data = frame().assign(load=[1, 2, 3, 4, 5, 6], condition=["a", "", "b;c", "ü", '"q"', "x,y"])
    typed = data.assign(condition=data.condition.replace("", None))
    parquet(typed, tmp_path / "parquet" / "a.parquet")
    csv(data, tmp_path / "plain" / "a.csv")
    csv(data, tmp_path / "bom" / "a.csv", encoding="utf-8-sig", lineterminator="\r\n")
    csv(data, tmp_path / "german" / "a.csv", sep=";", decimal=",")
    csv(data, tmp_path / "tabs" / "a.tsv", sep="\t")
    csv(data, tmp_path / "gzip" / "a.csv.gz")
    text = (tmp_path / "plain" / "a.csv").read_text()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.csv").write_text("\n\n" + text.replace("\n", "\n\n"))
    renamed = data.rename(columns={"machine_id": "Asset", "timestamp": "Time", "condition": "State"})
    renamed = renamed.rename(columns={name: f"amp {int(name[4:]) * 10 + 9} Hz" for name in COLUMNS})
    csv(renamed[[*reversed(renamed.columns)]], tmp_path / "mapped" / "a.csv")
    columns = {
        "machine_id": "Asset",
        "timestamp": "Time",
        "spectrum": "amp*",
        "context": {"condition": "State", "*": "*"},
    }
    hashes = {}
    for name in ("parquet", "plain", "bom", "german", "tabs", "gzip", "blank", "mapped"):
        layout = {"german": {"decimal": ","}, "mapped": {"columns": columns}}.get(name)
        run(tmp_path / name, tmp_path / "raw" / name, layout)
        hashes[name] = sha256_folder(tmp_path / "raw" / name / "spectra")
    assert len(set(hashes.values())) == 1, hashes


@pytest.mark.parametrize("bins", [8, 4096])
def test_from_8_to_4096_bins(tmp_path: Path, bins: int) -> None:
    values = np.random.default_rng(1).random((3, bins)).astype(np.float32)
    wide = pd.DataFrame(values, columns=[f"bin_{k:04d}" for k in range(bins)])
    wide = wide.assign(machine_id="m", timestamp="2024-01-01")
    for path in (csv(wide, tmp_path / "a.csv"), parquet(wide, tmp_path / "a.parquet")):
        assert np.array_equal(only(path)[1], values)
    lists = pa.table({"Who": ["m"] * 3, "timestamp": ["2024-01-01"] * 3, "psd": values.tolist()})
    pq.write_table(lists, tmp_path / "lists.parquet")
    columns = {"machine_id": "Who", "spectrum": "psd"}
    assert np.array_equal(only(tmp_path / "lists.parquet", {"columns": columns})[1], values)


def test_axes_side_by_side_and_a_row_per_axis_are_the_same(tmp_path: Path) -> None:
    wide = frame().rename(columns=dict(zip(COLUMNS, ["x_1", "x_2", "y_1", "y_2"], strict=True)))
    csv(wide, tmp_path / "wide" / "a.csv")
    keys = wide[["machine_id", "timestamp"]]
    rows = [keys.assign(dir=axis, s1=wide[f"{axis}_1"], s2=wide[f"{axis}_2"]) for axis in ("y", "x")]
    csv(rows[0], tmp_path / "rows" / "y.csv")  # each axis in a file of its own
    csv(rows[1], tmp_path / "rows" / "x.csv")
    run(tmp_path / "wide", tmp_path / "one", {"columns": {"spectrum": {"x": "x_*", "y": "y_*"}}})
    layout = {"columns": {"spectrum": "s*", "axis": "dir"}}
    summary = run(tmp_path / "rows", tmp_path / "two", layout)
    assert sha256_folder(tmp_path / "one" / "spectra") == sha256_folder(tmp_path / "two" / "spectra")
    for out in ("one", "two"):
        spec = load_fleet_spec(tmp_path / out / "fleet.yaml")
        assert (spec.axes, spec.bins, spec.band_name(3)) == (("x", "y"), 4, "y bin 1")
    loaded = load_frame(tmp_path / "rows", layout=SourceLayout.model_validate(layout))
    assert np.array_equal(np.sort(loaded.spectra_NF, axis=0), wide.filter(regex="_").iloc[:, 1:].to_numpy(np.float32))
    assert not any("lack an axis" in warning for warning in summary.warnings)
    csv(rows[1].iloc[2:], tmp_path / "rows" / "x.csv")
    summary = run(tmp_path / "rows", tmp_path / "two", layout)
    assert any(warning.startswith("2 spectra lack an axis") for warning in summary.warnings)
    table = pq.read_table(day_files(tmp_path / "two")[0])
    assert np.isnan(spectra_view(table["spectrum"], 4)).any(1).tolist() == [True, True, False, False, False, False]


def test_an_axis_that_is_not_stated_is_named() -> None:
    spectra = pa.array([[1, 2]], pa.list_(pa.float32(), 2))
    table = pa.table({"machine_id": ["m"], "timestamp": time_column(np.array([0])), "axis": ["z"], "spectrum": spectra})
    with pytest.raises(ContractError, match="axis: got 'z', expected one of x, y"):
        join_axes(table, ("x", "y"), "test")


def test_features_are_any_numeric_columns_and_keep_their_names_and_gaps(tmp_path: Path) -> None:
    text = "Time,Pump,temp_c,pressure,state,label\n2024-01-01,p1,-20.5,,on,0\n2024-01-02,p1,,3,off,1\n"
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "fleet.yaml").write_text(
        "kind: features\nsource:\n  columns: {machine_id: Pump, timestamp: Time}\ntimezone: UTC\n"
    )
    context, values = only(tmp_path)
    assert np.array_equal(values, np.array([[-20.5, np.nan], [np.nan, 3]], np.float32), equal_nan=True)
    assert sorted(context) == ["label", "machine_id", "state", "timestamp"]
    run(tmp_path, tmp_path / "raw")
    spec = load_fleet_spec(tmp_path / "raw" / "fleet.yaml")
    assert (spec.kind, spec.bins, spec.feature_names) == ("features", 2, ("temp_c", "pressure"))
    assert spec.band_name(0) == "temp_c"
    assert spec.source is None  # what ingest wrote is in the form of the contract
    assert load_frame(tmp_path / "raw").bins == 2
    with (tmp_path / "fleet.yaml").open("a") as file:
        file.write("feature_names: [pressure]\nbins: 1\n")
    stated = {"columns": {"machine_id": "Pump", "timestamp": "Time"}, "files": "a.csv"}
    context, values = only(tmp_path, stated)
    assert np.array_equal(values, np.array([[np.nan], [3]], np.float32), equal_nan=True)
    assert "temp_c" in context


# --- machines and times that no column tells -------------------------------------------------------------------------


def test_paths_tell_machine_time_and_context(tmp_path: Path) -> None:
    spectra = frame(1)[COLUMNS]
    for machine, stamp in (("pump 1", "20240301T0600"), ("pump 1", "20240301T0700"), ("up/..", "20240302T0000")):
        csv(spectra, tmp_path / "line A" / f"{machine.replace('/', '_')}-{stamp}.csv")
    layout = {"path": "{line}/{machine_id}-{timestamp}.csv", "timestamp_format": "%Y%m%dT%H%M"}
    context, _ = only(tmp_path, layout, timezone="UTC")
    assert context.machine_id.tolist() == ["pump 1", "pump 1", "up_.."]
    assert context.timestamp.dt.strftime("%d %H").tolist() == ["01 06", "01 07", "02 00"]
    assert set(context.line) == {"line A"}
    csv(spectra, tmp_path / "readme.csv")
    opened = open_source(tmp_path, layout=SourceLayout.model_validate(layout), timezone="UTC")
    assert "expected {line}/{machine_id}-{timestamp}.csv" in opened.problems["readme.csv"]


def test_rows_without_times_are_counted_per_machine_over_files(tmp_path: Path) -> None:
    for number in (1, 2, 10):  # natural order
        csv(frame(2).drop(columns="timestamp").assign(machine_id=["a", "b"]), tmp_path / f"part {number}.csv")
    layout = {"start": dt.datetime(2024, 1, 1, tzinfo=dt.UTC), "interval_seconds": 60}
    opened = open_source(tmp_path, layout=SourceLayout.model_validate(layout))
    last = opened.files[-1]
    assert last.name == "part 10.csv"
    (table,) = opened.tables(last)  # without the files before it having been read
    assert [str(time)[11:16] for time in table["timestamp"].to_pylist()] == ["00:02", "00:02"]
    assert everything(opened)["timestamp"].to_pandas().dt.minute.tolist() == [0, 0, 1, 1, 2, 2]
    single = csv(frame(3).drop(columns=["machine_id", "timestamp"]), tmp_path / "one" / "a.csv")
    context, _ = only(single, layout | {"machine_id": "only"})
    assert (context.machine_id == "only").all()
    assert context.timestamp.dt.minute.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "layout", "message"),
    [
        (lambda f: f.drop(columns="machine_id"), {}, "got no machine_id, .*--map machine_id=COLUMN or --machine NAME"),
        (lambda f: f.drop(columns="timestamp"), {}, "got no timestamp, .*--start with --interval"),
        (lambda f: f.drop(columns="timestamp"), {"start": "2024-01-01"}, "several rows without times.*--interval"),
        (lambda f: f.rename(columns={"machine_id": "timestamp", "timestamp": "machine_id"}), {}, "columns are swapped"),
        (lambda f: f.assign(timestamp="pump a"), {}, r"got 'pump a' in line 2, .*--map"),
        (lambda f: f.assign(timestamp=[*f.timestamp[:5], ""]), {}, "timestamp: got null in line 7"),
        (lambda f: f.assign(machine_id=[*f.machine_id[:4], "", "m"]), {}, "machine_id: got null in line 6"),
        (lambda f: f.assign(bin_02=["1"] * 5 + ["1,5"]), {}, r"bin_02: got text \('1,5'\) in line 7.*decimal"),
        (lambda f: f, {"columns": {"spectrum": "amp_*"}}, "none that fit 'amp_\\*'"),
        (lambda f: f, {"columns": {"context": {"load": "Load"}}}, "no column Load"),
        (lambda f: f, {"columns": {"axis": "dir"}}, "no dir, expected the column of axes"),
        (lambda f: f, {"unit": "furlong"}, None),
    ],
)
def test_what_is_wrong_in_a_csv_is_named_with_its_line_and_option(
    tmp_path: Path, change: object, layout: dict, message: str | None
) -> None:
    path = csv(change(frame()), tmp_path / "a.csv")
    if message is None:  # no unit to convert to: nothing to convert
        assert only(path, layout)[1].shape == (6, BINS)
        return
    with pytest.raises(ContractError, match=message):
        everything_or_problem(path, layout)


def everything_or_problem(path: Path, layout: dict) -> None:
    everything(open_source(path, layout=SourceLayout.model_validate(layout)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got no rows"),
        (b"\n\n", "got no rows"),
        (b"machine_id,timestamp,bin_0\nm,2024-01-01\n", "got 2 values in line 2, expected 3 in every line"),
        (b"machine_id,timestamp,bin_0\nm,2024-01-01,1\nm\xff,2024-01-02,1\n", "not UTF-8 in line 3"),
        ("machine_id,timestamp,bin_0\n".encode("utf-16"), "UTF-16"),
        (b"\x00\x01\x02", "no text"),
        (b"machine_id,machine_id,timestamp,bin_0\nm,m,2024-01-01,1\n", "'machine_id' twice"),
    ],
)
def test_files_that_are_no_csv_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ContractError, match=message):
        everything_or_problem(tmp_path / "a.csv", {})
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(content)[:-4])
    with pytest.raises(ContractError):
        everything_or_problem(tmp_path / "b.csv.gz", {})


def test_hostile_names_come_through(tmp_path: Path) -> None:
    names = ['"><script>', "../../etc", "a\nb", "x" * 300, "насос", "'; DROP TABLE", "=1+1", " blank "]
    rows = frame(len(names)).assign(machine_id=names)
    rows["col,umn; <b>"] = 1
    context, _ = only(csv(rows, tmp_path / "a.csv"))
    assert context.machine_id.tolist() == names
    assert "col,umn; <b>" in context
    run(tmp_path / "a.csv", tmp_path / "raw")
    stored = pq.read_table(day_files(tmp_path / "raw")[0])["machine_id"].to_pylist()
    assert sorted(stored) == sorted(names)


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_many_small_files_in_any_order(tmp_path: Path) -> None:
    header = ",".join(["machine_id", "timestamp", *COLUMNS])
    for number in range(1500):
        folder = tmp_path / "in" / f"{number * 7919 % 13}" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        moment = pd.Timestamp("2024-01-01", tz="UTC") + pd.Timedelta(hours=number)
        text = f"{header}\nm{number % 7},{moment.isoformat()},1,2,3,{number}\n"
        (folder / f"{number * 7907 % 1500}.csv").write_text(text)
    summary = run(tmp_path / "in", tmp_path / "raw")
    assert (summary.rows, summary.machines, summary.set_aside) == (1500, 7, {})
    assert run(tmp_path / "in", tmp_path / "raw").written == 0


def test_what_is_not_data_is_passed_over_and_links_that_leave_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "in"
    csv(frame(), source / "sub" / "a.csv")
    for name in (
        ".hidden.csv",
        ".cache/x.csv",
        "maintenance.csv",
        "corrections.csv",
        "sub/feedback.parquet",
        "sub/maintenance_added.parquet",
        "notes.txt",
    ):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("machine_id,start,end,tag,action,note\n")
    outside = csv(frame(machine="outside"), tmp_path / "outside" / "b.csv")
    (source / "link.csv").symlink_to(outside)
    (source / "folder").symlink_to(outside.parent)
    (source / "inner.csv").symlink_to(source / "sub" / "a.csv")
    os.mkfifo(source / "pipe.csv")
    found, refused = list_files(place_of(source))
    assert [file.name for file in found] == ["inner.csv", "notes.txt", "sub/a.csv"]
    assert sorted(refused) == ["folder", "link.csv"]
    summary = run(source, tmp_path / "raw")
    assert sorted(summary.set_aside) == ["folder", "link.csv"]
    assert summary.machines == 1
    assert any("1 files of other kinds were left out: notes.txt" in warning for warning in summary.warnings)


def test_most_files_decide_and_a_tie_is_an_error(tmp_path: Path) -> None:
    csv(frame(), tmp_path / "a.csv")
    csv(frame().drop(columns="bin_03"), tmp_path / "b.csv")
    with pytest.raises(ContractError, match=r"4 bins of kind spectrum in a\.csv and 0 more, 3 bins"):
        open_source(tmp_path)
    (tmp_path / "fleet.yaml").write_text("bins: 3\n")
    assert "got 4, expected 3" in open_source(tmp_path).problems["a.csv"]
    (tmp_path / "fleet.yaml").unlink()
    csv(frame(), tmp_path / "c.csv")
    opened = open_source(tmp_path)
    assert list(opened.problems) == ["b.csv"]
    assert "number of bins: got 3, expected 4" in opened.problems["b.csv"]


def test_context_that_is_text_in_one_csv_is_text_in_all(tmp_path: Path) -> None:
    csv(frame(2).assign(firmware=["1", "2"], empty=""), tmp_path / "a.csv")
    csv(frame(2, day="2024-03-02").assign(firmware=["2", "2b"], empty=""), tmp_path / "b.csv")
    csv(frame(2, day="2024-03-03").assign(firmware="", empty=""), tmp_path / "c.csv")
    context, _ = only(tmp_path)
    assert context.firmware.tolist() == ["1", "2", "2", "2b", None, None]
    assert "empty" not in context


# --- object stores ---------------------------------------------------------------------------------------------------


def test_a_uri_is_the_same_as_the_folder(tmp_path: Path) -> None:
    source = tmp_path / "in data"
    csv(frame(), source / "spectra" / "a.csv")
    parquet(frame(machine="n"), source / "spectra" / "b.parquet")
    (source / "maintenance.csv").write_text("machine_id,start,end,tag\nm,2024-03-01,2024-03-02,repair\n")
    (source / "fleet.yaml").write_text("bins: 4\ntimezone: UTC\nname: far\n")
    run(source, tmp_path / "one")
    run(source.as_uri(), tmp_path / "two")
    assert sha256_folder(tmp_path / "one") == sha256_folder(tmp_path / "two")


def test_an_object_store_is_listed_and_streamed_like_a_folder(tmp_path: Path) -> None:
    from pyarrow import fs

    from pipeline.landing.places import Place

    csv(frame(), tmp_path / "bucket" / "raw" / "spectra" / "sub" / "a.csv")
    (tmp_path / "bucket" / "raw" / "fleet.yaml").write_text("name: far\n")
    store = fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem())
    place = Place("s3://bucket/raw", store, "raw", is_file=False, local=None)
    found, refused = list_files(place)
    assert [(file.name, file.below) for file in found] == [("spectra/sub/a.csv", "sub/a.csv")]
    assert refused == {}
    assert place.beside("fleet.yaml") == ("fleet.yaml", b"name: far\n")
    assert place.open(found[0].name).readline().startswith(b"machine_id")
    assert place.where(found[0].name) == "s3://bucket/raw/spectra/sub/a.csv"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:sEcReT%2F1@bucket/raw?endpoint_override=127.0.0.1:9&scheme=http&region=x",
        "what://user:sEcReT@host/x",
        "s3://",
        "gs://KEY:sEcReT@",
    ],
)
def test_a_store_that_cannot_be_reached_is_one_message_without_credentials(uri: str) -> None:
    with pytest.raises(ContractError, match="source: got nothing that can be reached") as caught:
        open_source(uri)
    message = str(caught.value)
    assert "\n" not in message
    assert not any(secret in message for secret in ("sEcReT", "KEY", "endpoint_override"))


# --- plausibility and units ------------------------------------------------------------------------------------------


def test_a_file_a_thousand_times_the_others_is_told(tmp_path: Path) -> None:
    for day in range(1, 6):
        factor = 1000 if day == 3 else 1
        found = frame(day=f"2024-03-{day:02d}")
        csv(found.assign(**{name: found[name] * factor for name in COLUMNS}), tmp_path / "in" / f"{day}.csv")
    warnings = run(tmp_path / "in", tmp_path / "raw").warnings
    assert "3.csv: numbers are 1,000 times those of other files: they seem to be in mg, the others in g" in warnings
    found = frame(machine="odd")
    csv(found.assign(**{name: found[name] / 1000 for name in COLUMNS}), tmp_path / "two" / "odd.csv")
    for name in ("a", "b", "c"):
        csv(frame(machine=name), tmp_path / "two" / f"{name}.csv")
    (message,) = [text for text in run(tmp_path / "two", tmp_path / "raw2").warnings if "numbers are" in text]
    assert message.startswith("machine odd: numbers are 1/1,000 of those of the fleet")


def test_a_sound_fleet_with_loud_and_still_machines_is_not_suspected(tmp_path: Path) -> None:
    for number, factor in enumerate((0.02, 1, 1, 3, 90)):
        found = frame(machine=f"m{number}")
        csv(found.assign(**{name: found[name] * factor for name in COLUMNS}), tmp_path / "in" / f"{number}.csv")
    assert not any("numbers are" in warning for warning in run(tmp_path / "in", tmp_path / "raw").warnings)


def test_units_are_converted_and_written(tmp_path: Path) -> None:
    path = csv(frame(), tmp_path / "in" / "a.csv")
    run(tmp_path / "in", tmp_path / "raw", {"unit": "in/s"}, unit="mm/s")
    table = pq.read_table(day_files(tmp_path / "raw")[0])
    assert np.allclose(spectra_view(table["spectrum"], BINS), frame()[COLUMNS].to_numpy() * 25.4)
    assert load_fleet_spec(tmp_path / "raw" / "fleet.yaml").unit == "mm/s"
    with pytest.raises(ContractError, match="expected a unit of velocity"):
        run(tmp_path / "in", tmp_path / "raw", {"unit": "g"}, unit="mm/s")
    with pytest.raises(ContractError, match="kind: features"):
        only(path, {"unit": "degF"}, unit="degC")
    _, values = only(path, {"unit": "degF"}, unit="degC", kind="features")
    assert values[0, 0] == pytest.approx((1 - 32) / 1.8, rel=1e-5)


def test_the_layout_of_columns_has_no_unknown_key() -> None:
    with pytest.raises(ValueError, match="extra"):
        ColumnLayout(spectra="x")
