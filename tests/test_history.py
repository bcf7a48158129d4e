"""One machine's history: figures, spectra and page agree with the log and the uploads, in both layouts of a log."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from plotly.offline import get_plotlyjs
from sqlalchemy.orm import Session

from flows.database import open_database
from flows.history_command import alerts_of_database
from flows.service.tables import Alert, Answer, Standing
from pipeline.close_look import CloseLook, Usual, look_closely, window_of
from pipeline.errors import ContractError, UserError
from pipeline.history import (
    History,
    MachineAlert,
    Span,
    alerts_beside,
    changes_of,
    chosen_alert,
    history_of,
    periods,
    rarity_of,
    release_facts,
    series,
    span_of,
)
from pipeline.history_page import render_history
from pipeline.history_spectra import read_uploads
from pipeline.release import load_release, release_id
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR, spectra_column, spectra_view, times_us
from pipeline.score import score_data_set
from pipeline.score_log import compact_day, log_days, machine_rows
from pipeline.store import day_files, read_table, write_json, write_table

Run = Callable[..., tuple[int, str, str]]
HOSTILE = '../x<script>alert(1)</script>[red]\x1b[2J"'
CHROMIUM = os.environ.get("HEARKEN_CHROMIUM", "")


@pytest.fixture(scope="module")
def plant(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small fleet, one machine of which is ten times as loud in its upper bands through most of one day."""
    out = tmp_path_factory.mktemp("plant") / "data"
    shutil.copytree(built / "data/raw", out)
    path = day_files(out)[20]
    table = read_table(path)
    spectra_NF = spectra_view(table["spectrum"], 32).copy()
    mine = np.flatnonzero(np.array(table["machine_id"].to_pylist()) == table["machine_id"][0].as_py())
    spectra_NF[mine[4:20], 16:] *= 10
    place = table.column_names.index("spectrum")
    write_table(path, table.set_column(place, table.schema.field("spectrum"), spectra_column(spectra_NF)))
    return out


@pytest.fixture(scope="module")
def log(built: Path, plant: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `hearken score --output` writes."""
    out = tmp_path_factory.mktemp("log")
    score_data_set(load_release(built / "data/release"), plant, out)
    return out


@pytest.fixture(scope="module")
def served(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows as the service leaves them: a folder per day, a file per shard, half of the days compacted."""
    out = tmp_path_factory.mktemp("served")
    for number, path in enumerate(sorted(log.glob("*.parquet"))):
        table = read_table(path)
        names = pa.array([f"spectra/{path.name}"] * table.num_rows).dictionary_encode()
        table = table.set_column(0, table.schema.field("file"), names.cast(table.schema.field("file").type))
        middle = table.num_rows // 2
        for part, rows in enumerate((table.slice(0, middle), table.slice(middle))):
            write_table(out / path.stem / f"{2 * number + part:09}-ab12cd34.parquet", rows)
        if number % 2:
            compact_day(out, path.stem)
    shutil.copy(log / "_alerts.json", out)
    return out


@pytest.fixture(scope="module")
def alarmed(log: Path, plant: Path) -> str:
    """The machine that was loud, for which the release paged."""
    name = str(read_table(day_files(plant)[20])["machine_id"][0].as_py())
    assert any(alert.paged_us is not None for alert in alerts_beside(log, name) or [])
    return name


def told(log: Path, machine: str, span: Span | None = None, releases: Path | None = None) -> History:
    alerts = alerts_beside(log, machine) or []
    chosen = chosen_alert([alert for alert in alerts if alert.tier == "page"] or alerts, None, None)
    days = log_days(log)
    start = int(np.datetime64(days[0], "us").astype(np.int64))
    span = span or Span(start, start + len(days) * MICROSECONDS_PER_DAY)
    return history_of(log, machine, span, alerts, chosen, releases)


# --- figures -------------------------------------------------------------------------------------------------------


def test_both_layouts_tell_the_same(log: Path, served: Path, alarmed: str) -> None:
    plain, service = told(log, alarmed), told(served, alarmed)
    assert plain.rows.num_rows > 100
    for name in plain.rows.column_names:
        if name != "file":
            assert plain.rows[name].to_pylist() == service.rows[name].to_pylist(), name
    assert periods(plain) == periods(service)


def test_periods_count_every_row_once_and_hours_make_days(log: Path, alarmed: str) -> None:
    whole = told(log, alarmed)
    table = pa.concat_tables([read_table(path) for path in sorted(log.glob("*.parquet"))]).to_pandas()
    own = table[table["machine_id"] == alarmed]
    days = periods(whole)
    assert sum(period.rows for period in days) == len(own) == whole.rows.num_rows
    assert sum(period.low for period in days) == own["tier"].isin(["low", "page"]).sum() > 0
    assert sum(period.page for period in days) == (own["tier"] == "page").sum() > 0
    assert max(period.rarity or 0 for period in days) == pytest.approx(-np.log10(own["tail_ensemble"].min()))
    assert {release for period in days for release in period.releases} == set(own["release"])
    first = days[0].start_us
    hours = periods(told(log, alarmed, Span(first, first + 2 * MICROSECONDS_PER_DAY)))
    assert sum(period.rows for period in hours) == days[0].rows + days[1].rows
    assert len(hours) > 24
    assert all(period.start_us % MICROSECONDS_PER_HOUR == 0 for period in hours)


def test_rows_without_a_score_are_unusable_and_have_no_rarity(log: Path, alarmed: str, tmp_path: Path) -> None:
    path = sorted(log.glob("*.parquet"))[0]
    table = read_table(path)
    for name in [name for name in table.column_names if name.startswith(("score_", "tail_"))]:
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(name), pa.nulls(table.num_rows, pa.float64()))
    write_table(tmp_path / path.name, table)
    found = told(tmp_path, alarmed)
    assert {(hour.rarity, hour.unusable == hour.rows) for hour in periods(found)} == {(None, True)}
    assert found.unusable == found.rows.num_rows > 0
    assert len(series(found, "ensemble")[0]) == 0
    page = render_history(found, None)
    assert "No row of the span has a score" in page


def test_the_default_span_is_the_last_week_of_the_machine_or_lies_around_an_alert(log: Path, alarmed: str) -> None:
    newest = int(times_us(told(log, alarmed).rows["timestamp"]).max())
    assert span_of(log, alarmed, None, None) == Span(newest + 1 - 7 * MICROSECONDS_PER_DAY, newest + 1)
    alert = (alerts_beside(log, alarmed) or [])[0]
    around = span_of(log, alarmed, None, None, alert)
    assert alert.touches(around)
    assert around.until_us - around.since_us == 7 * MICROSECONDS_PER_DAY
    given = span_of(log, alarmed, newest - 10, None)
    assert given == Span(newest - 10, newest + 1)


def test_what_makes_no_span_is_one_clear_error(log: Path, alarmed: str, tmp_path: Path) -> None:
    newest = int(times_us(told(log, alarmed).rows["timestamp"]).max())
    with pytest.raises(UserError, match=f"machine: got '{alarmed[:-1]}', expected one of the score log .*is near"):
        span_of(log, alarmed[:-1], None, None)
    with pytest.raises(ContractError, match="score log: got no day"):
        span_of(tmp_path / "none", alarmed, None, None)
    with pytest.raises(UserError, match="expected a start before the end"):
        span_of(log, alarmed, newest, newest - 5)
    with pytest.raises(UserError, match=r"--from: got .* expected a time before .* the machine's newest row"):
        span_of(log, alarmed, newest + 5, None)
    with pytest.raises(UserError, match="got no row of"):
        told(log, alarmed, Span(0, 1))
    with pytest.raises(UserError, match=r"--alert: got 10000, expected an alert of this machine \("):
        chosen_alert(alerts_beside(log, alarmed) or [], 10000, None)


def test_alerts_are_those_of_the_list_beside_the_log(log: Path, alarmed: str, tmp_path: Path) -> None:
    listed = json.loads((log / "_alerts.json").read_text())
    found = alerts_beside(log, alarmed) or []
    assert [listed[alert.id - 1] for alert in found] == [each for each in listed if each["machine_id"] == alarmed]
    assert [alert.details for alert in found] == [each for each in listed if each["machine_id"] == alarmed]
    opened = dt.datetime.fromisoformat(found[0].details["opened"]).timestamp()
    assert found[0].opened_us == opened * 1e6
    assert alerts_beside(tmp_path, alarmed) is None
    write_json(tmp_path / "_alerts.json", [{"machine_id": alarmed, "cause": "vibration"}])
    with pytest.raises(ContractError, match="alerts: got an entry"):
        alerts_beside(tmp_path, alarmed)
    newest = chosen_alert(found, None, None)
    assert newest is not None
    assert newest.opened_us == max(alert.opened_us for alert in found)


def test_tiers_lie_where_the_release_put_them_and_else_where_rows_tell(
    built: Path, log: Path, alarmed: str, tmp_path: Path
) -> None:
    identity = release_id(built / "data/release")
    shutil.copytree(built / "data/release", tmp_path / identity)
    release = load_release(tmp_path / identity)
    known = told(log, alarmed, releases=tmp_path)
    assert known.detector == release.detector
    assert known.tiers["page"] == pytest.approx(-np.log10(release.page_rate))
    assert known.fleet == release.fleet
    seen = told(log, alarmed)
    rarity_N, tier = rarity_of(seen.rows, seen.detector), np.array(seen.rows["tier"].to_pylist())
    assert seen.tiers["low"] == rarity_N[tier != "none"].min()
    assert (rarity_N[tier == "none"] <= seen.tiers["low"]).all()
    for name in ("../" + identity, "0" * 16, identity + "/.."):
        assert release_facts(tmp_path, name) is None


def test_a_series_keeps_the_rarest_rows_and_breaks_where_rows_are_missing(log: Path, alarmed: str) -> None:
    whole = told(log, alarmed)
    time_us_N, rarity_N = series(whole, "ensemble", points=50)
    every_us, every = times_us(whole.rows["timestamp"]), rarity_of(whole.rows, "ensemble")
    assert len(time_us_N) <= 60
    assert np.nanmax(rarity_N) == np.nanmax(every)
    own = dict(zip(every_us.tolist(), every.tolist(), strict=True))
    for time, value in zip(time_us_N.tolist(), rarity_N.tolist(), strict=True):
        assert np.isnan(value) or own[time] == value
    middle = whole.rows.num_rows // 2
    holed = replace(whole, rows=pa.concat_tables([whole.rows.slice(0, middle - 60), whole.rows.slice(middle + 60)]))
    assert (
        np.isnan(series(holed, "ensemble", points=400)[1]).sum()
        == 1 + np.isnan(series(whole, "ensemble", 400)[1]).sum()
    )


# --- spectra -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["log", "served"])
def test_spectra_are_those_of_the_uploads_in_the_order_of_the_rows(
    plant: Path, alarmed: str, layout: str, request: pytest.FixtureRequest
) -> None:
    rows = told(request.getfixturevalue(layout), alarmed).rows.take(pa.array([70, 3, 4, 200, 3]))
    heard = read_uploads(plant, rows, "condition")
    assert heard.gone == {}
    for place, row in enumerate(rows.to_pylist()):
        day = read_table(plant / "spectra" / Path(row["file"]).name)
        assert heard.spectra_NF[place].tolist() == spectra_view(day["spectrum"], 32)[row["row"]].tolist()
        assert heard.condition_N[place] == day["condition"][row["row"]].as_py()
    assert heard.known_N.all()


def test_uploads_that_are_gone_or_changed_are_said_and_others_are_read(
    plant: Path, log: Path, alarmed: str, tmp_path: Path
) -> None:
    history = told(log, alarmed)
    landing = tmp_path / "plant"
    shutil.copytree(plant, landing)
    files = sorted(set(history.rows["file"].to_pylist()))
    gone, damaged, changed, shorter = files[:4]
    (landing / "spectra" / gone).unlink()
    content = (landing / "spectra" / damaged).read_bytes()
    (landing / "spectra" / damaged).write_bytes(content[: len(content) // 2])
    table = read_table(landing / "spectra" / changed)
    write_table(landing / "spectra" / changed, table.take(pa.array(np.arange(table.num_rows)[::-1])))
    write_table(landing / "spectra" / shorter, read_table(landing / "spectra" / shorter).slice(0, 1))
    heard = read_uploads(landing, history.rows)
    assert set(heard.gone) == {gone, damaged, changed, shorter}
    assert "no such file" in heard.gone[gone]
    assert "cut off or no Parquet" in heard.gone[damaged]
    for name in (changed, shorter):
        assert "got other rows than when it was scored" in heard.gone[name]
    wanted = np.isin(np.array(history.rows["file"].to_pylist()), list(heard.gone))
    assert (heard.known_N == ~wanted).all()
    nowhere = read_uploads(tmp_path / "nowhere", history.rows)
    assert set(nowhere.gone) == set(files)
    assert not nowhere.known_N.any()
    look = look_closely(log, tmp_path / "nowhere", history)
    assert not isinstance(look, CloseLook)
    page = render_history(history, look)
    assert "No upload with these spectra is left" in page
    assert "no such file or folder" in page


def test_names_of_the_log_open_nothing_that_the_landing_zone_does_not_list(
    plant: Path, log: Path, alarmed: str, tmp_path: Path
) -> None:
    landing = tmp_path / "plant"
    shutil.copytree(plant, landing)
    outside = tmp_path / "outside.parquet"
    shutil.copy(day_files(plant)[0], outside)
    rows = machine_rows(log, alarmed, dt.datetime(1970, 1, 1, tzinfo=dt.UTC), dt.datetime(2100, 1, 1, tzinfo=dt.UTC))
    for name in ("../outside.parquet", str(outside), "spectra/../../outside.parquet", HOSTILE):
        names = pa.array([name] * 5).dictionary_encode()
        few = rows.slice(0, 5).set_column(0, "file", names)
        heard = read_uploads(landing, few)
        assert set(heard.gone) == {name}
        assert not heard.known_N.any()


def test_of_an_upload_only_row_groups_with_a_wanted_row_are_read(
    plant: Path, log: Path, alarmed: str, tmp_path: Path
) -> None:
    (tmp_path / "spectra").mkdir()
    shutil.copy(plant / "fleet.yaml", tmp_path)
    rows = told(log, alarmed).rows.slice(0, 6)
    (name,) = set(rows["file"].to_pylist())
    path = tmp_path / "spectra" / name
    pq.write_table(read_table(plant / "spectra" / name), path, row_group_size=8)
    metadata, content = pq.ParquetFile(path).metadata, bytearray(path.read_bytes())
    needed = {row // 8 for row in rows["row"].to_pylist()}
    assert len(needed) < metadata.num_row_groups
    for group in set(range(metadata.num_row_groups)) - needed:
        for place in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(place)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)
    assert read_uploads(tmp_path, rows).known_N.all()


def test_levels_are_decibels_against_the_usual_rows_of_the_same_condition() -> None:
    usual = Usual.of(
        np.repeat([[1.0, 2.0], [10.0, 20.0]], 30, axis=0), np.repeat(np.array(["idle", "cut"], object), 30)
    )
    spectra = np.array([[2.0, 2.0], [10.0, 2.0], [np.nan, np.nan], [0.0, 2.0]])
    level = usual.levels(spectra, np.array(["idle", "cut", "cut", "idle"], object), features=False)
    assert level[0].tolist() == pytest.approx([20 * np.log10(2), 0])
    assert level[1].tolist() == pytest.approx([0, -20])
    assert np.isnan(level[2]).all()
    assert level[3].tolist() == pytest.approx([-60, 0])
    assert usual.parted
    # a condition that is not known, or of few rows, is held against all of them
    assert usual.rows_in("standing")[0].shape == (60, 2)
    assert len(Usual.of(spectra, np.zeros(4, object)).spectra_NF) == 0


def test_the_close_look_lies_around_the_alert_and_its_peak_is_louder(plant: Path, log: Path, alarmed: str) -> None:
    history = told(log, alarmed)
    assert history.chosen is not None
    look = look_closely(log, plant, history)
    assert isinstance(look, CloseLook)
    assert look.span == window_of(history.chosen)
    assert look.span.since_us < history.chosen.opened_us <= history.chosen.end_us < look.span.until_us
    assert look.level_TF.shape == (len(look.edges_us_T) - 1, 32)
    rows = machine_rows(log, alarmed, look.span.since, look.span.until)
    assert look.rows == rows.num_rows > 0
    peak = history.chosen.details["peak"]
    day = read_table(plant / "spectra" / peak["file"])
    assert look.peak_F is not None
    assert look.peak_level_F is not None
    assert look.peak_F.tolist() == spectra_view(day["spectrum"], 32)[peak["row"]].tolist()
    assert look.spec.unit == "g"
    whole = look_closely(log, plant, replace(history, chosen=None))
    assert isinstance(whole, CloseLook)
    assert whole.span == history.span


# --- the page ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(plant: Path, log: Path, alarmed: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A log and its landing zone in which a machine, its alerts and its releases have names that nobody should have."""
    root = tmp_path_factory.mktemp("hostile")

    def renamed(table: pa.Table, column: str, name: str) -> pa.Table:
        place, kind = table.column_names.index(column), table.schema.field(column).type
        texts = [name if text == alarmed or column == "release" else text for text in table[column].to_pylist()]
        return table.set_column(place, table.schema.field(column), pa.array(texts).dictionary_encode().cast(kind))

    for path in sorted(log.glob("*.parquet")):
        write_table(
            root / "log" / path.name, renamed(renamed(read_table(path), "machine_id", HOSTILE), "release", HOSTILE)
        )
    for path in day_files(plant):
        write_table(root / "plant/spectra" / path.name, renamed(read_table(path), "machine_id", HOSTILE))
    shutil.copy(plant / "fleet.yaml", root / "plant")
    listed = json.loads((log / "_alerts.json").read_text())
    for alert in listed:
        if alert["machine_id"] == alarmed:
            alert |= {"machine_id": HOSTILE, "note": HOSTILE, "agreed": [HOSTILE]}
            alert["top_bins"] = [{"bin": 1, "band": HOSTILE, "near": [HOSTILE]}]
    write_json(root / "log/_alerts.json", listed)
    return root / "log", root / "plant"


def _others(folder: Path) -> list[Path]:
    """Files beside a folder, but for those that SQLite takes away when the last connection of another test goes."""
    every = (path for path in folder.parent.rglob("*") if folder not in path.parents)
    return sorted(path for path in every if not path.name.endswith(("-shm", "-wal")))


def test_a_hostile_name_is_shown_and_neither_runs_nor_leads_anywhere(
    hearken: Run, hostile: tuple[Path, Path], tmp_path: Path
) -> None:
    log, landing = hostile
    before = _others(tmp_path)
    code, said, errors = hearken(
        "history", tmp_path, HOSTILE, "--log", log, "--landing", landing, "--output", tmp_path / "page.html"
    )
    assert (code, errors) == (0, "")
    assert "\x1b" not in said
    assert "alert(1)" in said
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page.replace(get_plotlyjs(), "")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert _others(tmp_path) == before


def test_the_page_stands_alone_and_says_what_the_log_says(plant: Path, log: Path, alarmed: str) -> None:
    history = told(log, alarmed)
    look = look_closely(log, plant, history)
    page = render_history(history, look)
    assert render_history(history, look) == page
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # plotly's own code names hosts
    assert "http://" not in own
    assert "https://" not in own
    assert "default-src 'none'" in own
    assert history.chosen is not None
    for text in (
        alarmed,
        f"#{history.chosen.id}",
        f"{history.rows.num_rows:,}",
        "In its operating",
        "Isolation forest",
    ):
        assert text.lower() in own.lower(), text
    figures = json.loads(re.findall(r'id="figures">(.*?)</script>', page, flags=re.DOTALL)[0])["figures"]
    assert set(figures) == {"rarity", "levels", "peak"}
    assert len(figures["rarity"]["data"]) == 8
    bands = [shape for shape in figures["rarity"]["layout"]["shapes"] if shape["type"] == "rect"]
    assert len(bands) == len(history.alerts)
    assert len(figures["levels"]["data"][0]["z"]) == 32


def test_another_release_and_another_epoch_are_upright_lines(log: Path, alarmed: str) -> None:
    history = told(log, alarmed)
    half = history.rows.num_rows // 2
    texts = ["a" * 16] * half + ["b" * 16] * (history.rows.num_rows - half)
    rows = history.rows.set_column(history.rows.column_names.index("release"), "release", pa.array(texts))
    moved = int(times_us(rows["timestamp"])[half])
    assert changes_of(rows, "release") == [(moved, "b" * 16)]
    page = render_history(replace(history, rows=rows), None)
    figure = json.loads(re.findall(r'id="figures">(.*?)</script>', page, flags=re.DOTALL)[0])["figures"]["rarity"]
    stamp = str(np.datetime64(moved, "us").astype("datetime64[s]"))
    assert [shape for shape in figure["layout"]["shapes"] if shape.get("x0") == shape.get("x1") == stamp]
    assert any("release" in note["text"] and "bbb" in note["text"] for note in figure["layout"]["annotations"])


@pytest.mark.skipif(not CHROMIUM, reason="HEARKEN_CHROMIUM names no browser (.ci/run installs Debian's)")
def test_a_browser_draws_the_page_and_asks_for_nothing(
    plant: Path, hostile: tuple[Path, Path], log: Path, alarmed: str, tmp_path: Path
) -> None:
    from chromium import Page

    bare = """[...document.querySelectorAll('.chart')].filter(chart => ![...chart.querySelectorAll(
      '.scatterlayer path, .heatmaplayer image')].some(mark => {
        const box = mark.getBoundingClientRect(); return box.width + box.height > 2; })).map(chart => chart.id)"""
    with Page(CHROMIUM, tmp_path / "profile") as page:
        for place, machine, landing in ((log, alarmed, plant), (hostile[0], HOSTILE, hostile[1])):
            history = told(place, machine)
            file = tmp_path / "page.html"
            file.write_text(render_history(history, look_closely(place, landing, history)), encoding="utf-8")
            page.requests.clear()
            page.open(file)
            page.evaluate("document.querySelectorAll('.chart').forEach(chart => chart.scrollIntoView())")
            page.wait_for(f"({bare}).length === 0")
            assert page.errors == []
            assert {url for url in page.requests if not url.startswith(("data:", "blob:"))} == {file.as_uri()}
            assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_periods_and_alerts_and_writes_the_page(
    hearken: Run, plant: Path, log: Path, alarmed: str, tmp_path: Path
) -> None:
    alerts = alerts_beside(log, alarmed) or []
    paged = next(alert for alert in alerts if alert.tier == "page")
    code, said, errors = hearken(
        "history", tmp_path, alarmed, "--log", log, "--landing", plant, "--alert", paged.id,
        "--output", tmp_path / "page.html",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert alarmed in said
    assert f" {paged.id} " in said
    assert f"around alert #{paged.id}" in (tmp_path / "page.html").read_text()
    day = dt.datetime.fromtimestamp(paged.opened_us / 1e6, tz=dt.UTC)
    assert f"{day:%Y-%m-%d}" in said
    until = f"{day + dt.timedelta(hours=3):%Y-%m-%dT%H:%MZ}"
    code, said, _ = hearken("history", tmp_path, alarmed, "--log", log, "--from", f"{day:%Y-%m-%d}", "--to", until)
    assert code == 0
    assert f"{day:%Y-%m-%d %H}:00" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["machine-0"], "is near"),
        (["{}", "--from", "yesterday"], "--from: got 'yesterday', expected ISO 8601, such as"),
        (["{}", "--from", "2025-02-02", "--to", "2025-02-01"], "expected a start before the end"),
        (["{}", "--from", "1999-01-01", "--to", "1999-01-02"], "got no row of"),
        (["{}", "--alert", "100000"], "--alert: got 100000"),
        (["{}", "--output", "."], "--output: got the folder"),
        (["{}", "--log", "nowhere"], "score log: got no day"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    hearken: Run, log: Path, alarmed: str, tmp_path: Path, options: list[str], message: str
) -> None:
    given = [option.format(alarmed) for option in options]
    code, said, errors = hearken("history", tmp_path, *given, *([] if "--log" in given else ["--log", log]))
    assert (code, said) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_outside_a_checkout_a_log_must_be_given(hearken: Run, tmp_path: Path) -> None:
    code, _, errors = hearken("history", tmp_path, "pump")
    assert code == 2
    assert "--log" in errors


# --- alerts of the database ----------------------------------------------------------------------------------------


def enter(url: str, listed: list[MachineAlert], machine: str) -> None:
    """Put alerts into the database, the first as confirmed, and one that was withdrawn."""
    engine = open_database(url)

    def moment(time_us: int | None) -> dt.datetime | None:
        return None if time_us is None else dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=time_us)

    with Session(engine) as session:
        for number, alert in enumerate([*listed, listed[0]]):
            withdrawn = number == len(listed)
            session.add(
                Alert(
                    machine_id=machine,
                    cause=alert.cause,
                    standing=Standing.WITHDRAWN if withdrawn else Standing.CLOSED,
                    final=True,
                    answer=Answer.CONFIRMED if number == 0 else None,
                    opened_at=moment(alert.opened_us),
                    paged_at=moment(alert.paged_us),
                    last_at=moment(alert.last_us),
                    closed_at=moment(alert.closed_us),
                    release_id="a" * 16,
                    details=dict(alert.details),
                )
            )
        session.add(
            Alert(
                machine_id="another", cause="vibration", standing=Standing.OPEN, final=False, release_id="a" * 16,
                opened_at=moment(0), last_at=moment(0), details={},
            )
        )  # fmt: skip
        session.commit()
    engine.dispose()


def test_alerts_of_the_database_are_those_of_the_machine_with_their_answers(url: str, log: Path, alarmed: str) -> None:
    listed = (alerts_beside(log, alarmed) or [])[:3]
    enter(url, listed, alarmed)
    engine = open_database(url)
    found = alerts_of_database(engine, alarmed)
    engine.dispose()
    assert [replace(alert, id=0, answer=None) for alert in found] == [replace(alert, id=0) for alert in listed]
    assert [alert.answer for alert in found] == ["confirmed", None, None][: len(listed)]


def test_the_command_takes_log_landing_zone_and_alerts_from_the_installation(
    hearken: Run, plant: Path, served: Path, alarmed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "dvc.yaml").write_text("stages: {}\n")
    (checkout / "params.yaml").write_text("seed: 1\n")
    log = tmp_path / "kept"
    shutil.copytree(served, log)
    (log / "_alerts.json").unlink()
    for name, value in {
        "HEARKEN_HOME": tmp_path / "home",
        "HEARKEN_SCORE_LOG": log,
        "HEARKEN_LANDING": plant,
        "HEARKEN_DATABASE_URL": f"sqlite:///{tmp_path / 'home' / 'hearken.db'}",
    }.items():
        monkeypatch.setenv(name, str(value))
    code, said, _ = hearken("history", checkout, alarmed)
    assert code == 0
    assert f"no alert of {alarmed}" in said
    assert not (tmp_path / "home").exists()  # reading makes no database
    listed = alerts_beside(served, alarmed) or []
    (tmp_path / "home").mkdir()
    enter(os.environ["HEARKEN_DATABASE_URL"], listed, alarmed)
    code, said, _ = hearken("history", checkout, alarmed, "--alert", 1, "--output", "page.html")
    assert code == 0
    assert "confirmed" in said
    page = (checkout / "page.html").read_text()
    assert "around alert #1" in page
    assert 'id="levels"' in page
    monkeypatch.setenv("HEARKEN_DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    code, said, _ = hearken("history", checkout, alarmed)
    assert code == 0
    assert "warning: alerts are not known" in said
