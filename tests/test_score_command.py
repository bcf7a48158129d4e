"""`hearken score`: arrivals without a server, one-off scoring as before, and exit codes that a cron job can read."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa
from http_receiver import receiving
from service_plant import ServicePlant

from flows.database import open_database
from flows.workspace import override_params
from pipeline.store import read_table

HOUR = pa.scalar(dt.timedelta(hours=1), pa.duration("us"))


class Installation:
    """A checkout, a home with a release in service, and a landing zone."""

    def __init__(self, folder: Path, built: Path, patch: pytest.MonkeyPatch) -> None:
        self.checkout = folder / "checkout"
        self.checkout.mkdir()
        for name in ("dvc.yaml", "params.yaml"):
            shutil.copyfile(
                (built if name == "params.yaml" else Path(__file__).parents[1]) / name, self.checkout / name
            )
        url = f"sqlite:///{folder / 'home' / 'hearken.db'}"
        self.engine = open_database(url)
        self.plant = ServicePlant.of(folder, built, self.engine)
        patch.setenv("HEARKEN_HOME", str(folder / "home"))
        patch.setenv("HEARKEN_LANDING", str(self.plant.landing))
        for name in ("HEARKEN_DATABASE_URL", "HEARKEN_SCORE_LOG"):
            patch.delenv(name, raising=False)


@pytest.fixture
def installed(tmp_path, built, monkeypatch):
    made = Installation(tmp_path, built, monkeypatch)
    yield made
    made.engine.dispose()


def test_arrivals_are_scored_once_and_no_server_is_started(installed, hearken, monkeypatch):
    monkeypatch.setitem(sys.modules, "prefect", None)  # an import would fail
    installed.plant.upload("first", installed.plant.days[0])
    installed.plant.upload("second", installed.plant.days[1])
    code, said, _ = hearken("score", installed.checkout)
    rows = sum(day.num_rows for day in installed.plant.days[:2])
    assert (code, f"{rows:,} spectra of 2 new uploads scored" in said) == (0, True)
    assert installed.plant.log().num_rows == rows
    code, said, _ = hearken("score", installed.checkout)
    assert (code, "0 spectra of 0 new uploads scored" in said) == (0, True)
    assert installed.plant.log().num_rows == rows


def test_shards_that_fail_exit_with_1_and_a_line(installed, hearken):
    installed.plant.upload("first", installed.plant.days[0])
    log = installed.plant.settings.score_log
    log.write_text("a file stands where the folder belongs")
    code, said, errors = hearken("score", installed.checkout)
    assert code == 1
    assert "shards failed: 1" in said
    assert errors.startswith("failed: 1 shard is still to be scored: shard 000000001-")
    assert "Traceback" not in said + errors
    log.unlink()
    assert hearken("score", installed.checkout)[0] == 0


def test_a_run_tells_people_exports_answers_and_keeps_house(installed, hearken, monkeypatch):
    plant = installed.plant
    with receiving() as receiver:
        monkeypatch.setenv("HEARKEN_NOTIFY_PAGE", receiver.address)
        for at, day in enumerate(plant.days):
            plant.upload(f"day-{at:02}", day)
            if at >= len(plant.days) // 2:
                code, said, errors = hearken("score", installed.checkout)
                assert (code, errors) == (0, ""), said
            if receiver.posts:
                break
        first = [post["title"] for post in receiver.posts]
        assert first
        hearken("score", installed.checkout)
        assert [post["title"] for post in receiver.posts] == first  # nobody is told twice
    assert read_table(plant.landing / "feedback.parquet").num_rows > 0
    assert list(plant.settings.score_log.glob("*/compacted-*.parquet"))


def test_a_landing_zone_that_is_gone_is_a_persons_mistake(installed, hearken):
    shutil.rmtree(installed.plant.landing)
    code, _, errors = hearken("score", installed.checkout)
    assert (code, errors.startswith("error: ")) == (2, True)
    assert str(installed.plant.landing) in errors


def test_no_release_in_service_is_a_persons_mistake(installed, hearken):
    with installed.engine.begin() as connection:
        connection.execute(sa.text("UPDATE releases SET state = 'retired'"))
    code, _, errors = hearken("score", installed.checkout)
    assert (code, errors) == (2, "error: release: got none in service, expected one: hearken releases promote.\n")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--release", "v1"], "--release: got one without --input"),
        (["--output", "x"], "--output: got one without --input"),
        (["--since", "2025-01-01"], "--since: got one without --input"),
        (["--input", "x", "--output", "y"], "--release: got none, expected one with --input."),
        (["--input", "x", "--release", "v1"], "--output: got none, expected one with --input."),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, expected, tmp_path, hearken):
    code, _, errors = hearken("score", tmp_path, *options)
    assert (code, errors.startswith(f"error: {expected}")) == (2, True)


def test_one_folder_is_scored_beside_the_service(installed, built, hearken):
    out = installed.checkout / "scores"
    code, said, _ = hearken(
        "score", installed.checkout, "--release", "v1", "--input", built / "data/raw", "--output", out
    )
    assert (code, "machines scored by release" in said) == (0, True)
    assert sum(read_table(path).num_rows for path in out.glob("*.parquet")) == installed.plant.all_rows().num_rows
    assert not installed.plant.settings.score_log.exists()


def test_local_times_are_read_as_the_service_reads_them(installed, hearken):
    override_params(installed.checkout / "params.yaml", {"ingest.timezone": "Europe/Berlin"})
    table, out = installed.plant.days[-1], installed.checkout / "scores"
    local = table["timestamp"].cast(pa.timestamp("us"))  # as a clock on a wall in Berlin shows it
    installed.plant.upload("day", table.set_column(table.column_names.index("timestamp"), "timestamp", local))
    assert hearken("score", installed.checkout)[0] == 0
    served = installed.plant.log()
    assert sorted(pc.add(served["timestamp"], HOUR).to_pylist()) == sorted(table["timestamp"].to_pylist())
    below = installed.checkout / "notes"
    below.mkdir()
    given = ("--input", installed.plant.landing, "--release", "v1", "--output", out)
    assert hearken("score", below, *given)[0] == 0
    alone = pa.concat_tables([read_table(path) for path in sorted(out.glob("*.parquet"))])
    assert sorted(alone["timestamp"].to_pylist()) == sorted(served["timestamp"].to_pylist())
    codes = installed.checkout / "codes.parquet"
    code, _, errors = hearken("encode", below, installed.plant.landing, "--out", codes, "--release", "v1")
    assert (code, errors) == (0, "")
    assert set(read_table(codes)["timestamp"].to_pylist()) <= set(served["timestamp"].to_pylist())


@pytest.mark.server
def test_with_dask_the_command_runs_the_flow_and_says_the_same(installed):
    override_params(installed.checkout / "params.yaml", {"score.engine": "dask", "score.dask_workers": 1})
    installed.plant.upload("first", installed.plant.days[0])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-m", "flows.cli", "score"]
    done = subprocess.run(
        command, cwd=installed.checkout, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{installed.plant.days[0].num_rows} spectra of 1 new uploads scored" in done.stdout
    assert "Traceback" not in done.stderr
    assert installed.plant.log().num_rows == installed.plant.days[0].num_rows
    with installed.engine.begin() as connection:
        connection.execute(sa.text("UPDATE releases SET state = 'retired'"))
    done = subprocess.run(
        command, cwd=installed.checkout, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, "error: release: got none in service" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr
